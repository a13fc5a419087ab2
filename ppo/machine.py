"""One rank's part of a machine: its share of the host's cores, and its memory.

A core counts once, however many hardware threads it has: with `mpirun -np <cores>` every rank has one. Limits on which
cores may be used are taken into account, limits on processor time (`docker --cpus`) are not.
"""

import ctypes
import os
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from ppo.collectives import Collective, of_all_ranks

SEVERAL_CORES = 4
"""With fewer cores per rank, ranks of one core each are faster."""
# From glibc's malloc.h: allocations above this size get separate pages, which are returned to the kernel when freed.
_M_MMAP_THRESHOLD = -3
_LARGER_THAN_ANY_ACTIVATION, _MOST_OF_OLDER_GLIBC = 2**30, 2**25
# Free memory at the end of the heap is returned above this size.
_M_TRIM_THRESHOLD, _MOST = -1, 2**31 - 1
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def keep_freed_memory() -> bool:
    """Make this process keep the memory that it frees; return whether it does so for allocations of any size.

    Every gradient step allocates and frees the same tens of megabytes. Sometimes glibc returns them each time, and the
    kernel clears thousands of new pages in every gradient step: 182 ms instead of 147 for 256 samples of the Nature
    CNN. Other C libraries are left alone, and older versions of glibc keep allocations of up to 32 MB only.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Setting only the other threshold would keep glibc from raising this one by itself.
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
    return shared_out(hosts, of_all_ranks(comm, cores_here()))


def cores_here() -> frozenset[str]:
    """Return the names of the cores that this process may use."""
    if not hasattr(os, "sched_getaffinity"):
        return frozenset(map(str, range(os.cpu_count() or 1)))
    return frozenset(map(_core_of, os.sched_getaffinity(0)))


def cpus_here() -> int:
    """Return how many processors this process may use, counting each hardware thread."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared_out(hosts: Sequence[str], cores: Sequence[frozenset[str]]) -> list[int]:
    """Divide every core among the ranks of its host that may use it; ranks bound to separate cores keep them."""
    users = Counter((host, core) for host, own in zip(hosts, cores, strict=True) for core in own)
    return [
        max(1, int(sum(Fraction(1, users[host, core]) for core in own))) for host, own in zip(hosts, cores, strict=True)
    ]


def _core_of(cpu: int) -> str:
    """Return the list of hardware threads on the same core; this one alone if Linux does not tell."""
    try:
        return Path(_SIBLINGS.format(cpu)).read_text().strip()
    except OSError:
        return str(cpu)
