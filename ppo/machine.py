"""The part of a machine that is one rank's own: its share of the cores of its host, and its memory.

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
"""With fewer of them to a rank, ranks of one core each are faster."""
# Of glibc's malloc.h: what is larger has pages of its own from the start, which are given back at once.
_M_MMAP_THRESHOLD = -3
_LARGER_THAN_ANY_ACTIVATION, _MOST_OF_OLDER_GLIBC = 2**30, 2**25
# And what is freed at the end of the heap is given back above this size.
_M_TRIM_THRESHOLD, _MOST = -1, 2**31 - 1
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; return whether it will, however large the pieces.

    A gradient takes and frees the same tens of megabytes again and again. Now and then glibc gives them back each time,
    and the kernel clears thousands of new pages in every gradient step: 182 ms instead of 147 for 256 samples of the
    Nature CNN. Other C libraries are left alone, and older glibc takes pieces of up to 32 MB only.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # The other setting alone would keep glibc from raising this one by itself.
    whole = bool(mallopt(_M_MMAP_THRESHOLD, _LARGER_THAN_ANY_ACTIVATION))
    if whole or mallopt(_M_MMAP_THRESHOLD, _MOST_OF_OLDER_GLIBC):
        mallopt(_M_TRIM_THRESHOLD, _MOST)
    return whole


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


def cpus_here() -> int:
    """Return how many processors this process may use, hardware threads counted one by one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
