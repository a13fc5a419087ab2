"""Train, evaluate and keep the runs that docs/scores.md lacks.

    python -m scripts.train_scores [ROW...] --folder=CLONE [--seeds 1 2 3] [--workers=2] [--ranks=1]

ROW is a row of the tables, such as Hopper-v5-4M or PongNoFrameskip-v4-3M; by default all are run, each seed in every
row before the next seed. CLONE is a clone of this project at the commit to train with, with its compiled parts. An
interrupted run resumes where it stopped. A finished run is evaluated, and its curve and scores are copied to
docs/runs/scores, from which scripts/score_table.py makes the tables; scripts/ship_agent.py ships its agent.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scripts import ship_agent
from scripts.background_runs import run_logged, train
from scripts.scored_runs import RUNS, Row, read_games, read_worlds

_EVALUATION = ("--mode=evaluate", "--checkpoint=latest", "--rng_seed=1000000")


@dataclass(frozen=True)
class Attempt:
    """A row of the tables with a seed."""

    row: Row
    seed: int

    @property
    def name(self) -> str:
        """The name of the run's folders, and of its files in docs/runs/scores."""
        return f"{self.row.name}-seed-{self.seed}"

    @property
    def flags(self) -> list[str]:
        """The flags of its training."""
        return [*self.row.flags, f"--env_steps={self.row.env_steps}", f"--rng_seed={self.seed}"]


def missing(rows: Sequence[Row], seeds: Sequence[int], kept: Path) -> Iterator[Attempt]:
    """Yield what has no scores in the folder `kept`, a seed in every row before the next seed."""
    for seed in seeds:
        for row in rows:
            attempt = Attempt(row, seed)
            if not (kept / f"{attempt.name}.json").exists():
                yield attempt


def run(folder: Path, attempt: Attempt, ranks: int) -> None:
    """Train or resume, evaluate and keep a run; print how it ended."""
    log = folder / f"{attempt.name}.log"
    evaluate = [sys.executable, "-m", "ppo", f"--model_name={attempt.name}", *attempt.row.flags, *_EVALUATION]
    code = train(folder, attempt.name, attempt.flags, log, ranks=ranks) or run_logged(evaluate, folder, log)
    if code:
        print(f"{attempt.name} ended with code {code}; {log} says why", flush=True)
    else:
        ship_agent.main([attempt.name, f"--root={folder}", f"--name={attempt.row.world}", "--curve_only"])


def main(arguments: Sequence[str]) -> None:
    """Train, evaluate and keep what is missing."""
    rows = {row.name: row for row in (*read_worlds(), *read_games())}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--folder", type=Path, required=True, help="a clone at the commit to train with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--workers", type=int, default=2, help="runs at the same time")
    parser.add_argument("--ranks", type=int, default=1, help="ranks of a run")
    options = parser.parse_args(arguments)
    for name in options.rows:
        if name not in rows:
            parser.error(f"ROW must be one of {', '.join(rows)}, got {name}")
    todo = list(missing([rows[name] for name in options.rows or rows], options.seeds, RUNS))
    with ThreadPoolExecutor(options.workers) as workers:
        list(workers.map(lambda attempt: run(options.folder, attempt, options.ranks), todo))


if __name__ == "__main__":
    main(sys.argv[1:])
