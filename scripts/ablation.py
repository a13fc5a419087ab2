"""Switch off PPO's code-level optimisations one at a time and measure what each is worth.

    python -m scripts.ablation --folder=FOLDER [--workers=2]      train, or resume where it stopped
    python -m scripts.ablation --folder=FOLDER --write            keep what is finished and write docs/ablation.md

Engstrom et al. 2020, "Implementation Matters in Deep RL" (arXiv:2005.12729): HalfCheetah-v5 and Hopper-v5, three seeds,
300,000 steps each. Every run has all optimisations on, or all but one. A run whose curve is kept in
docs/runs/ablation.csv is not repeated, in whatever folder or on whatever machine it ran.
"""

import argparse
import csv
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scripts import background_runs
from scripts.marked_page import write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parent.parent / "docs"
CURVES = DOCS / "runs" / "ablation.csv"
WORLDS = ("HalfCheetah-v5", "Hopper-v5")
SEEDS = (1, 2, 3)
ENV_STEPS = 300_000
_THINNING = 4
ALL_ON = (
    *("--preset=continuous", f"--env_steps={ENV_STEPS}"),
    *("--value_clip_range=0.2", "--activation=tanh", "--advantage_normalization=minibatch"),
)
SWITCHES: Mapping[str, tuple[str, ...]] = {
    "all on": (),
    "value clipping": ("--value_clip_range=None",),
    "observation normalisation": ("--no_observation_normalization",),
    "observation clipping": ("--observation_clip=None",),
    "reward scaling": ("--no_reward_normalization",),
    "reward clipping": ("--reward_clip=None",),
    "orthogonal initialisation": ("--initialization=default",),
    "falling learning rate": ("--learning_rate_schedule=constant",),
    "gradient clipping": ("--max_gradient_norm=None",),
    "tanh (relu instead)": ("--activation=relu",),
    "advantage normalisation": ("--advantage_normalization=none",),
    "state-independent deviation": ("--state_dependent_deviation",),
}
"""Flags that switch off each optimisation, by its name."""


@dataclass(frozen=True)
class Ablation:
    """A run with at most one optimisation off."""

    world: str
    off: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the run's folders."""
        return f"{self.world}-{'-'.join(self.off.replace('(', '').replace(')', '').split())}-{self.seed}"

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of the run."""
        return (f"--env_name={self.world}", f"--rng_seed={self.seed}", *ALL_ON, *SWITCHES[self.off])


def runs() -> Iterator[Ablation]:
    """Yield every run, all those of a seed before the next seed."""
    for seed in SEEDS:
        for world in WORLDS:
            for off in SWITCHES:
                yield Ablation(world, off, seed)


Curve = Sequence[tuple[int, float]]
"""Environment steps and the mean return of the last 100 games of training, up to the last update."""


def finished_curve(folder: Path, run: Ablation) -> Curve | None:
    """Return every fourth point, from the end, of the curve of a run in a folder; None until the run is finished."""
    log = folder / "runs" / run.name / "progress.csv"
    if not log.exists():
        return None
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or int(rows[-1]["env_steps"]) < ENV_STEPS:
        return None
    # No game has ended in the first updates.
    curve = [(int(row["env_steps"]), float(said)) for row in rows if (said := row["rollout/return_mean"])]
    return curve[::-_THINNING][::-1]


def read_curves(path: Path) -> dict[Ablation, Curve]:
    """Read the curves that are kept."""
    curves: dict[Ablation, list[tuple[int, float]]] = {}
    if path.exists():
        with path.open(newline="") as file:
            for world, off, seed, env_steps, return_mean in list(csv.reader(file))[1:]:
                curve = curves.setdefault(Ablation(world, off, int(seed)), [])
                curve.append((int(env_steps), float(return_mean)))
    return dict(curves)


def write_curves(curves: Mapping[Ablation, Curve], path: Path) -> None:
    """Write curves in the order of `runs`."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("world", "off", "seed", "env_steps", "return_mean"))
        for run in runs():
            for env_steps, return_mean in curves.get(run, ()):
                writer.writerow((run.world, run.off, run.seed, env_steps, round(return_mean, 1)))


def train(folder: Path, run: Ablation) -> None:
    """Train or resume a run unless it is finished."""
    if finished_curve(folder, run) is None:
        code = background_runs.train(folder, run.name, run.flags, folder / f"{run.name}.log")
        curve = finished_curve(folder, run)
        print(f"{run.name}: {curve[-1][1] if curve else f'ended with code {code}'}", flush=True)


def table(returns: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Return the table of both worlds.

    Args:
        returns: the return of each seed, by world and by the optimisation that is off.
    """
    lines = ["| off | " + " | ".join(f"{world}: mean of seeds (each)" for world in WORLDS) + " |", "|---|---|---|"]
    for off in SWITCHES:
        cells = []
        for world in WORLDS:
            found = returns[world].get(off, [])
            each = ", ".join(f"{value:,.0f}" for value in found)
            cells.append(f"**{statistics.fmean(found):,.0f}** ({each})" if found else "not run")
        lines.append(f"| {off} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure_of(returns: Mapping[str, Mapping[str, Sequence[float]]]) -> "Figure":
    """Return a figure with the mean of the seeds as bars and each seed as a point, empty where nothing has run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(WORLDS), figsize=(10, 4.4), sharey=True, layout="constrained")
    names = [*reversed(SWITCHES)]  # the first one is drawn at the top
    for world, panel in zip(WORLDS, panels, strict=True):
        for position, off in enumerate(names):
            if found := returns[world].get(off):
                panel.barh(position, statistics.fmean(found), color="#4878a8" if off == "all on" else "#b8c8d8")
                panel.plot(found, [position] * len(found), "k.", markersize=4)
        panel.set_yticks(range(len(names)), names)
        panel.set_title(f"{world}, 300,000 steps")
        panel.set_xlabel("mean return of the last 100 games")
    return figure


def write(curves: Mapping[Ablation, Curve]) -> None:
    """Keep the curves, and write the figure and the table between the marks in docs/ablation.md."""
    write_curves(curves, CURVES)
    returns: dict[str, dict[str, list[float]]] = {world: {} for world in WORLDS}
    for run in runs():
        if run in curves:
            returns[run.world].setdefault(run.off, []).append(curves[run][-1][1])
    figure_of(returns).savefig(DOCS / "figures" / "ablation.png", dpi=110)
    write_table(DOCS / "ablation.md", table(returns))


def main(arguments: Sequence[str]) -> None:
    """Train the missing runs, or keep the finished ones and write their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--workers", type=int, default=2, help="runs trained at the same time, one rank each")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(arguments)
    curves = read_curves(CURVES)
    missing = [run for run in runs() if run not in curves]
    if options.write:
        found = {run: curve for run in missing if (curve := finished_curve(options.folder, run))}
        write({**curves, **found})
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.workers) as workers:
        list(workers.map(lambda run: train(options.folder, run), missing))


if __name__ == "__main__":
    main(sys.argv[1:])
