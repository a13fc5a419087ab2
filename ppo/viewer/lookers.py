"""The open pages, each with the messages it has not been sent yet.

A page that reads slowly misses steps of the game; the others do not wait for it. Browsers keep at most six connections
to a server, over all tabs, so the number of streams is limited: one page too many replaces the oldest.
"""

import threading
from collections import deque
from collections.abc import Callable

MOST_LOOKERS = 4
_MOST_BEATS = 8
BEAT = "beat"
"""The kind of message that queues; of every other kind, only the newest is kept."""


class Looker:
    """The messages waiting for one page, in bounded memory."""

    def __init__(self) -> None:
        """Begin without messages."""
        self._beats: deque[str] = deque(maxlen=_MOST_BEATS)
        self._newest: dict[str, str] = {}
        self._has_more = threading.Condition()
        self.is_replaced = False
        """Another page has replaced this one; no more messages follow."""

    def put(self, kind: str, message: str) -> None:
        """Queue a message, which newer ones may displace; never block."""
        with self._has_more:
            if kind == BEAT:
                self._beats.append(message)
            else:
                self._newest[kind] = message
            self._has_more.notify()

    def replace(self) -> None:
        """Mark this page as replaced by another one."""
        with self._has_more:
            self.is_replaced = True
            self._has_more.notify()

    def take(self, seconds: float) -> list[tuple[str, str]]:
        """Wait up to `seconds` for messages and return all there are, with their kinds."""
        with self._has_more:
            self._has_more.wait_for(lambda: self._beats or self._newest or self.is_replaced, seconds)
            messages = [*self._newest.items(), *((BEAT, beat) for beat in self._beats)]
            self._newest.clear()
            self._beats.clear()
        return messages


class Lookers:
    """All open pages."""

    def __init__(self, on_arrival: Callable[[], None]) -> None:
        """Begin without pages; `on_arrival` is called after a page is added, by the thread that adds it."""
        self._lookers: list[Looker] = []
        self._lock = threading.Lock()
        self._on_arrival = on_arrival

    def __len__(self) -> int:
        """Return the number of open pages."""
        return len(self._lookers)

    def add(self) -> Looker:
        """Add a page; one too many replaces the oldest."""
        looker = Looker()
        with self._lock:
            self._lookers.append(looker)
            replaced = self._lookers.pop(0) if len(self._lookers) > MOST_LOOKERS else None
        if replaced:
            replaced.replace()
        self._on_arrival()
        return looker

    def remove(self, looker: Looker) -> None:
        """Remove a page that has closed."""
        with self._lock:
            if looker in self._lookers:
                self._lookers.remove(looker)

    def send(self, kind: str, message: str) -> None:
        """Send a message to all pages."""
        with self._lock:
            for looker in self._lookers:
                looker.put(kind, message)
