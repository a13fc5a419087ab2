"""A game in a terminal: its picture in half blocks, a panel about the agent, and keys for pause and speed.

The terminal is restored however the program ends, except by kill -9 or a crash in native code: after Ctrl-C, SIGTERM,
SIGHUP, SIGQUIT and errors. It is also released while Ctrl-Z suspends the program. Its size is read before every picture
and, while the game is paused, every twentieth of a second.
"""

import contextlib
import functools
import os
import select
import signal
import sys
import termios
import textwrap
import time
from collections import deque
from collections.abc import Sequence
from types import FrameType

import numpy as np
from numpy.typing import NDArray

from ppo.models.decisions import Decision
from ppo.models.distributions.base import Marginal
from ppo.outputs.cells import Cells, Colour, fitted
from ppo.outputs.display import Terminal, find_terminal
from ppo.outputs.overlay import in_short
from ppo.outputs.window import Pace, WindowClosedError
from ppo.settings import Refusal
from ppo.supervision.signals import StopRequest, listen

MOST_PICTURES_PER_SECOND = 30.0
MOST_BYTES_PER_SECOND = 25_000.0
"""0.2 Mbit/s on average: the more successive pictures differ, the fewer are shown."""
_BACKGROUND, _FAINT, _TEXT = (16, 16, 24), (48, 56, 64), (224, 224, 232)
_FAINT_TEXT = (144, 152, 160)
_SAID, _CHOSEN = (88, 152, 232), (248, 160, 56)
_LEAST_PANEL, _WIDEST_PANEL = 28, 46
_LEAST_COLUMNS = 60
"""Minimum width of a terminal with a panel; a narrower one shows the picture and one line."""
_LABEL = 12
_GAP = 2
_MOST_WARNING_ROWS = 3
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"
# The first of these ends a synchronised update that was cut off.
_LEAVE = "\x1b[?2026l\x1b[0m\x1b[?25h\x1b[?1049l"

Picture = NDArray[np.uint8]


