"""Measure how fast each world of docs/scores.md trains, alone on this machine.

    python -m scripts.measure_training_rates [WORLD...] [--ranks=2] [--seconds=120]

Trains with the settings of the table's rows, for --seconds or until the run ends, and writes the steps per second to
docs/measurements/training_rates.json, from which scripts/score_table.py computes the minutes of a run. Worlds that are
not named keep their rates. Nothing else may run on the machine: the script waits until its load has fallen, and gives
up after five minutes.
"""

import argparse
import csv
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

from scripts.benchmarking.jobs import Job, mpirun
from scripts.benchmarking.machine import commit, describe_machine, wait_until_quiet
from scripts.benchmarking.processes import available_cores
from scripts.scored_runs import DOCS, read_games, read_worlds

_POLL_SECONDS = 0.2


def steps_per_second(progress: Path) -> float:
    """Return the rate of a run from the end of its first update, which is slower, to that of its last.

    Raises:
        SystemExit: the run has made fewer than two updates.
    """
    rows: list[dict[str, str]] = []
    if progress.exists():
        with progress.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["time/seconds"]]
    if len(rows) < 2:
        raise SystemExit(f"{progress.parent.name} made fewer than two updates; use more --seconds")
    steps, seconds = (float(rows[-1][key]) - float(rows[0][key]) for key in ("env_steps", "time/seconds"))
    return steps / seconds


def measure(flags: Sequence[str], cores: Sequence[int], seconds: float) -> float:
    """Train with `flags`, a rank on each of `cores`, and return the steps per second.

    Raises:
        JobError: the training failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = mpirun(cores, ["-m", "ppo", *flags, "--model_name=measured"])
        with Job(command, Path(folder)) as job:
            # Imports and the making of worlds are not training.
            progress = Path(folder) / "runs" / "measured" / "progress.csv"
            while not progress.exists() and job.is_running():
                time.sleep(_POLL_SECONDS)
            end = time.monotonic() + seconds
            while job.is_running() and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
            return steps_per_second(progress)


def main(arguments: Sequence[str]) -> None:
    """Measure and write."""
    # The last row of a world is its longest, with the same speed.
    rows = {row.world: row for row in (*read_worlds(), *read_games())}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="*", metavar="WORLD", help="by default all")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args(arguments)
    for world in options.worlds:
        if world not in rows:
            parser.error(f"WORLD must be one of {', '.join(rows)}, got {world}")
    cores = available_cores()[: options.ranks]
    output = DOCS / "measurements" / "training_rates.json"
    wait_until_quiet()
    machine, measured_commit = describe_machine(cores), commit()  # before this script changes a file
    for world in options.worlds or rows:
        row = rows[world]
        print(f"{world}: ", end="", flush=True)
        rate = measure([*row.flags, f"--env_steps={row.env_steps}"], cores, options.seconds)
        print(f"{rate:,.0f} steps/s, {row.env_steps / rate / 60:.1f} min", flush=True)
        measured = json.loads(output.read_text())
        measured[world] = {
            "steps_per_second": round(rate),
            "command": f"python -m scripts.measure_training_rates {world} --ranks={len(cores)} "
            f"--seconds={options.seconds:g}",
            "date": date.today().isoformat(),
            "commit": measured_commit,
            "machine": asdict(machine),
        }
        output.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
