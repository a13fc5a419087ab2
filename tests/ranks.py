"""Ranks as threads of this process, whose collectives need no launcher."""

import threading
from concurrent.futures import ThreadPoolExecutor

from ppo.collectives import Alone, Hosts


class _Meeting:
    def __init__(self, size):
        self.barrier = threading.Barrier(size, timeout=30.0)
        self.parts = [None] * size


class Thread(Alone):
    """One of several ranks of a host that can sum, gather, broadcast and wait for each other."""

    def __init__(self, rank, size, meeting):
        self.rank, self.size, self._meeting = rank, size, meeting

    def sum_in_place(self, buffer):
        buffer[...] = sum(self._parts(buffer.copy()))

    def gather(self, value):
        parts = self._parts(value)
        return parts if self.rank == 0 else None

    def broadcast(self, value):
        return self._parts(value)[0]

    def split_by_host(self):
        return Hosts(1, self, self if self.rank == 0 else None)

    def barrier(self):
        self._meeting.barrier.wait()

    def _parts(self, own):
        """Return every rank's contribution, in rank order."""
        self._meeting.parts[self.rank] = own
        self.barrier()
        parts = list(self._meeting.parts)
        self.barrier()
        return parts


def on_ranks(size, work):
    """Call `work(comm)` on every rank at once and return the results, or raise what the first rank to fail raised."""
    meeting = _Meeting(size)
    failures = []

    def run(comm):
        try:
            return work(comm)
        except BaseException as failure:
            failures.append(failure)
            meeting.barrier.abort()  # the others would wait for this rank
            raise

    with ThreadPoolExecutor(size) as threads:
        results = [threads.submit(run, Thread(rank, size, meeting)) for rank in range(size)]
    if failures:
        raise failures[0]
    return [result.result() for result in results]
