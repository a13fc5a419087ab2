"""The figure of a comparison: three panels of curves and the profile of the final returns. Needs matplotlib."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from ppo.comparison.curves import Curve, average
from ppo.comparison.statistics import bootstrap, performance_profile
from ppo.outputs.folders import write_whole

_AXES = {"steps": "agent steps", "episodes": "finished games", "minutes": "minutes of training"}
_NUM_COLOURS = 10  # tab10 has this many distinct colours
_STYLES = ("-", "--", ":", "-.")
_MOST_COLUMNS = 3


def draw(groups: Mapping[str, Sequence[Curve]], goal: float | None, paths: Sequence[Path]) -> None:
    """Draw groups of runs.

    Args:
        groups: the runs of each label.
        goal: a return to mark with a line; None for none.
        paths: the files to write, each in the format of its suffix.

    Raises:
        OSError: one of them cannot be written.
    """
    rows_of_labels = -(-len(groups) // _MOST_COLUMNS)
    figure = Figure(figsize=(10.0, 7.2 + 0.25 * rows_of_labels), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    for number, (label, curves) in enumerate(groups.items()):
        colour = colormaps["tab10"](number % _NUM_COLOURS)
        style = _STYLES[number // _NUM_COLOURS % len(_STYLES)]
        seeds = f"{label} ({len(curves)} seeds)" if len(curves) > 1 else label
        for panel, axis in zip(panels.flat, _AXES, strict=False):
            _draw_curves(panel, curves, axis, seeds, colour, style)
        _draw_profile(panels[1, 1], curves, groups, colour, style)
    for panel, axis in zip(panels.flat, _AXES, strict=False):
        panel.set(xlabel=_AXES[axis], ylabel="return, mean of the last 100 games")
        panel.set_xlim(left=0.0)
        if axis != "minutes":
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[1, 1].set(xlabel="final return", ylabel="share of runs above it", ylim=(-0.03, 1.03))
    for panel in panels.flat:
        panel.grid(alpha=0.3)
        if goal is not None:
            mark = panel.axvline if panel is panels[1, 1] else panel.axhline
            mark(goal, color="grey", linestyle="--", linewidth=1.0)
    columns = min(len(groups), _MOST_COLUMNS)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
    if any(len(curves) > 1 for curves in groups.values()):
        figure.suptitle("Thin: a run. Thick: mean over seeds, with its 95 % bootstrap interval.", fontsize=10)
    for path in paths:
        # Searchable text, and an identical file from identical runs.
        with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ppo"}):
            # Not written by matplotlib itself, which would follow a symbolic link.
            drawn, kind = BytesIO(), path.suffix.removeprefix(".")
            figure.savefig(drawn, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else {})
            write_whole(path, drawn.getvalue())


def _draw_curves(
    panel: Axes, curves: Sequence[Curve], axis: str, label: str, colour: tuple[float, ...], style: str
) -> None:
    several = len(curves) > 1
    for curve in curves if several else ():
        panel.plot(getattr(curve, axis), curve.returns, color=colour, linestyle=style, linewidth=0.7, alpha=0.6)
    together = average(curves, axis)
    panel.plot(together.places, together.mean, color=colour, linestyle=style, linewidth=2.0, label=label)
    if several:
        panel.fill_between(together.places, together.low, together.high, color=colour, alpha=0.18, linewidth=0.0)


def _draw_profile(
    panel: Axes,
    curves: Sequence[Curve],
    groups: Mapping[str, Sequence[Curve]],
    colour: tuple[float, ...],
    style: str,
) -> None:
    """Draw the share of a group's runs whose final return exceeds each threshold, over the range of all groups."""
    scores = np.array([curve.final_return for curve in curves])
    everyone = np.array([curve.final_return for members in groups.values() for curve in members])
    margin = 0.05 * (np.ptp(everyone) or 1.0)
    thresholds = np.linspace(everyone.min() - margin, everyone.max() + margin, 400)
    panel.plot(thresholds, performance_profile(scores, thresholds), color=colour, linestyle=style, linewidth=2.0)
    if len(curves) > 1:
        low, high = bootstrap((scores[:, None] > thresholds).astype(float))
        panel.fill_between(thresholds, low, high, color=colour, alpha=0.18, linewidth=0.0)
