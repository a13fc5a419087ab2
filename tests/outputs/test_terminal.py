"""Games on a terminal: what is shown at any size, which keys are obeyed, and that the terminal is whole again."""

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ppo.collectives import Alone
from ppo.command_line import explicit_settings, parse_command_line
from ppo.models.decisions import Decision
from ppo.models.distributions import Marginal
from ppo.outputs import terminal, window
from ppo.outputs.terminal import TerminalView
from ppo.outputs.window import Pace, WindowClosedError
from ppo.settings import Refusal
from ppo.viewer.watch import watch
from tests.jobs import CARTPOLE, environment, ppo
from tests.outputs.test_cells import Screen

_MARK = b"\x00"
ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"


class Terminal:
    """A pseudo-terminal that stands for this process's standard input and output."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: int = 24, columns: int = 80) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(rows, columns)
        monkeypatch.setattr(sys, "stdout", open(self.slave, "w", encoding="utf-8", closefd=False))
        monkeypatch.setattr(sys, "stdin", open(self.slave, closefd=False))
        monkeypatch.setenv("TERM", "xterm-256color")
        self._read = bytearray()
        # It has room for a few thousand bytes; who writes more waits for a reader.
        threading.Thread(target=self._read_on, daemon=True).start()

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.rows, self.columns = rows, columns

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)
        assert select.select([self.slave], [], [], 5.0)[0]

    def read(self) -> bytes:
        """Return what was written since the last call."""
        os.write(self.slave, _MARK)
        deadline = time.monotonic() + 5.0
        while not self._read.endswith(_MARK) and time.monotonic() < deadline:
            time.sleep(0.001)
        read = bytes(self._read).removesuffix(_MARK)
        self._read.clear()
        return read

    def close(self) -> None:
        os.close(self.slave)

    def _read_on(self) -> None:
        with contextlib.suppress(OSError):
            while part := os.read(self.master, 1 << 16):
                self._read += part
        os.close(self.master)

    def shown(self) -> list[str]:
        """Return the rows of what was written last, which must be a whole screen."""
        screen = Screen(self.rows, self.columns)
        text = self.read().decode()
        screen.obey(text[text.rindex("\x1b[?2026h") :])
        return ["".join(character for character, _, _ in row).rstrip() for row in screen.cells]


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show every picture at once."""
    monkeypatch.setattr(Pace, "wait", lambda self, keys: (keys(), True)[1])


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, fast: None) -> Iterator[Callable[..., Terminal]]:
    made: list[Terminal] = []

    def make(*size: int) -> Terminal:
        made.append(Terminal(monkeypatch, *size))
        return made[-1]

    yield make
    for there in made:
        there.close()


def decision(length: int = 3, **changes: Any) -> Decision:
    given: dict[str, Any] = {
        "observation": np.full((4, 84, 84), 128, np.uint8),
        "value": 1.25,
        "marginals": [Marginal(np.array([0.25, 0.75]))],
        "sent": np.array([1.0]),
        "episode_return": -7.0,
        "episode_length": length,
    }
    return Decision(**{**given, **changes})


def picture(brightness: int = 200) -> np.ndarray:
    return np.full((210, 160, 3), brightness, np.uint8)


def view(names: tuple[str, ...] = ("noop", "fire"), rate: float = 30.0, title: str = "Pong at 5 steps") -> TerminalView:
    return TerminalView(title, rate, names, ())


@pytest.mark.parametrize("size", [(24, 80), (60, 200), (24, 100)])
def test_picture_return_value_probabilities_and_what_is_seen_stand_beside_each_other(
    on: Callable[..., Terminal], size: tuple[int, int]
) -> None:
    there = on(*size)
    with view() as shown:
        shown.hold(picture())
        shown.end_step(decision())
        rows = there.shown()
    text = "\n".join(rows)
    for words in ("Pong at 5 steps", "return -7  step 3", "value 1.25", "the network sees", "q: quit"):
        assert words in text
    assert next(row for row in rows if "fire" in row).endswith("75 %")
    assert next(row for row in rows if "noop" in row).endswith("25 %")


