"""Draw learning curves from progress.csv files: mean return of the last 100 games by steps and by minutes.

    python scripts/plot_curves.py --title Pong --output docs/figures/pong.png docs/runs/pong-seed-*.csv

Needs matplotlib: pip install -e '.[docs]'.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import matplotlib
import tyro

matplotlib.use("Agg")
from matplotlib import pyplot


@dataclass(frozen=True)
class Options:
    """What to draw."""

    csv_files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """progress.csv files, a run each."""
    title: str
    """Title of the figure."""
    output: Path
    """The png to write."""
    goal: float | None = None
    """A return to mark by a line."""


def read_curve(path: Path) -> tuple[list[float], list[float], list[float]]:
    """Return steps, minutes and mean returns of one run, from its hundredth game on."""
    steps, minutes, returns = [], [], []
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            if int(row["rollout/episodes"]) >= 100:
                steps.append(int(row["env_steps"]) / 1000)
                minutes.append(float(row["time/seconds"]) / 60)
                returns.append(float(row["rollout/return_mean"]))
    return steps, minutes, returns


def main() -> None:
    """Draw all runs in two panels."""
    options = tyro.cli(Options)
    figure, (by_steps, by_time) = pyplot.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
    for path in options.csv_files:
        steps, minutes, returns = read_curve(path)
        by_steps.plot(steps, returns, label=path.stem)
        by_time.plot(minutes, returns, label=path.stem)
    for axes, label in ((by_steps, "thousand agent steps"), (by_time, "minutes")):
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
        if options.goal is not None:
            axes.axhline(options.goal, color="grey", linestyle="--", linewidth=1)
    by_steps.set_ylabel("return, mean of 100 games")
    figure.legend(*by_steps.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.suptitle(options.title)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
