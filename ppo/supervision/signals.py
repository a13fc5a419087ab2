"""Requests to stop: signals, acted on at the end of an update and agreed on by all ranks.

| signal           | who sends it                                   | exit code after the save |
|------------------|------------------------------------------------|--------------------------|
| SIGINT           | Ctrl-C on `python -m ppo`                      | 130                      |
| SIGUSR1, SIGTERM | a scheduler that preempts the job              | 75                       |
| SIGHUP           | a terminal that closes                         | 75                       |
| SIGUSR2          | `scripts/train` on Ctrl-C, through mpirun      | 0                        |

A signal handler only notes the request: saving happens in the loop, where all ranks are at the same update. mpirun
passes SIGUSR1 and SIGUSR2 on to its ranks; on SIGINT, SIGTERM or SIGHUP it ends them within half a second, too soon for
a save. A signal that this process was started to ignore (`nohup`) stays ignored.
"""

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any

INTERRUPTED = 130
PREEMPTED = 75
AS_ASKED = 0

_EXIT_CODES = {
    signal.SIGINT: INTERRUPTED,
    signal.SIGUSR1: PREEMPTED,
    signal.SIGTERM: PREEMPTED,
    signal.SIGHUP: PREEMPTED,
    signal.SIGUSR2: AS_ASKED,
}


def listen(numbers: Iterable[int], handler: Callable[[int, FrameType | None], Any]) -> dict[int, Any]:
    """Install a handler for the signals that are not ignored; return the previous handlers, by signal.

    The parent may have had some ignored: `nohup` ignores SIGHUP, and shells start background jobs ignoring SIGINT.
    """
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in heard}


class StopRequest:
    """Remembers a signal's request to save and leave."""

    def __init__(self) -> None:
        """Start without a request."""
        self.exit_code: int | None = None
        self.codes = (AS_ASKED, PREEMPTED, INTERRUPTED)
        """The exit codes that signals can request; if several are requested, the last in this order counts."""
        self._saving = False
        self._interrupts = 0

    def listen(self) -> None:
        """Install the handlers."""
        listen(_EXIT_CODES, self._note)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Protect writing a checkpoint or restoring a terminal: until the block ends, signals are only noted."""
        before, self._saving = self._saving, True
        try:
            yield
        finally:
            self._saving = before

    def _note(self, number: int, frame: FrameType | None) -> None:
        asked = _EXIT_CODES[signal.Signals(number)]
        self.exit_code = asked if self.exit_code is None else max(self.exit_code, asked)
        if number == signal.SIGINT:
            self._interrupts += 1
            # After a second Ctrl-C the user does not want to wait for the end of the update.
            if self._interrupts > 1 and not self._saving:
                raise KeyboardInterrupt
