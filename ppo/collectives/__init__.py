"""Communication between ranks: `Alone` without MPI, `MPIRanks` in mpi.py with it.

Every method is called by all ranks, unconditionally and in the same order. Arrays are contiguous and belong to the
caller; sums are in place, of float32 and float64 only (MPI accepts bfloat16 buffers and silently returns garbage).
"""

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ppo.settings import Refusal

T = TypeVar("T")


WENT_WRONG = 70
"""Exit code after a Halt."""


class Halt(RuntimeError):
    """The job cannot continue because its own results are wrong; every rank raises this at the same point.

    The program prints it once for the whole job and ends with exit code WENT_WRONG; a restart would not help.
    """


class Collective(Protocol):
    """A group of ranks."""

    rank: int
    size: int
    waiting: bool
    """Whether the rank is in one of the calls below, waiting for the others; read by the watchdog."""

    def sum_in_place(self, buffer: NDArray[Any]) -> None:
        """Replace a float array with its elementwise sum over ranks."""

    def sum_on_root(self, buffer: NDArray[Any]) -> None:
        """Replace rank 0's float array with the elementwise sum over ranks; the others keep theirs."""

    def copy_from_root(self, buffer: NDArray[Any]) -> None:
        """Overwrite every rank's array with rank 0's."""

    def exchange(self, outgoing: NDArray[np.uint8], incoming: NDArray[np.uint8]) -> None:
        """Send row k of `outgoing` to rank k and receive row k of `incoming` from it; both (size, bytes)."""

    def collect(self, own: NDArray[np.uint8], everyone: NDArray[np.uint8]) -> None:
        """Fill row k of `everyone`, (size, bytes), with rank k's `own`, (bytes,), on every rank."""

    def split_by_host(self) -> "Hosts":
        """Return groups of the ranks that share a host's memory; the first call creates them."""

    def broadcast(self, value: T) -> T:
        """Return rank 0's value on every rank."""

    def gather(self, value: T) -> list[T] | None:
        """Return every rank's value, in rank order, on rank 0 and None elsewhere."""

    def barrier(self) -> None:
        """Return once every rank has called this."""

    def abort(self, code: int) -> None:
        """End the whole job immediately with this exit code."""


@dataclass(frozen=True)
class Hosts:
    """A group of ranks, divided by the hosts they run on."""

    count: int
    within: Collective
    """The ranks of this host."""
    between: Collective | None
    """The first ranks of all hosts; None on all other ranks."""


class Alone:
    """A job of one rank, without any MPI library."""

    rank = 0
    size = 1
    waiting = False

    def sum_in_place(self, buffer: NDArray[Any]) -> None:
        """Leave the buffer as it is: the sum over one rank."""
        assert buffer.dtype in (np.float32, np.float64)

    def sum_on_root(self, buffer: NDArray[Any]) -> None:
        """Leave the buffer as it is."""
        self.sum_in_place(buffer)

    def copy_from_root(self, buffer: NDArray[Any]) -> None:
        """Leave the buffer as it is."""

    def exchange(self, outgoing: NDArray[np.uint8], incoming: NDArray[np.uint8]) -> None:
        """Copy the only row."""
        incoming[...] = outgoing

    def collect(self, own: NDArray[np.uint8], everyone: NDArray[np.uint8]) -> None:
        """Fill the only row."""
        everyone[0] = own

    def split_by_host(self) -> Hosts:
        """Return a group of one on one host."""
        return Hosts(1, self, self)

    def broadcast(self, value: T) -> T:
        """Return the value."""
        return value

    def gather(self, value: T) -> list[T] | None:
        """Return the value in a list."""
        return [value]

    def barrier(self) -> None:
        """Return immediately."""

    def abort(self, code: int) -> None:
        """End the process without waiting for other threads."""
        flush_streams()
        os._exit(code)


def flush_streams() -> None:
    """Flush stdout and stderr, whose buffers a process loses when it ends immediately."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def share(total: int, rank: int, size: int) -> range:
    """Return the contiguous block of `total` items that a rank owns; block sizes differ by at most one."""
    return range(total * rank // size, total * (rank + 1) // size)


def true_on_all(comm: Collective, condition: bool) -> bool:
    """Return on every rank whether a condition holds on all of them."""
    return all(of_all_ranks(comm, condition))


def of_all_ranks(comm: Collective, value: T) -> list[T]:
    """Return on every rank the values of all ranks, in rank order."""
    everyone = comm.broadcast(comm.gather(value))
    assert everyone is not None
    return everyone


def decided_by_root(comm: Collective, decide: Callable[[], T]) -> T:
    """Call `decide` on rank 0 only and return its result, or raise its error, on every rank.

    Raises:
        Refusal: raised by `decide`, re-raised on every rank.
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
    """Call `act` on every rank; every rank gets all results in rank order, or raises the same error.

    Raises:
        Refusal: raised by `act`, re-raised on every rank; the first rank's if several raised.
    """
    return of_all_ranks(comm, done_by_each(comm, act))


def done_by_each(comm: Collective, act: Callable[[], T]) -> T:
    """Call `act` on every rank; every rank gets its own result, or raises the same error.

    Raises:
        Refusal: raised by `act`, re-raised on every rank; the first rank's if several raised.
    """
    result: T | None = None
    refusal: str | None = None
    try:
        result = act()
    except Refusal as error:
        refusal = str(error)
    for text in of_all_ranks(comm, refusal):
        if text is not None:
            raise Refusal(text)
    return result  # type: ignore[return-value]
