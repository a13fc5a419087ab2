"""Runs compared on one page for a browser: final returns, learning curves, performance profiles; see docs/report.md."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppo.comparison.curves import Curve, average
from ppo.comparison.statistics import Floats, bootstrap, interquartile_mean, mean, performance_profile
from ppo.report.packing import Pack
from ppo.report.page import assemble

_AXES = ("steps", "minutes", "episodes")
_PLACES = 300
_THRESHOLDS = 100
_DIGITS = 5


def comparison_page(name: str, groups: Mapping[str, Sequence[Curve]], goal: float | None) -> bytes:
    """Return the page.

    Args:
        name: its title.
        groups: the runs of each label.
        goal: a return, to whose first reaching the steps are shown.
    """
    curves = [curve for group in groups.values() for curve in group]
    finals = [curve.final_return for curve in curves]
    margin = 0.05 * (max(finals) - min(finals)) or 1.0
    thresholds = np.linspace(min(finals) - margin, max(finals) + margin, _THRESHOLDS)
    places = {axis: np.linspace(0.0, max(getattr(curve, axis)[-1] for curve in curves), _PLACES) for axis in _AXES}
    described = [_describe(label, group, goal, places, thresholds) for label, group in groups.items()]
    content = {"name": name, "made": time.strftime("%Y-%m-%d %H:%M"), "goal": goal, "thresholds": _plain(thresholds)}
    return assemble(f"{name} - comparison", Pack().encode({**content, "groups": described}), "comparison")


def _describe(
    label: str, curves: Sequence[Curve], goal: float | None, places: Mapping[str, Floats], thresholds: Floats
) -> dict[str, Any]:
    """Return a group as JSON."""
    finals = np.array([curve.final_return for curve in curves])
    low, high = bootstrap(finals, interquartile_mean)
    reached = [] if goal is None else [steps for curve in curves if (steps := curve.steps_to(goal)) is not None]
    return {
        "label": label,
        "seeds": [{"name": curve.name, "final": curve.final_return} for curve in curves],
        "iqm": float(interquartile_mean(finals)),
        "mean": float(mean(finals)),
        "low": float(low),
        "high": float(high),
        "steps": float(statistics.median(curve.steps[-1] for curve in curves)),
        "minutes": float(statistics.median(curve.minutes[-1] for curve in curves)),
        "reached": len(reached),
        "toGoal": float(statistics.median(reached)) if reached else None,
        "profile": _plain(performance_profile(finals, thresholds)),
        "axes": {axis: _along(curves, axis, at) for axis, at in places.items()},
    }


def _along(curves: Sequence[Curve], axis: str, places: Floats) -> dict[str, Any]:
    """Return a group's curves at places of an axis, null where they do not reach."""
    both = average(curves, axis)
    over_seeds = {name: _at(places, both.places, getattr(both, name)) for name in ("mean", "low", "high")}
    seeds = [_at(places, getattr(curve, axis), curve.returns) for curve in curves]
    return {"places": _plain(places), **over_seeds, "seeds": seeds}


def _at(places: Floats, along: Floats, values: Floats) -> list[float | None]:
    return _plain(np.interp(places, along, values, left=np.nan, right=np.nan))


def _plain(values: Floats) -> list[float | None]:
    """Return numbers as JSON: few digits, null where there is none."""
    return [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in values.tolist()]
