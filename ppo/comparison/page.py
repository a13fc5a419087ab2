"""Runs compared on one page for a browser: final returns, learning curves, performance profiles; see docs/report.md."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppo.comparison.curves import Curve, average
from ppo.comparison.statistics import Floats, performance_profile
from ppo.comparison.summary import summarize
from ppo.report.packing import Pack, plain
from ppo.report.page import assemble

_AXES = ("steps", "minutes", "episodes")
_PLACES = 300
_THRESHOLDS = 100


def comparison_page(name: str, groups: Mapping[str, Sequence[Curve]], goal: float | None) -> bytes:
    """Return the comparison page.

    Args:
        name: its title.
        groups: the runs of each label.
        goal: a target return; the page shows the steps after which runs first reached it.
    """
    curves = [curve for group in groups.values() for curve in group]
    finals = [curve.final_return for curve in curves]
    margin = 0.05 * (max(finals) - min(finals)) or 1.0
    thresholds = np.linspace(min(finals) - margin, max(finals) + margin, _THRESHOLDS)
    places = {axis: np.linspace(0.0, max(getattr(curve, axis)[-1] for curve in curves), _PLACES) for axis in _AXES}
    described = [_describe(label, group, goal, places, thresholds) for label, group in groups.items()]
    content = {"name": name, "made": time.strftime("%Y-%m-%d %H:%M"), "goal": goal, "thresholds": plain(thresholds)}
    return assemble(f"{name} - comparison", Pack().encode({**content, "groups": described}), "comparison")


def _describe(
    label: str, curves: Sequence[Curve], goal: float | None, places: Mapping[str, Floats], thresholds: Floats
) -> dict[str, Any]:
    """Return a group as JSON."""
    summary = summarize(curves, goal)
    middle = summary.interquartile_mean
    return {
        "label": label,
        "seeds": [{"name": curve.name, "final": curve.final_return, "facts": dict(curve.facts)} for curve in curves],
        "iqm": middle.value,
        "mean": summary.mean.value,
        "deviation": summary.deviation,
        "low": middle.low,
        "high": middle.high,
        "steps": summary.steps,
        "minutes": summary.minutes,
        "reached": len(summary.steps_to_goal),
        "toGoal": summary.median_steps_to_goal,
        "profile": plain(performance_profile(summary.finals, thresholds)),
        "axes": {axis: _along(curves, axis, at) for axis, at in places.items()},
    }


def _along(curves: Sequence[Curve], axis: str, places: Floats) -> dict[str, Any]:
    """Return a group's curves at places of an axis, null outside their range."""
    both = average(curves, axis)
    over_seeds = {name: _at(places, both.places, getattr(both, name)) for name in ("mean", "low", "high")}
    seeds = [_at(places, getattr(curve, axis), curve.returns) for curve in curves]
    return {"places": plain(places), **over_seeds, "seeds": seeds}


def _at(places: Floats, along: Floats, values: Floats) -> list[float | None]:
    if not len(along):  # the seeds have no place of this axis in common
        return [None] * len(places)
    return plain(np.interp(places, along, values, left=np.nan, right=np.nan))