class TerminalView:
    """A context manager that shows games on standard output's terminal."""

    def __init__(
        self,
        title: str,
        frames_per_second: float,
        action_names: Sequence[str] = (),
        entry_names: Sequence[str] = (),
        stop: StopRequest | None = None,
    ) -> None:
        """Prepare to show games; entering the context takes over the terminal.

        Args:
            title: heading of the panel.
            frames_per_second: rate of the incoming frames.
            action_names: names of an action's categories or dimensions.
            entry_names: names of a vector observation's entries.
            stop: closes the view like a key once it has an exit code.

        Raises:
            Refusal: standard output is not a terminal, or not one that shows half blocks.
        """
        if find_terminal() is None or os.environ.get("TERM", "dumb") == "dumb":
            raise Refusal("view must be auto or window where standard output is no terminal, got terminal")
        if sys.stdout.encoding.lower().replace("-", "") != "utf8":
            raise Refusal(
                f"view must be auto or window where the terminal's encoding is {sys.stdout.encoding}; try UTF-8"
            )
        self._names, self._entries = action_names, entry_names
        self.title = title
        """Heading of the panel; may be changed."""
        # Frames merged into one picture.
        self._every = max(1, int(np.ceil(frames_per_second / MOST_PICTURES_PER_SECOND)))
        self._pace = Pace(frames_per_second / self._every, MOST_PICTURES_PER_SECOND)
        self._frames: list[Picture] = []
        self._values: deque[float] = deque(maxlen=_WIDEST_PANEL)
        self._note = self._warning = ""
        self._stop = stop or StopRequest()
        self._output = sys.stdout.fileno()
        self._input = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._cells: Cells | None = None
        self._size = Terminal(0, 0)
        self._newest: Decision | None = None
        # What the panel shows; None if it is out of date.
        self._drawn: Decision | None = None
        self._free_bytes, self._counted = 0.0, time.monotonic()
        self.num_pictures = self.num_bytes = 0

    def __enter__(self) -> "TerminalView":
        """Take over the terminal."""
        if self._input is not None:
            self._settings = termios.tcgetattr(self._input)
        self._before = listen((signal.SIGTSTP, signal.SIGQUIT), self._act_by_default)
        self._before |= listen((signal.SIGCONT,), self._take)
        self._take()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Restore the terminal."""
        # First the handlers: one that took the terminal again would leave it so.
        with self._stop.saving():
            for number, handler in self._before.items():
                signal.signal(number, handler)
            self._give_back()

    def hold(self, frame: Picture) -> None:
        """Buffer an RGB frame (H, W, 3) of the current step; frames of another size are dropped."""
        if self._frames and self._frames[-1].shape != frame.shape:
            self._frames.clear()
        self._frames.append(frame)

    def say(self, text: str) -> None:
        """Show a line of text until the next one."""
        if text != self._note:
            self._note, self._drawn = text, None

    def warn(self, text: str) -> None:
        """Show a warning of up to three rows until the next one; an empty text shows none."""
        if text != self._warning:
            # It takes rows from the picture, so everything is drawn anew.
            self._warning, self._cells = text, None

    def end_step(self, decision: Decision) -> None:
        """Show the frames of a step, each when it is due.

        Raises:
            WindowClosedError: the user pressed a key to leave, a stop is requested, or the terminal is gone.
        """
        if decision is not self._newest:  # an agent that cannot be played has no newer one
            self._newest = decision
            if decision.episode_length == 1:
                self._values.clear()
            self._values.append(decision.value)
        while len(self._frames) >= self._every:
            frames = self._frames[: self._every]
            del self._frames[: self._every]
            if self._pace.wait(functools.partial(self._look, frames, decision)) and self._has_free_bytes():
                self._show(frames, decision)

    def _look(self, frames: list[Picture], decision: Decision) -> None:
        """Handle pressed keys; while paused, draw the newest picture if the screen is out of date."""
        self._obey_keys()
        if self._pace.is_paused and (self._drawn is None or self._cells is None or find_terminal() != self._size):
            self._show(frames, decision)

    def _has_free_bytes(self) -> bool:
        before, self._counted = self._counted, time.monotonic()
        freed = (self._counted - before) * MOST_BYTES_PER_SECOND
        self._free_bytes = min(self._free_bytes + freed, MOST_BYTES_PER_SECOND)
        return self._free_bytes > 0.0 or self._cells is None or find_terminal() != self._size

    def _show(self, frames: list[Picture], decision: Decision) -> None:
        size, cells = find_terminal() or self._size, self._cells
        is_whole = cells is None or size != self._size
        if cells is None or is_whole:
            self._size, cells = size, Cells(size.rows, size.columns, _BACKGROUND)
            self._cells, self._drawn = cells, None
        self._draw(cells, frames, decision)
        try:
            num_bytes = self._write(cells.changes())
        except OSError as error:
            raise WindowClosedError from error
        self.num_pictures += 1
        # A full redraw is rare and does not count against the limit.
        self._free_bytes = MOST_BYTES_PER_SECOND if is_whole else self._free_bytes - num_bytes

    def _draw(self, cells: Cells, frames: list[Picture], decision: Decision) -> None:
        """Draw the game's picture and, if there is room, a panel beside it."""
        last = cells.rows - 1
        warning = textwrap.wrap(self._warning[: _MOST_WARNING_ROWS * cells.columns], cells.columns)[:_MOST_WARNING_ROWS]
        room = max(1, last - len(warning))
        said = f"return {in_short(decision.episode_return)}  step {decision.episode_length:,}"
        has_panel = cells.columns >= _LEAST_COLUMNS
        width = min(_WIDEST_PANEL, max(_LEAST_PANEL, cells.columns * 2 // 5)) if has_panel else 0
        pixels = fitted(frames, room, cells.columns - width - _GAP * has_panel)
        cells.picture(0, 0, pixels)
        if decision is self._drawn:
            return
        self._drawn = decision
        for row, text in enumerate(warning, start=room):
            cells.write(row, 0, text, _TEXT)
        cells.clear(last, 0, 1, cells.columns)
        pace = f"{self._pace.describe():<7}"
        if not has_panel:
            cells.write(last, 0, f"{pace}{said}  value {decision.value:.2f}", _TEXT)
            return
        cells.write(last, 0, pace + (self._note or "q: quit  space: pause  + -: speed"), _FAINT_TEXT)
        left = pixels.shape[1] + _GAP
        width = min(_WIDEST_PANEL, cells.columns - left)
        cells.clear(0, left, room, width)
        cells.write(0, left, self.title[:width], _CHOSEN)
        cells.write(1, left, said, _TEXT)
        cells.write(2, left, f"value {decision.value:.2f}", _TEXT)
        values = np.array(self._values)[-(width - _LABEL - 2) :]
        heights = (values - values.min()) / max(float(values.max() - values.min()), 1e-6)
        cells.curve(2, left + _LABEL + 2, heights, _SAID, _BACKGROUND)
        taken = _draw_marginals(cells, 4, left, width, room - 4, decision, self._names)
        _draw_observation(cells, 5 + taken, left, width, room - 5 - taken, decision, self._entries)

    def _obey_keys(self) -> None:
        if self._stop.exit_code is not None:
            raise WindowClosedError
        if self._input is None or not select.select([self._input], [], [], 0)[0]:
            return
        try:
            pressed = os.read(self._input, 64)
        except OSError as error:
            raise WindowClosedError from error
        if pressed in (b"", b"\x1b") or b"q" in pressed.lower():
            raise WindowClosedError
        self._drawn = None
        for key in pressed.decode(errors="replace"):
            self._pace.press({" ": "pause", "+": "faster", "=": "faster", "-": "slower"}.get(key, ""))

    def _take(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Take over the terminal, at the start or when a signal continues the program."""
        self._cells = None
        with contextlib.suppress(OSError, termios.error):  # the terminal may be gone; the next picture notices it
            if self._input is not None:
                quiet = termios.tcgetattr(self._input)
                quiet[3] &= ~(termios.ECHO | termios.ICANON)
                termios.tcsetattr(self._input, termios.TCSANOW, quiet)
            self._write(_ENTER)

    def _give_back(self) -> None:
        # A second Ctrl-C must not cut this short.
        with self._stop.saving(), contextlib.suppress(OSError, termios.error):  # the terminal may be gone
            if self._input is not None:
                termios.tcsetattr(self._input, termios.TCSANOW, self._settings)
            self._write(_LEAVE)

    def _act_by_default(self, number: int, frame: FrameType | None) -> None:
        """Let a signal suspend or end the program, with the terminal restored; take it over again when continued."""
        self._give_back()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._act_by_default)
        self._take()  # SIGCONT has done so, unless a process group without a shell ignored Ctrl-Z

    def _write(self, text: str) -> int:
        """Write a text; return its number of bytes."""
        content = memoryview(text.encode())
        num_bytes = len(content)
        self.num_bytes += num_bytes
        while content:
            content = content[os.write(self._output, content) :]
        return num_bytes


def _draw_marginals(
    cells: Cells, top: int, left: int, width: int, room: int, decision: Decision, names: Sequence[str]
) -> int:
    """Draw the action's distribution, one row per category or dimension; return the number of rows used."""
    pairs = list(zip(decision.marginals, decision.sent.tolist(), strict=False))
    row = 0
    for dimension, (marginal, sent) in enumerate(pairs):
        if row >= room:
            break
        if marginal.range is not None:
            name = names[dimension] if len(names) == len(pairs) else f"action {dimension}"
            _density(cells, top + row, left, width, marginal, sent, name)
            row += 1
            continue
        has_names = len(pairs) == 1 and len(names) == len(marginal.values)
        for number, share in enumerate(marginal.values.tolist()[: room - row]):
            name = names[number] if has_names else f"{dimension}: {number}" if len(pairs) > 1 else f"action {number}"
            colour = _CHOSEN if number == round(sent) - marginal.start else _SAID
            _category(cells, top + row, left, width, name, share, colour)
            row += 1
    return row


def _category(cells: Cells, row: int, left: int, width: int, name: str, share: float, colour: Colour) -> None:
    cells.write(row, left, name[:_LABEL], colour if colour == _CHOSEN else _TEXT)
    bar = width - _LABEL - 7
    cells.bar(row, left + _LABEL + 1, bar, share, colour, _FAINT)
    cells.write(row, left + width - 5, f"{100.0 * share:3.0f} %", _TEXT)


def _density(cells: Cells, row: int, left: int, width: int, own: Marginal, sent: float, name: str) -> None:
    assert own.range is not None
    low, high = own.range
    cells.write(row, left, name[:_LABEL], _TEXT)
    bar = width - _LABEL - 8
    parts = np.array([part.mean() for part in np.array_split(own.values, bar)])
    heights = parts / max(float(parts.max()), 1e-9)
    cells.curve(row, left + _LABEL + 1, heights, _SAID, _FAINT)
    place = int(min(1.0, max(0.0, (sent - low) / max(high - low, 1e-9))) * (bar - 1))
    cells.curve(row, left + _LABEL + 1 + place, np.array([max(0.3, heights[place])]), _CHOSEN, _FAINT)
    cells.write(row, left + width - 6, f"{sent:6.2f}"[:6], _CHOSEN)


def _draw_observation(
    cells: Cells, top: int, left: int, width: int, room: int, decision: Decision, names: Sequence[str]
) -> None:
    """Draw the network's observation: the newest image of a stack, or the entries of a vector."""
    seen = decision.observation
    if room < 3:
        return
    if seen.ndim == 3:
        cells.write(top, left, "the network sees", _TEXT)
        newest = seen[-decision.channels_per_picture :].transpose(1, 2, 0)
        colours = np.broadcast_to(newest, (*newest.shape[:2], 3))
        cells.picture(top + 1, left, fitted([colours], room - 1, min(width, 2 * (room - 1))))
        return
    cells.write(top, left, "the network sees", _TEXT)
    for place, number in enumerate(seen.tolist()[: room - 1]):
        name = names[place] if len(names) == len(seen) else f"entry {place}"
        cells.write(top + 1 + place, left, f"{name[: width - 10]:<{width - 10}} {number:8.3f}", _FAINT_TEXT)