def test_a_density_has_a_row_with_what_was_sent(on: Callable[..., Terminal]) -> None:
    there = on()
    curve = Marginal(np.exp(-(np.linspace(-3, 3, 100) ** 2)), (-1.0, 1.0))
    with view(("steering", "gas")) as shown:
        shown.hold(picture())
        shown.end_step(decision(marginals=[curve, curve], sent=np.array([-0.5, 1.0]), observation=np.zeros(3)))
        rows = there.shown()
    assert next(row for row in rows if "steering" in row).endswith("-0.50")
    assert next(row for row in rows if "gas" in row).endswith("1.00")
    assert any(row.endswith("entry 2                  0.000") or ("entry 2" in row and "0.000" in row) for row in rows)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 20), (24, 59), (24, 60), (3, 200), (200, 60), (10, 500)])
def test_a_terminal_of_any_size_is_drawn_on(on: Callable[..., Terminal], size: tuple[int, int]) -> None:
    there = on(*size)
    with view() as shown:
        shown.hold(picture())
        shown.end_step(decision(marginals=[Marginal(np.full(18, 1 / 18))]))
        there.shown()


def test_a_resize_draws_the_whole_screen_anew(on: Callable[..., Terminal]) -> None:
    there = on()
    with view() as shown:
        for rows, columns in ((24, 80), (40, 120), (24, 80)):
            there.resize(rows, columns)
            shown.hold(picture())
            shown.end_step(decision())
            assert all(len(row) <= columns for row in there.shown())
        shown.hold(picture())
        shown.end_step(decision())
        assert len(there.read()) < 3000  # only what differs: the course of the value


def test_frames_of_a_fast_game_are_shown_two_in_one_so_that_nothing_flickers(on: Callable[..., Terminal]) -> None:
    on()
    with view(rate=60.0) as shown:
        for brightness in (0, 200, 0, 0):
            shown.hold(picture(brightness))
        shown.end_step(decision())
        assert shown.num_pictures == 2


@pytest.mark.parametrize("key", [b"q", b"Q", b"\x1b"])
def test_q_and_escape_leave(on: Callable[..., Terminal], key: bytes) -> None:
    there = on()
    with pytest.raises(WindowClosedError), view() as shown:
        there.press(key)
        shown.hold(picture())
        shown.end_step(decision())
    assert there.read().endswith(LEAVE)


def test_other_keys_are_not_taken_for_escape_and_change_the_speed(on: Callable[..., Terminal]) -> None:
    there = on()
    with view() as shown:
        for keys, speed in ((b"\x1b[A", "1x"), (b"++", "4x"), (b"-", "2x"), (b"\xff\x00", "2x"), (b" ", "paused")):
            there.press(keys)
            shown.hold(picture())
            shown.end_step(decision())
            assert shown._pace.describe() == speed


def test_the_terminal_is_whole_again_after_an_error(on: Callable[..., Terminal]) -> None:
    there = on()
    before = termios.tcgetattr(there.slave)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)]
    with pytest.raises(KeyError), view():
        assert termios.tcgetattr(there.slave) != before
        raise KeyError
    assert termios.tcgetattr(there.slave) == before
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)]
    written = there.read()
    assert written.startswith(ENTER) and written.endswith(LEAVE)
    assert b"\x1b[?25h" in written


def test_what_makes_a_terminal_do_something_is_not_written(on: Callable[..., Terminal]) -> None:
    there = on()
    evil = "\x1b]52;c;cm0=\x07\x9b2J\x1bc"
    with view((evil, evil), title=evil) as shown:
        shown.say(evil)
        shown.hold(picture())
        shown.end_step(decision())
        there.shown()  # which knows nothing but moves and colours


def test_where_pictures_differ_wholly_fewer_are_shown(
    monkeypatch: pytest.MonkeyPatch, on: Callable[..., Terminal]
) -> None:
    on()
    now = [0.0]
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: now[0]))
    random = np.random.default_rng(0)
    with view() as shown:
        for _ in range(300):
            now[0] += 1 / 30
            shown.hold(random.integers(0, 256, (210, 160, 3), np.uint8))
            shown.end_step(decision())
    assert shown.num_bytes < 10 * terminal.MOST_BYTES_PER_SECOND + 100_000  # and the first, whole screen
    assert 3 <= shown.num_pictures < 60


