"""Ends the whole job when one rank fails: the others would wait for it in MPI forever."""

import contextlib
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType

from ppo.collectives import Collective
from ppo.settings import printable

_SECONDS_FOR_ROOT = 1.5


class AbortGuard:
    """A context in which any failure of this rank, or of one of its threads, ends the whole job and names the rank."""

    def __init__(self, collective: Collective) -> None:
        """Guard `collective`."""
        self._collective = collective
        self.where: Callable[[], str] = lambda: "at the start"
        """Returns what the rank is doing, for the message."""

    def __enter__(self) -> "AbortGuard":
        """Watch the helper threads too: Python would only print their exceptions."""
        threading.excepthook = lambda arguments: self._fail(arguments.exc_value)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Abort the job unless the block ended well."""
        if error is not None:
            self._fail(error)

    def _fail(self, error: BaseException | None) -> None:
        rank = f"rank {self._collective.rank} of {self._collective.size} on {socket.gethostname()}"
        if isinstance(error, KeyboardInterrupt):
            _complain(f"ppo: {rank} was interrupted {self.where()}; ending the job")
            self._collective.abort(130)
        # If all ranks fail, only rank 0 reports the error: it ends the others before they do.
        time.sleep(min(self._collective.rank, 1) * _SECONDS_FOR_ROOT)
        trace = "".join(traceback.format_exception(error)) if error is not None else ""
        _complain(f"{trace}ppo: {rank} failed {self.where()}: {error!r}; ending the job")
        code = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
        self._collective.abort(code or 1)


def _complain(text: str) -> None:
    """Print lines to stderr if possible: a failure to print must not keep the job from ending."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)
