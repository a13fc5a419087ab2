"""Memory that the ranks of one host share."""

import mmap
import os

import numpy as np
from numpy.typing import NDArray

from ppo.collectives import Collective, true_on_all

_BYTES = np.dtype(np.float32).itemsize
FLOATS_OF_A_CACHE_LINE = 16


def share_vectors(comm: Collective, count: int, length: int) -> NDArray[np.float32] | None:
    """Return zeros (count, length) that all ranks can read and write, or None on all ranks if that is impossible.

    Every row starts on a cache line: matrix products of unaligned weights may round differently.

    The memory has no name that a killed job could leave behind, and does not use /dev/shm, which is small in
    containers. It is freed with its last reader. Called together by all ranks of `comm`, which share a host.
    """
    padded = -(-length // FLOATS_OF_A_CACHE_LINE) * FLOATS_OF_A_CACHE_LINE
    size = count * padded * _BYTES
    descriptor = _make(size) if comm.rank == 0 else None
    where = comm.broadcast(None if descriptor is None else (os.getpid(), descriptor, _identity(descriptor)))
    mapped = None if where is None else _map(*where, size)
    all_have_it = true_on_all(comm, mapped is not None)
    if descriptor is not None:
        os.close(descriptor)  # no longer needed: the memory is mapped
    if mapped is None or not all_have_it:
        return None
    return np.frombuffer(mapped, np.float32).reshape(count, padded)[:, :length]


def _make(size: int) -> int | None:
    """Return a descriptor of `size` bytes of memory that are already allocated, or None."""
    try:
        descriptor = os.memfd_create("ppo")
    except (AttributeError, OSError):  # not Linux
        return None
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _map(process: int, descriptor: int, identity: tuple[int, int], size: int) -> mmap.mmap | None:
    """Map another process's memory; None if it is out of reach or its identity differs."""
    try:
        own = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR)
    except OSError:
        return None
    try:
        # Ranks in separate containers number processes differently: the path may lead to an unrelated file.
        return mmap.mmap(own, size) if _identity(own) == identity else None
    except (OSError, ValueError):
        return None
    finally:
        os.close(own)


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