@pytest.mark.parametrize(("changes", "words"), [({"TERM": "dumb"}, "is no terminal"), ({"encoding": "ascii"}, "ascii")])
def test_what_is_no_such_terminal_is_refused(
    monkeypatch: pytest.MonkeyPatch, on: Callable[..., Terminal], changes: dict[str, str], words: str
) -> None:
    there = on()
    if "TERM" in changes:
        monkeypatch.setenv("TERM", "dumb")
    else:
        monkeypatch.setattr(sys, "stdout", open(there.slave, "w", encoding="ascii", closefd=False))
    with pytest.raises(Refusal, match=words):
        view()


def test_a_pause_ends_and_speeds_have_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    pace, slept = Pace(10.0), []
    clock = [100.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(window, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep))
    pace.wait(lambda: None)
    slept.clear()
    for _ in range(10):
        pace.wait(lambda: None)
    assert sum(slept) == pytest.approx(1.0)
    pace.press("pause")
    looks = iter([*["none"] * 5, "pause"])
    pace.wait(lambda: pace.press(next(looks, "")))
    assert not pace.is_paused
    for key, speed in (("faster", 16.0), ("slower", 0.125)):
        for _ in range(20):
            pace.press(key)
        assert pace.speed == speed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert ppo(folder, *CARTPOLE, "--env_steps=64", "--no_report").returncode == 0
    return folder


def test_watch_shows_the_newest_checkpoint_and_how_far_the_training_is(
    on: Callable[..., Terminal], trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = on()
    monkeypatch.chdir(trained)
    monkeypatch.setattr(os, "nice", lambda by: 0)
    said: list[str] = []

    def press_once_it_was_said(self: TerminalView, text: str) -> None:
        said.append(text)
        if len(said) == 2:
            there.press(b"q")

    monkeypatch.setattr(TerminalView, "say", press_once_it_was_said)
    flags = ["--env_name=CartPole-v1", "--mode=watch", "--view=terminal"]
    assert watch(parse_command_line(flags), Alone(), explicit_settings(flags)) == 0
    written = there.read().decode()
    assert "CartPole-v1 at 64 steps" in written
    assert "cart position" in written
    assert said[0].startswith("training: 64 steps")


@pytest.mark.parametrize("flags", [["--mode=record"], ["--mode=evaluate"], []])
def test_a_view_is_for_play_and_watch_only(trained: Path, flags: list[str]) -> None:
    job = ppo(trained, "--env_name=CartPole-v1", "--view=terminal", *flags)
    assert job.returncode == 2
    assert "view must be auto except for play, and terminal for watch" in job.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, None])
def test_play_gives_the_terminal_back_however_it_ends(trained: Path, number: signal.Signals | None) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(slave)
    command = [sys.executable, "-m", "ppo", "--env_name=CartPole-v1", "--mode=play", "--view=terminal"]
    process = subprocess.Popen(
        [*command, "--episodes=1000" if number else "--episodes=1"],
        **{"stdin": slave, "stdout": slave, "stderr": slave, "cwd": trained},
        env=environment(TERM="xterm-256color", PYTHONIOENCODING="utf-8"),
    )
    written, deadline = b"", time.monotonic() + 60
    os.set_blocking(master, False)
    while time.monotonic() < deadline and process.poll() is None:
        try:
            written += os.read(master, 1 << 16)
        except BlockingIOError:
            time.sleep(0.02)
        if number is not None and b"the network sees" in written:
            process.send_signal(number)
            number = None
            asked = True
    code = process.wait(10)
    with contextlib.suppress(BlockingIOError):
        written += os.read(master, 1 << 16)
    assert ENTER in written and LEAVE in written
    assert termios.tcgetattr(slave) == before
    if "asked" in locals():
        assert code != 0
    else:
        assert code == 0
        assert b"game 1: return" in written[written.rindex(LEAVE) :]
