"""Compare the time per update of two clones, or of two settings, on a machine whose speed varies.

    python scripts/compare_speed.py OLD NEW [--ranks=2] [--seconds=60] [--slice_seconds=1] [--new_flags=...] [-- FLAGS]

OLD and NEW are clones with their extensions built; they may be the same one. --new_flags are for NEW alone. The two
jobs take turns of --slice_seconds, each stopped during the other's turn, so that both meet the same conditions; only
the time of a job's own turns counts. Prints the time per update of each, and the ratio old over new (above 1: NEW is
faster) with its standard error over tenths of the measurement. Needs the environment of scripts/environment.sh.
"""

import argparse
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from ppo.collectives.mpi import find_mpirun

MPIRUN = find_mpirun() or "mpirun"
_NUM_PARTS = 10
_POLL_SECONDS = 0.004
_WARM_UP_UPDATES = 3


class Job:
    """A training that runs only in its turns, with the times at which its updates ended, in seconds of its turns."""

    def __init__(self, root: Path, ranks: int, flags: Sequence[str], folder: Path) -> None:
        """Start the training."""
        flags = [*flags, "--env_steps=1000000000", "--checkpoint_interval=1000000000"]
        command = [MPIRUN, "-np", str(ranks), sys.executable, "-m", "ppo", *flags]
        with (folder / "output").open("w") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(root)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._folder, self._seconds = folder, 0.0
        self._ends: list[float] = []

    def take_turn(self, seconds: float) -> None:
        """Let the job run for `seconds`, then stop it."""
        self._send(signal.SIGCONT)
        started = time.monotonic()
        while (spent := time.monotonic() - started) < seconds:
            self._note_updates(self._seconds + spent)
            time.sleep(_POLL_SECONDS)
        self._send(signal.SIGSTOP)
        self._seconds += time.monotonic() - started
        if self._process.poll() is not None:
            raise SystemExit((self._folder / "output").read_text()[-2000:])

    def seconds_per_update(self) -> list[float]:
        """Return the mean seconds per update in each part of the measurement."""
        ends = self._ends[_WARM_UP_UPDATES:]
        length = (len(ends) - 1) // _NUM_PARTS
        if not length:
            raise SystemExit(f"too few updates ({len(ends)}) in {self._seconds:.0f} s; use more --seconds")
        bounds = [ends[part * length] for part in range(_NUM_PARTS + 1)]
        return [(end - start) / length for start, end in pairwise(bounds)]

    def is_training(self) -> bool:
        """Return whether the warm-up updates are done."""
        return len(self._ends) >= _WARM_UP_UPDATES

    def end(self) -> None:
        """Kill the job."""
        if self._process.poll() is None:
            self._send(signal.SIGKILL)
            self._process.kill()
            self._process.wait()

    def _note_updates(self, now: float) -> None:
        logs = list(self._folder.glob("**/progress.csv"))
        if logs:
            num_updates = logs[0].read_bytes().count(b"\n") - 1
            self._ends += [now] * (num_updates - len(self._ends))

    def _send(self, number: int) -> None:
        # To every rank: mpirun gives each its own process group.
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in children:
            os.kill(int(pid), number)


def main(arguments: Sequence[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds that each job runs")
    parser.add_argument("--slice_seconds", type=float, default=1.0)
    parser.add_argument("--new_flags", type=shlex.split, default=[], help="more flags, for NEW alone, in one argument")
    own, flags = parser.parse_known_args(arguments)
    flags = [flag for flag in flags if flag != "--"]
    with tempfile.TemporaryDirectory() as temporary:
        jobs: list[Job] = []
        try:
            for name, more in (("old", []), ("new", own.new_flags)):
                (folder := Path(temporary) / name).mkdir()
                jobs.append(Job(getattr(own, name).resolve(), own.ranks, [*flags, *more], folder))
                while not jobs[-1].is_training():
                    jobs[-1].take_turn(own.slice_seconds)
            for _ in range(int(own.seconds / own.slice_seconds)):
                for job in jobs:
                    job.take_turn(own.slice_seconds)
            old, new = (job.seconds_per_update() for job in jobs)
        finally:
            for job in jobs:
                job.end()
    ratios = [before / after for before, after in zip(old, new, strict=True)]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    print(f"ms per update: old {1e3 * statistics.mean(old):.1f}, new {1e3 * statistics.mean(new):.1f}")
    said = " ".join([*flags, *(["| new:", *own.new_flags] if own.new_flags else [])])
    print(f"old / new {statistics.mean(ratios):.4f} +- {error:.4f} ({said})")


if __name__ == "__main__":
    main(sys.argv[1:])
