"""The part of a machine that is one rank's own: its share of the cores of its host.

A core counts once, however many hardware threads it has: with `mpirun -np <cores>` every rank has one. Limits on which
cores may be used are seen, limits on processor time (`docker --cpus`) are not.
"""

import ctypes
import os
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from ppo.collectives import Collective

SEVERAL_CORES = 4
"""With fewer of them to a rank, giving exact resume up for emulator threads has not been seen to buy anything."""
# Of glibc's malloc.h: what is freed at the end of the heap is given back above this size, ...
_M_TRIM_THRESHOLD, _NEVER = -1, 2**31 - 1
# ... and what is larger than this has pages of its own from the start, which are given back at once.
_M_MMAP_THRESHOLD, _LARGER_THAN_ANY_ACTIVATION = -3, 2**30
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where the C library is glibc; elsewhere do nothing.

    A gradient takes and frees the same tens of megabytes again and again. Now and then glibc gives them back each time,
    and the kernel clears thousands of new pages in every gradient step: 182 ms instead of 147 for 256 samples of the
    Nature CNN.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
        mallopt(_M_MMAP_THRESHOLD, _LARGER_THAN_ANY_ACTIVATION)


def cores_per_rank(comm: Collective, hosts: Sequence[str]) -> list[int]:
    """Return for every rank how many cores it has to itself, at least 1.

    Args:
        comm: the job.
        hosts: the host of every rank.
    """
    everyone = comm.broadcast(comm.gather(cores_here()))
    assert everyone is not None
    return shared_out(hosts, everyone)


def cores_here() -> frozenset[str]:
    """Return the names of the cores that this process may use."""
    if not hasattr(os, "sched_getaffinity"):
        return frozenset(map(str, range(os.cpu_count() or 1)))
    return frozenset(map(_core_of, os.sched_getaffinity(0)))


def shared_out(hosts: Sequence[str], cores: Sequence[frozenset[str]]) -> list[int]:
    """Divide every core among the ranks of its host that may use it; ranks bound to cores of their own keep them."""
    users = Counter((host, core) for host, own in zip(hosts, cores, strict=True) for core in own)
    return [
        max(1, int(sum(Fraction(1, users[host, core]) for core in own))) for host, own in zip(hosts, cores, strict=True)
    ]


def _core_of(cpu: int) -> str:
    """Return the hardware threads that share a core with this one; itself where Linux does not say."""
    try:
        return Path(_SIBLINGS.format(cpu)).read_text().strip()
    except OSError:
        return str(cpu)
