"""Stragglers: a rank that works longer than the others makes all of them wait in every all-reduce."""

import statistics
from collections.abc import Sequence

_SLOWER_BY = 1.5
_SECONDS_THAT_MATTER = 0.2
_UPDATES_IN_A_ROW = 3


def waiting_seconds(communicating_seconds: Sequence[float]) -> float:
    """Estimate how long ranks waited for others, a mean over ranks, from every rank's seconds in all-reduces.

    An all-reduce ends on all ranks at about the same time, so the time a rank spends in it beyond that of the last rank
    to arrive is waiting. Over a whole update, that last rank is taken to be the one with the fewest seconds: if ranks
    take turns arriving last, some waiting is still counted as communication.
    """
    return statistics.fmean(communicating_seconds) - min(communicating_seconds)


class StragglerWatch:
    """Reports a rank that is slower than the others for several updates, ever less often while it stays slow."""

    def __init__(self, hosts: Sequence[str]) -> None:
        """Watch a job whose ranks run on these hosts."""
        self._hosts = hosts
        self._rank: int | None = None
        self._updates = 0
        self._say_at = _UPDATES_IN_A_ROW

    def notice(self, busy_seconds: Sequence[float]) -> str | None:
        """Record every rank's seconds of work in one update, without waiting; return a warning when one is due."""
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
            f"WARNING: rank {slowest} on {self._hosts[slowest]} is slow and the others wait for it: "
            f"{busy_seconds[slowest]:.2f} s of work per update; the others' median is "
            f"{usual:.2f} s (ranks 0 to {min(len(busy_seconds), 16) - 1}: {times})"
        )
