"""What ends a run before its last step: signals, seen at the end of an update and agreed by all ranks.

| signal           | who sends it                                   | exit code after the save |
|------------------|------------------------------------------------|--------------------------|
| SIGINT           | Ctrl-C on `python -m ppo`                      | 130                      |
| SIGUSR2          | Ctrl-C on `scripts/train`, through mpirun      | 130                      |
| SIGUSR1, SIGTERM | a scheduler that preempts the job              | 75                       |

A signal handler only notes the request: saving happens in the loop, where all ranks are at the same update.
"""

import signal
from types import FrameType

INTERRUPTED = 130
PREEMPTED = 75

_EXIT_CODES = {
    signal.SIGINT: INTERRUPTED,
    signal.SIGUSR2: INTERRUPTED,
    signal.SIGUSR1: PREEMPTED,
    signal.SIGTERM: PREEMPTED,
}


class StopRequest:
    """Remembers that a signal asked this process to save and leave."""

    def __init__(self) -> None:
        """Start without a request."""
        self.exit_code = 0
        self.codes = (PREEMPTED, INTERRUPTED)
        """The exit codes a signal can ask for."""

    def listen(self) -> None:
        """Install the handlers; a second Ctrl-C falls through to Python's own."""
        for number in _EXIT_CODES:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = max(self.exit_code, _EXIT_CODES[signal.Signals(number)])
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
