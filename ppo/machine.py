"""The part of a machine that is one rank's own: its share of the cores of its host.

A core counts once, however many hardware threads it has: with `mpirun -np <cores>` every rank has one. Limits on which
cores may be used are seen, limits on processor time (`docker --cpus`) are not.
"""

import os
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from ppo.collectives import Collective

SEVERAL_CORES = 4
"""With fewer of them to a rank, giving exact resume up for emulator threads has not been seen to buy anything."""
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


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
