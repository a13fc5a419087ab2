"""Times training programs from outside, by the wall-clock times at which rows appear in a CSV file.

Thus everything that a user waits for counts, including logs and checkpoints.
"""

import csv
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarking.jobs import Job, mpirun
from scripts.benchmarking.plan import Case, Settings
from scripts.benchmarking.processes import Rank

PHASES = ("env", "inference", "learn", "communicate", "wait", "save", "else")
"""The phases of an update; `else` is the time that the program does not measure itself."""
_POLL_SECONDS = 0.02

Row = dict[str, str]


class Follower:
    """Reads the rows of a CSV file as a program appends them."""

    def __init__(self, path: Path) -> None:
        """Follow a file, which may not exist yet."""
        self._path = path
        self._bytes_read = 0
        self._columns: list[str] = []

    def new_rows(self) -> list[Row]:
        """Return the complete rows that have appeared since the last call."""
        if not self._path.exists() or self._path.stat().st_size == self._bytes_read:
            return []
        with open(self._path, "rb") as file:
            file.seek(self._bytes_read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._bytes_read += len(whole + newline)
        lines = list(csv.reader(whole.decode().splitlines()))
        if not self._columns and lines:
            self._columns = lines.pop(0)
        return [dict(zip(self._columns, line, strict=True)) for line in lines]

    def next_rows(self, job: Job) -> list[Row]:
        """Wait for new rows and return them.

        Raises:
            JobError: the job ended first.
        """
        while not (rows := self.new_rows()):
            job.check()
            time.sleep(_POLL_SECONDS)
        return rows


@dataclass(frozen=True)
class Window:
    """The progress of a program between two rows, after its warm-up."""

    seconds: float
    """Seconds from the row before `rows` to the last of `rows`."""
    steps: int
    rows: list[Row]
    """A row per update."""

    @property
    def steps_per_second(self) -> float:
        """Agent steps per second of wall time."""
        return self.steps / self.seconds


@dataclass(frozen=True)
class ProgramRun:
    """Averages of a training run of this program over its window."""

    steps_per_second: float
    updates: int
    """Updates in the window, one of them with a checkpoint."""
    epochs: float
    update_seconds: float
    phases: dict[str, float]
    """Seconds per update of each phase; they add up to update_seconds."""
    ranks: list[Rank]


def measure_program(case: Case, cores: Sequence[int], settings: Settings, *, ideal: float) -> ProgramRun:
    """Train for some updates in a temporary folder and measure.

    The window has as many updates as an ideal program would do in the set time, but at most the preset's
    checkpoint_interval. Checkpoints are as many updates apart, so every window has exactly one, wherever it begins.

    Args:
        case: what to train.
        cores: one for each rank.
        settings: how long to measure.
        ideal: steps per second that the machine allows.

    Raises:
        JobError: the run ended by itself.
    """
    updates = round(settings.seconds * ideal / case.config.steps_per_update)
    updates = min(max(1, updates), case.config.run.checkpoint_interval)
    with tempfile.TemporaryDirectory() as folder, _train(case, cores, Path(folder), updates) as job:
        follower = Follower(Path(folder) / case.config.run_folder / "progress.csv")
        window = watch(job, follower, settings.warm_up_seconds, lambda done, _: done >= updates)
        ranks = job.ranks()
    assert [rank.cores for rank in ranks] == [[core] for core in cores[: case.ranks]], f"not a core each: {ranks}"
    return summarize(window, ranks)


def steps_per_second(case: Case, cores: Sequence[int], settings: Settings, *, share: float) -> float:
    """Train for a share of the measurement time, with fewer or no checkpoints, and return the steps per second.

    Raises:
        JobError: the run ended by itself.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        _train(case, cores, Path(folder), case.config.run.checkpoint_interval) as job,
    ):
        follower = Follower(Path(folder) / case.config.run_folder / "progress.csv")
        seconds = settings.seconds * share
        return watch(job, follower, settings.warm_up_seconds * share, lambda _, t: t >= seconds).steps_per_second


def watch(job: Job, follower: Follower, warm_up_seconds: float, enough: Callable[[int, float], bool]) -> Window:
    """Wait for a program's first row and its warm-up, then return its window.

    Args:
        job: the program.
        follower: follows the CSV file that the program writes, which has the column env_steps.
        warm_up_seconds: counted from the first row, rounded up to the next row.
        enough: whether the window is complete, given its number of rows and its seconds.

    Raises:
        JobError: the program ended before that.
    """
    last = follower.next_rows(job)[-1]
    warm = time.monotonic() + warm_up_seconds
    while time.monotonic() < warm:
        last = follower.next_rows(job)[-1]
    started, rows = time.monotonic(), list[Row]()
    while not rows or not enough(len(rows), time.monotonic() - started):
        rows += follower.next_rows(job)
    seconds = time.monotonic() - started
    return Window(seconds, int(rows[-1]["env_steps"]) - int(last["env_steps"]), rows)


def summarize(window: Window, ranks: list[Rank]) -> ProgramRun:
    """Average a window over its updates."""
    update_seconds = window.seconds / len(window.rows)
    return ProgramRun(
        steps_per_second=window.steps_per_second,
        updates=len(window.rows),
        epochs=_mean(window.rows, "update/epochs"),
        update_seconds=update_seconds,
        phases=phases(window.rows, update_seconds),
        ranks=ranks,
    )


def phases(rows: Sequence[Row], update_seconds: float) -> dict[str, float]:
    """Return the mean seconds per update of each of PHASES.

    In progress.csv `communicate` includes `wait`; here it does not.
    """
    spent = {phase: _mean(rows, f"time/{phase}") for phase in PHASES if phase != "else"}
    spent["communicate"] -= spent["wait"]
    return {**spent, "else": update_seconds - sum(spent.values())}


def seconds_to_first_update(case: Case, cores: Sequence[int]) -> list[float]:
    """Return the seconds from the command to its first row, for a first and a second start in the same folder.

    Raises:
        JobError: a run ended by itself.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            with _train(case, cores, Path(folder), case.config.run.checkpoint_interval) as job:
                Follower(Path(folder) / case.config.run_folder / "progress.csv").next_rows(job)
                found.append(time.monotonic() - job.started)
            # So that the next start's first row is the first in the file.
            shutil.rmtree(Path(folder) / case.config.run.run_dir)
    return found


def _train(case: Case, cores: Sequence[int], folder: Path, checkpoint_interval: int) -> Job:
    # On the CPU, like the limits.
    arguments = ["-m", "ppo", "--device=cpu", *case.flags, f"--checkpoint_interval={checkpoint_interval}"]
    return Job(mpirun(cores[: case.ranks], arguments), folder)


def _mean(rows: Sequence[Row], column: str) -> float:
    return statistics.fmean(float(row[column]) for row in rows)
