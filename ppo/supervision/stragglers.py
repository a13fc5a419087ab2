"""Stragglers: a rank that works longer than the others makes all of them wait in every all-reduce."""

import statistics
from collections.abc import Sequence

_SLOWER_BY = 1.5
_SECONDS_THAT_MATTER = 0.2
_UPDATES_IN_A_ROW = 3


def waiting_seconds(communicating_seconds: Sequence[float]) -> float:
    """Estimate how long a rank waited for others, a mean over ranks, from every rank's seconds in all-reduces.

    An all-reduce ends for all ranks at about the same time, so what a rank spends in it beyond the rank that came last
    is waiting. Over a whole update that rank is taken to be the one with the fewest seconds: where the ranks come last
    by turns, some of the waiting is still counted as communication.
    """
    return statistics.fmean(communicating_seconds) - min(communicating_seconds)


class StragglerWatch:
    """Says when a rank has been slower than the others for some updates; less and less often while it stays so."""

    def __init__(self, hosts: Sequence[str]) -> None:
        """Watch a job whose ranks run on these hosts."""
        self._hosts = hosts
        self._rank: int | None = None
        self._updates = 0
        self._say_at = _UPDATES_IN_A_ROW

    def notice(self, busy_seconds: Sequence[float]) -> str | None:
        """Take note of every rank's own work in one update, waiting excluded; return a warning when one is due."""
        slowest = max(range(len(busy_seconds)), key=lambda rank: busy_seconds[rank])
        others = [seconds for rank, seconds in enumerate(busy_seconds) if rank != slowest]
        usual = statistics.median(others or busy_seconds)
        if busy_seconds[slowest] < max(_SLOWER_BY * usual, usual + _SECONDS_THAT_MATTER):
            self._rank, self._updates, self._say_at = None, 0, _UPDATES_IN_A_ROW
            return None
        if slowest != self._rank:
            self._rank, self._updates, self._say_at = slowest, 0, _UPDATES_IN_A_ROW
        self._updates += 1
        if self._updates < self._say_at:
            return None
        self._say_at *= 10
        times = ", ".join(f"{seconds:.2f}" for seconds in busy_seconds[:16])
        return (
            f"WARNING: rank {slowest} on {self._hosts[slowest]} is slow and all others wait for it: "
            f"{busy_seconds[slowest]:.2f} s of work an update, the median of the others is "
            f"{usual:.2f} s (ranks 0 to {min(len(busy_seconds), 16) - 1}: {times})"
        )
