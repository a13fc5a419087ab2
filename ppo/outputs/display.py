"""What a person sees during a run: a live table on a terminal, a plain line every few seconds elsewhere."""

import contextlib
import errno
import fcntl
import functools
import os
import struct
import sys
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, OverflowMethod
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from ppo.outputs.sparkline import Course
from ppo.outputs.trackers import FinishedEpisode, Metrics, OutputError, Tracker
from ppo.settings import printable
from ppo.standard_streams import encodable, say_on_standard_error

SECONDS_BETWEEN_LINES = 5.0
_COLUMNS = 60
# _COLUMNS less the longest label and the frame.
_COLUMNS_OF_VALUES = 40
# Space on a disk or quota may be freed; a closed pipe or terminal does not come back.
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EAGAIN)
NO_GAME = "no game finished yet"


@dataclass(frozen=True)
class Terminal:
    """A terminal's size in characters."""

    columns: int
    rows: int


def find_terminal() -> Terminal | None:
    """Return the terminal behind standard output, or None if standard output is a file or a pipe.

    mpirun gives every rank a pseudo-terminal of size 0x0, whatever its own output is; the output of mpirun itself, this
    process's parent, then decides.
    """
    try:
        if sys.stdout is None or not sys.stdout.isatty():
            return None
        size = _size(sys.stdout.fileno())
    except (OSError, ValueError):  # standard output is closed
        return None
    if size:
        return size
    try:
        parent_output = os.open(f"/proc/{os.getppid()}/fd/1", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _size(parent_output) if os.isatty(parent_output) else None
    finally:
        os.close(parent_output)


def make_display(title: str, total_steps: int) -> Tracker:
    """Return a live table if standard output is a terminal, otherwise plain lines."""
    terminal = find_terminal()
    return LiveTable(title, total_steps, terminal) if terminal else PlainLines(total_steps)


def print_line(text: str) -> None:
    """Print and flush a line, on standard error if standard output is gone: a lost reader must not end the work."""
    try:
        StandardOutput().use(lambda: print(printable(text), flush=True))
    except OutputError:
        say_on_standard_error(text)


class StandardOutput:
    """Standard output, which may be closed, a pipe that nobody reads any more, or a file on a full disk."""

    def __init__(self) -> None:
        """Start without known trouble."""
        self._trouble: str | None = None
        self._is_lost = False

    def use(self, write: Callable[[], object]) -> None:
        """Call `write`, which prints and flushes.

        Raises:
            OutputError: the call failed, or standard output was lost before.
        """
        if self._is_lost:
            self.check()
        try:
            if sys.stdout is None:
                raise ValueError("it is closed")
            write()
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
            self._is_lost = not isinstance(error, OSError) or error.errno not in _PASSING
            if self._is_lost:
                _discard_standard_output()
            self._trouble = reason
        else:
            self._trouble = None
        self.check()

    def check(self) -> None:
        """Raise an OutputError if the last use failed."""
        if self._trouble:
            raise OutputError(
                f"cannot write to standard output ({self._trouble}); the run continues and messages are printed here",
                relief="standard output can be written to again",
            )

    def close(self) -> None:
        """Discard what could not be written: Python would retry at exit and change the exit code."""
        if self._trouble:
            self._is_lost = True
            _discard_standard_output()


class PlainLines:
    """One line every few seconds, for logs and pipes."""

    def __init__(self, total_steps: int) -> None:
        """Print progress towards `total_steps`."""
        self.notes: list[str] = []
        self._total_steps = total_steps
        self._last = 0.0
        self._output = StandardOutput()

    def log(self, metrics: Metrics, episodes: Sequence[FinishedEpisode]) -> None:
        """Print a line, unless one was printed recently and there was no evaluation."""
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES and not describe_evaluation(metrics):
            self._output.check()
            return
        self._last = now
        line = summary_line(metrics, self._total_steps)
        self._output.use(lambda: print(line, flush=True))

    def say(self, text: str) -> None:
        """Print an event."""
        self._output.use(lambda: print(text, flush=True))

    def sync(self) -> None:
        """Do nothing: a display has nothing to flush to disk."""

    def close(self) -> None:
        """Discard unwritten output if standard output failed."""
        self._output.close()


class LiveTable:
    """A table redrawn in place after every update, and started anew when the terminal's size changes."""

    def __init__(self, title: str, total_steps: int, terminal: Terminal) -> None:
        """Start drawing on a terminal of this size."""
        self.notes: list[str] = []
        self._total_steps = total_steps
        self._evaluation: tuple[str, str] | None = None
        self._course = Course(_COLUMNS_OF_VALUES)
        self._output = StandardOutput()
        self._live = self._begin(terminal)
        # Escaped here because an escape is wider than the character that the table would measure.
        self._escape = functools.partial(encodable, encoding=self._live.console.encoding)
        self._title, self._is_plain = self._escape(title), self._live.console.options.ascii_only

    def log(self, metrics: Metrics, episodes: Sequence[FinishedEpisode]) -> None:
        """Redraw the table."""
        score = describe_score(metrics)
        if score:
            when = f"{metrics['env_steps']:,} steps, in {metrics['time/evaluation']:.1f} s"
            self._evaluation = self._escape(score), when
        mean = metrics["rollout/return_mean"]
        if mean is not None:
            self._course.add(mean)
        course = self._course.line(is_plain=self._is_plain)
        terminal = find_terminal() or self._terminal
        shown = (self._title, metrics, self._total_steps, self._evaluation, course)
        table = live_table(*shown, columns=terminal.columns, is_plain=self._is_plain)
        if terminal != self._terminal:
            # A terminal that became narrower has wrapped lines of the table, which then cannot all be erased.
            self._output.use(lambda: self._live.update("", refresh=True))
            self._live = self._begin(terminal)
        self._output.use(lambda: self._live.update(table, refresh=True))

    def say(self, text: str) -> None:
        """Print an event above the table."""
        self._output.use(lambda: self._live.console.print(text, markup=False, highlight=False))

    def sync(self) -> None:
        """Do nothing: a display has nothing to flush to disk."""

    def close(self) -> None:
        """Leave the last table on the screen."""
        with contextlib.suppress(OutputError):
            self._output.use(self._live.stop)
        self._output.close()

    def _begin(self, terminal: Terminal) -> Live:
        """Return an empty display for a terminal of this size, to replace the previous one."""
        self._terminal = terminal
        console = _Console(
            force_terminal=True, width=terminal.columns, height=terminal.rows, legacy_windows=False, soft_wrap=False
        )
        live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        with contextlib.suppress(OutputError):  # the first update reports it
            self._output.use(live.start)
            # An aborted job has no time to show a hidden cursor again.
            self._output.use(lambda: console.show_cursor(True))
        return live


class _Console(Console):
    """A console that leaves broken pipes to its caller; rich would end the process."""

    def on_broken_pipe(self) -> None:
        """Re-raise the BrokenPipeError being handled."""
        raise


def summary_line(metrics: Metrics, total_steps: int) -> str:
    """Return one line of text about an update."""
    steps = metrics["env_steps"] or 0
    done = min(1.0, steps / total_steps)
    evaluation = describe_evaluation(metrics)
    return (
        f"{steps:>11,} steps {done:6.1%}  {metrics['time/steps_per_second'] or 0:>7,.0f} steps/s  "
        f"{time_left(metrics, total_steps)} left  return {describe_return(metrics)}  "
        f"entropy {_number(metrics.get('update/entropy'), '.3f')}  "
        f"value loss {_number(metrics.get('update/value_loss'), '.4f')}  "
        f"KL {_number(metrics['update/approx_kl'], '.4f')}" + (f"  evaluation {evaluation}" if evaluation else "")
    )


def live_table(
    title: str,
    metrics: Metrics,
    total_steps: int,
    evaluation: tuple[str, str] | None = None,
    course: str = "",
    *,
    columns: int = _COLUMNS,
    is_plain: bool = False,
) -> Table:
    """Return the table of the live display; everything fits in 60 columns.

    Args:
        title: text above the table.
        metrics: metrics of the newest update.
        total_steps: the setting `env_steps`.
        evaluation: score and time of the last evaluation, in words.
        course: history of the return as a line of bars.
        columns: width of the terminal.
        is_plain: add no non-ASCII characters: text that does not fit is cut off without an ellipsis.
    """
    steps = metrics["env_steps"] or 0
    table = Table(title=title, show_header=False, title_justify="left", width=min(columns, _COLUMNS))
    overflow: OverflowMethod = "crop" if is_plain else "ellipsis"
    table.add_column(style="bold", no_wrap=True, overflow=overflow, min_width=len("learning rate"))
    table.add_column(no_wrap=True, overflow=overflow, ratio=1)
    table.add_row("progress", ProgressBar(total=total_steps, completed=min(steps, total_steps)))
    table.add_row("steps", f"{steps:,} of {total_steps:,} ({steps / total_steps:.1%})")
    table.add_row("time left", time_left(metrics, total_steps))
    table.add_row("speed", f"{metrics['time/steps_per_second'] or 0:,.0f} steps per second")
    games, mean = int(metrics["rollout/episodes"] or 0), metrics["rollout/return_mean"]
    table.add_row("return", NO_GAME if mean is None else f"{mean:.2f} (mean of the last {min(games, 100)} games)")
    if course:
        table.add_row("its course", course)
    table.add_row("games", f"{games:,}")
    if evaluation:
        score, when = evaluation
        table.add_row("evaluation", score)
        table.add_row("evaluated at", when)
    for label, name in (
        ("policy loss", "update/policy_loss"),
        ("value loss", "update/value_loss"),
        ("entropy", "update/entropy"),
        ("KL", "update/approx_kl"),
        ("learning rate", "update/learning_rate"),
    ):
        table.add_row(label, _number(metrics.get(name), ".3g"))
    return table


def describe_return(metrics: Metrics) -> str:
    """Return the mean return in words, or NO_GAME before the first game ends."""
    mean = metrics["rollout/return_mean"]
    if mean is None:
        return NO_GAME
    games = int(metrics["rollout/episodes"] or 0)
    return f"{mean:.2f} (mean of the last {min(games, 100)} of {games} games)"


def describe_evaluation(metrics: Metrics) -> str:
    """Return the score and duration of an update's evaluation in words; empty if there was none."""
    score = describe_score(metrics)
    return f"{score} in {metrics['time/evaluation']:.1f} s" if score else ""


def describe_score(metrics: Metrics) -> str:
    """Return the score of an update's evaluation in words; empty if there was none."""
    mean, error = metrics.get("evaluation/return_mean"), metrics.get("evaluation/return_stderr")
    if mean is None:
        return ""
    if error is None:
        return f"{mean:.2f} over 1 game"
    return f"{mean:.2f} ± {error:.2f} over {metrics['evaluation/episodes']} games"


def _number(value: float | None, form: str) -> str:
    """Format a metric of an update, or a dash if nothing was learnt or the loss has no such term."""
    return "-" if value is None else format(value, form)


def time_left(metrics: Metrics, total_steps: int) -> str:
    """Return the time remaining at the current speed as h:mm:ss."""
    speed = metrics["time/steps_per_second"] or 0.0
    if speed <= 0.0:
        return "-:--:--"
    seconds = int(max(0, total_steps - (metrics["env_steps"] or 0)) / speed)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _discard_standard_output() -> None:
    """Discard what is left in standard output's buffer and whatever other code still prints."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            if sys.stdout is not None:
                os.dup2(nowhere, sys.stdout.fileno())
        finally:
            os.close(nowhere)


def _size(descriptor: int) -> Terminal | None:
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(descriptor, termios.TIOCGWINSZ, b"\0" * 8))
    except OSError:
        return None
    return Terminal(columns, rows) if columns and rows else None
