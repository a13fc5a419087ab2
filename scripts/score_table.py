"""Write docs/scores.md from committed runs: what the agents of each world score, beside what was published.

    python -m scripts.score_table

Reads docs/runs/scores/<world>-<steps>-seed-<N>.csv (a run's progress.csv) and .json (its evaluation.json), what was
published (docs/measurements/published.json) and the speeds of quiet runs (docs/measurements/training_rates.json).
"""

import csv
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.marked_page import write_table

DOCS = Path(__file__).resolve().parent.parent / "docs"
RUNS = DOCS / "runs" / "scores"
_NAME = re.compile(r"(?P<world>.+)-(?P<steps>\d+(?:k|M))-seed-(?P<seed>\d+)")
_UNITS = {"k": 1_000, "M": 1_000_000}


@dataclass(frozen=True)
class ScoredRun:
    """A finished run and the evaluation of its final agent."""

    name: str
    """Of its files in docs/runs/scores."""
    world: str
    steps: str
    """The length that was asked for, as 500k or 4M."""
    seed: int
    evaluation: Mapping[str, Any]
    """The content of its evaluation.json."""
    training_mean: float
    """Mean return of the last 100 games of training."""
    env_steps: int

    @property
    def score(self) -> float:
        """Mean return of the evaluation."""
        return float(self.evaluation["return_mean"])


def read_runs(folder: Path) -> Iterator[ScoredRun]:
    """Read the runs of a folder.

    Raises:
        SystemExit: a file has another name than a run's, or half of a run is missing.
    """
    for path in sorted(folder.glob("*.csv")):
        name = _NAME.fullmatch(path.stem)
        if name is None or not path.with_suffix(".json").exists():
            raise SystemExit(f"{path} must be named <world>-<steps>-seed-<N>.csv and have its evaluation beside it")
        with path.open(newline="") as file:
            last = list(csv.DictReader(file))[-1]
        evaluation = json.loads(path.with_suffix(".json").read_text())
        if evaluation["env_steps"] != int(last["env_steps"]):
            message = f"{path} ends at {last['env_steps']} steps, its evaluation is of {evaluation['env_steps']}"
            raise SystemExit(message)
        yield ScoredRun(
            name=path.stem,
            world=name["world"],
            steps=name["steps"],
            seed=int(name["seed"]),
            evaluation=evaluation,
            training_mean=float(last["rollout/return_mean"]),
            env_steps=int(last["env_steps"]),
        )


def table(runs: Sequence[ScoredRun], published: Sequence[Mapping[str, str]], rates: Mapping[str, float]) -> str:
    """Return the table of the worlds in the order of what was published.

    Args:
        runs: of all worlds.
        published: rows with the keys world, steps, reach and best, in words.
        rates: steps per second of a quiet run, by world.
    """
    lines = [
        "| world | steps | minutes | evaluation: median of seeds (worst) | played | each seed: evaluation ± standard "
        "error; last 100 games of training | aim | best published PPO |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in published:
        of_row = sorted((r for r in runs if (r.world, r.steps) == (row["world"], row["steps"])), key=lambda r: r.seed)
        if not of_row:
            lines.append(f"| {row['world']} | {row['steps']} | | not run | | | {row['reach']} | {row['best']} |")
            continue
        scores = [run.score for run in of_row]
        steps = int(row["steps"][:-1]) * _UNITS[row["steps"][-1]]
        rate = rates.get(row["world"])
        minutes = "" if rate is None else f"{steps / rate / 60:.1f}"
        seeds = "; ".join(
            f"[{run.seed}](runs/scores/{run.name}.csv): **{run.score:,.1f}** ± {run.evaluation['return_stderr']:.1f}; "
            f"{run.training_mean:,.1f}"
            for run in of_row
        )
        played = ", ".join(sorted({str(run.evaluation["act"]) for run in of_row}))
        median = f"**{statistics.median(scores):,.1f}**"
        worst = f" ({min(scores):,.1f})" if len(scores) > 1 else ""
        lines.append(
            f"| {row['world']} | {row['steps']} | {minutes} | {median}{worst} | {played} | {seeds} | {row['reach']} "
            f"| {row['best']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Fill the table between the marks in docs/scores.md."""
    runs = list(read_runs(RUNS))
    published = json.loads((DOCS / "measurements" / "published.json").read_text())
    rates = json.loads((DOCS / "measurements" / "training_rates.json").read_text())
    write_table(DOCS / "scores.md", table(runs, published, rates["steps_per_second"]))


if __name__ == "__main__":
    main()
