"""The pages that look, each with what it has not been sent yet.

A page that reads slowly misses steps of the game, and the others do not wait for it. Browsers keep at most six
connections to a server, over all tabs, so there are few streams at once: a page too many takes the place of the first.
"""

import threading
from collections import deque
from collections.abc import Callable

MOST_LOOKERS = 4
_MOST_BEATS = 8
BEAT = "beat"
"""The kind of message of which several wait; of every other kind the newest replaces the one before."""


class Looker:
    """What waits to be sent to one page; it takes bounded memory."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._beats: deque[str] = deque(maxlen=_MOST_BEATS)
        self._newest: dict[str, str] = {}
        self._has_more = threading.Condition()
        self.is_replaced = False
        """Another page has taken the place of this one; there will be no more messages."""

    def put(self, kind: str, message: str) -> None:
        """Have a message sent, unless newer ones come too soon; never waits."""
        with self._has_more:
            if kind == BEAT:
                self._beats.append(message)
            else:
                self._newest[kind] = message
            self._has_more.notify()

    def replace(self) -> None:
        """Let another page have the place of this one."""
        with self._has_more:
            self.is_replaced = True
            self._has_more.notify()

    def take(self, seconds: float) -> list[tuple[str, str]]:
        """Wait for messages and return all there are, with their kinds; none if none came in so many seconds."""
        with self._has_more:
            self._has_more.wait_for(lambda: self._beats or self._newest or self.is_replaced, seconds)
            messages = [*self._newest.items(), *((BEAT, beat) for beat in self._beats)]
            self._newest.clear()
            self._beats.clear()
        return messages


class Lookers:
    """All pages that look."""

    def __init__(self, on_arrival: Callable[[], None]) -> None:
        """Begin with nobody; `on_arrival` is called by the thread that adds a page, when it has been added."""
        self._lookers: list[Looker] = []
        self._lock = threading.Lock()
        self._on_arrival = on_arrival

    def __len__(self) -> int:
        """Return how many look."""
        return len(self._lookers)

    def add(self) -> Looker:
        """Add a page; one too many replaces the first."""
        looker = Looker()
        with self._lock:
            self._lookers.append(looker)
            replaced = self._lookers.pop(0) if len(self._lookers) > MOST_LOOKERS else None
        if replaced:
            replaced.replace()
        self._on_arrival()
        return looker

    def remove(self, looker: Looker) -> None:
        """Forget a page that looks no more."""
        with self._lock:
            if looker in self._lookers:
                self._lookers.remove(looker)

    def send(self, kind: str, message: str) -> None:
        """Send a message to all."""
        with self._lock:
            for looker in self._lookers:
                looker.put(kind, message)
