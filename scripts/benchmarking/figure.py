"""A benchmark as a figure: speed against the ideal, where the time goes, and scaling."""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.benchmarking.programs import PHASES
from scripts.benchmarking.results import Benchmark, share_of_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 0.4


def draw(benchmark: Benchmark, path: Path) -> None:
    """Draw a benchmark to a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (speed, time, scaling) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    _draw_speed(benchmark, speed)
    _draw_time(benchmark, time)
    _draw_scaling(benchmark, scaling)
    machine = benchmark.machine
    figure.suptitle(f"{machine.processor}, {len(machine.cores)} cores, commit {benchmark.commit}", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_speed(benchmark: Benchmark, axes: "Axes") -> None:
    """Draw a bar per case, with the ideal behind the program, and lines for Stable-Baselines3."""
    places = range(len(benchmark.cases))
    names = [case.name for case in benchmark.cases]
    ideals = [benchmark.of_case(name, lambda c: c.ideal).median for name in names]
    spreads = [benchmark.of_case(name, lambda c: c.program.steps_per_second) for name in names]
    axes.bar(places, ideals, 2 * _WIDTH, color="lightgrey", label="ideal")
    errors = [[s.median - s.lowest for s in spreads], [s.highest - s.median for s in spreads]]
    axes.bar(places, [s.median for s in spreads], _WIDTH, yerr=errors, capsize=3, label="program")
    for (name, rate), style in zip(benchmark.stable_baselines3_speeds.items(), ("--", ":"), strict=False):
        axes.axhline(rate.median, color="black", linestyle=style, linewidth=1, label=f"Stable-Baselines3, {name}")
    axes.set_xticks(places, names, rotation=45, ha="right", fontsize=8)
    axes.set_ylabel("steps per second")
    axes.set_ylim(top=1.4 * max(ideals))  # room for the legend
    axes.legend(fontsize=8)


def _draw_time(benchmark: Benchmark, axes: "Axes") -> None:
    """Draw bars of the share of time in each phase."""
    places = range(len(benchmark.cases))
    below = [0.0] * len(benchmark.cases)
    for phase in PHASES:
        shares = [100.0 * benchmark.of_case(case.name, share_of_time(phase)).median for case in benchmark.cases]
        axes.bar(places, shares, 2 * _WIDTH, bottom=below, label=phase)
        below = [low + share for low, share in zip(below, shares, strict=True)]
    axes.set_xticks(places, [case.name for case in benchmark.cases], rotation=45, ha="right", fontsize=8)
    axes.set_ylabel("percent of the time")
    axes.set_ylim(top=130.0)
    axes.set_yticks(range(0, 101, 20))
    axes.legend(fontsize=8, ncols=4, loc="upper center")


def _draw_scaling(benchmark: Benchmark, axes: "Axes") -> None:
    """Draw curves of speed over ranks, dashed for the ideal."""
    kinds = itertools.groupby(benchmark.cases, key=lambda case: (case.preset, case.weak))
    for number, ((preset, weak), group) in enumerate(kinds):
        cases = list(group)
        if weak:
            cases = [case for case in benchmark.cases if (case.preset, case.ranks) == (preset, 1)] + cases
        ranks, colour = [case.ranks for case in cases], f"C{number}"
        measured = [benchmark.of_case(case.name, lambda c: c.program.steps_per_second).median for case in cases]
        ideals = [benchmark.of_case(case.name, lambda c: c.ideal).median for case in cases]
        axes.plot(ranks, measured, marker="o", color=colour, label=f"{preset}{', weak' if weak else ''}")
        axes.plot(ranks, ideals, linestyle="--", color=colour, linewidth=1)
    axes.set_xticks(sorted({case.ranks for case in benchmark.cases}))
    axes.set_xlabel("ranks, one core each (dashed: ideal)")
    axes.set_ylabel("steps per second")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
