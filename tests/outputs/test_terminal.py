"""Games on a terminal: what is shown at any size, which keys are obeyed, and that the terminal is whole again."""

import contextlib
import fcntl
import os
import pty
import re
import select
import shutil
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
import safetensors.torch
import torch

from ppo.collectives import Alone
from ppo.command_line import explicit_settings, parse_command_line
from ppo.models.decisions import Decision
from ppo.models.distributions.base import Marginal
from ppo.outputs import terminal, window
from ppo.outputs.terminal import TerminalView
from ppo.outputs.window import Pace, WindowClosedError
from ppo.settings import Refusal
from ppo.supervision.signals import PREEMPTED, StopRequest
from ppo.viewer import in_terminal
from ppo.viewer.selection import Selection
from ppo.viewer.watch import watch
from tests.forgery import MODEL, replace_file
from tests.jobs import CARTPOLE, environment, ppo
from tests.outputs.test_cells import Screen

_MARK = b"\x00"
_HEARD = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP, signal.SIGQUIT, signal.SIGCONT)
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
        self.screen = Screen(rows, columns)

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
        """Return the rows of the screen, which must have been drawn whole since the view was entered or resized."""
        rows, columns = len(self.screen.cells), len(self.screen.cells[0])
        for part in re.findall(r"\x1b\[\?1049h|\x1b\[\?2026h.*?\x1b\[\?2026l", self.read().decode()):
            if part == ENTER.decode():
                self.screen = Screen(rows, columns)
            else:
                self.screen.obey(part)
        assert all(cell != Screen(1, 1).cells[0][0] for row in self.screen.cells for cell in row)
        return ["".join(character for character, _, _ in row).rstrip() for row in self.screen.cells]


@pytest.fixture(autouse=True)
def same_handlers() -> Iterator[None]:
    """Undo what a view or a watcher does to signals."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *_HEARD)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def at_its_speed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Terminal]]:
    """Make terminals whose pictures are shown when they are due."""
    made: list[Terminal] = []

    def make(*size: int) -> Terminal:
        made.append(Terminal(monkeypatch, *size))
        return made[-1]

    yield make
    for there in made:
        there.close()


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, at_its_speed: Callable[..., Terminal]) -> Callable[..., Terminal]:
    """Make terminals on which every picture is shown at once."""
    monkeypatch.setattr(Pace, "wait", lambda self, look: (look(), True)[1])
    return at_its_speed


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


def in_the_pause(monkeypatch: pytest.MonkeyPatch, *acts: Callable[[], object]) -> None:
    """Call these in turn, one in each twentieth of a second that is waited; then wait for five seconds at most."""
    left = iter([*acts, *[lambda: time.sleep(0.05)] * 100])

    def sleep(seconds: float) -> None:
        next(left)()

    monkeypatch.setattr(window, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))


@pytest.mark.parametrize("size", [(24, 80), (12, 40)])
def test_a_pause_is_said_and_whatever_spoils_the_screen_meanwhile_is_mended(
    monkeypatch: pytest.MonkeyPatch, at_its_speed: Callable[..., Terminal], size: tuple[int, int]
) -> None:
    there = at_its_speed(*size)
    screens: list[str] = []

    def keep() -> None:
        screens.append("\n".join(there.shown()))

    def resize() -> None:
        keep()
        there.resize(40, 120)

    def continued() -> None:
        keep()
        os.kill(os.getpid(), signal.SIGCONT)

    def end() -> None:
        keep()
        there.press(b" ")

    in_the_pause(monkeypatch, resize, continued, end)
    with view() as shown:
        shown.hold(picture())
        shown.end_step(decision(value=0.5))
        assert "paused" not in "\n".join(there.shown())
        there.press(b" ")
        shown.hold(picture())
        shown.end_step(decision(value=1.5))
        assert len(screens) == 3
        assert all("paused" in screen and "return -7  step 3" in screen and "value 1.5" in screen for screen in screens)
        assert "paused" not in "\n".join(there.shown())


def test_a_pause_writes_nothing_while_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, at_its_speed: Callable[..., Terminal]
) -> None:
    there = at_its_speed()
    written: list[bytes] = []

    def keep() -> None:
        written.append(there.read())

    in_the_pause(monkeypatch, keep, keep, keep, lambda: there.press(b" "))
    with view() as shown:
        there.press(b" ")
        shown.hold(picture())
        shown.end_step(decision())
    assert written[0] and written[1:] == [b"", b""]


def test_a_requested_stop_closes_it_even_while_it_is_paused(
    monkeypatch: pytest.MonkeyPatch, at_its_speed: Callable[..., Terminal]
) -> None:
    there, stop = at_its_speed(), StopRequest()
    in_the_pause(monkeypatch, lambda: setattr(stop, "exit_code", PREEMPTED))
    with pytest.raises(WindowClosedError), TerminalView("Pong", 30.0, stop=stop) as shown:
        there.press(b" ")
        shown.hold(picture())
        shown.end_step(decision())
    assert there.read().endswith(LEAVE)


def test_another_line_is_shown_even_if_there_is_no_other_step(on: Callable[..., Terminal]) -> None:
    there, same = on(), decision()
    with view() as shown:
        for text in ("training: 64 steps", "training: 128 steps"):
            shown.say(text)
            shown.hold(picture())
            shown.end_step(same)
            assert there.shown()[-1].endswith(text)


@pytest.mark.parametrize("size", [(24, 80), (24, 40), (2, 80), (1, 1)])
def test_a_warning_takes_rows_of_its_own_until_it_is_gone(on: Callable[..., Terminal], size: tuple[int, int]) -> None:
    there = on(*size)
    with view() as shown:
        for warning in ("it is\x1b[2J damaged " * 30, "", "damaged"):
            shown.warn(warning)
            shown.hold(picture()[:40])  # which leaves rows free below it
            shown.end_step(decision())
            rows = there.shown()
            if size[0] == 24:
                assert sum("damaged" in row for row in rows) == {"": 0, "damaged": 1}.get(warning, 3)
                assert "return -7" in "\n".join(rows)


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
    handlers = [signal.getsignal(number) for number in _HEARD]
    with pytest.raises(KeyError), view():
        assert termios.tcgetattr(there.slave) != before
        raise KeyError
    assert termios.tcgetattr(there.slave) == before
    assert handlers == [signal.getsignal(number) for number in _HEARD]
    written = there.read()
    assert written.startswith(ENTER) and written.endswith(LEAVE)
    assert b"\x1b[?25h" in written
    assert b"\x1b[?2026l" in written  # even if no picture's end was


def test_what_makes_a_terminal_do_something_is_not_written(on: Callable[..., Terminal]) -> None:
    there = on()
    evil = "\x1b]52;c;cm0=\x07\x9b2J\x1bc"
    with view((evil, evil), title=evil) as shown:
        shown.say(evil)
        shown.hold(picture())
        shown.end_step(decision())
        there.shown()  # which knows nothing but moves and colours


def test_a_frame_of_another_size_is_not_merged_with_one_that_waits(on: Callable[..., Terminal]) -> None:
    on()
    with view(rate=60.0) as shown:  # two frames make a picture
        for frame in (picture(), np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80, 3), np.uint8)):
            shown.hold(frame)
        shown.end_step(decision())
        assert shown.num_pictures == 1


def test_where_pictures_differ_wholly_fewer_are_shown(
    monkeypatch: pytest.MonkeyPatch, on: Callable[..., Terminal]
) -> None:
    on()
    now = [0.0]
    monkeypatch.setattr(terminal, "time", SimpleNamespace(monotonic=lambda: now[0]))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 210, 160, 3), np.uint8)
    sizes: list[int] = []
    with view() as shown:
        for _ in range(3000):
            now[0] += 1 / 30
            before = shown.num_bytes
            shown.hold(pictures[len(sizes) % 2])
            shown.end_step(decision())
            sizes += [shown.num_bytes - before] if shown.num_bytes > before else []
    # The first screen does not count, a second's worth may be saved up, and the last picture may exceed the limit.
    others = sizes[1:]
    assert 95 * terminal.MOST_BYTES_PER_SECOND < sum(others) <= 101 * terminal.MOST_BYTES_PER_SECOND + max(others)
    assert 50 < shown.num_pictures < 300


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
    assert ppo(folder, *CARTPOLE, "--env_steps=128", "--checkpoint_interval=1", "--no_report").returncode == 0
    return folder


class Watched:
    """What a watcher in a terminal was given to show, at every poll."""

    def __init__(self, there: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there, self.said, self.warnings, self.titles = there, [""], [""], [""]
        self._until: Callable[[], bool] = lambda: True
        monkeypatch.setattr(os, "nice", lambda by: 0)
        monkeypatch.setattr(in_terminal, "_SECONDS_BETWEEN_POLLS", 0.0)
        show_text, show_warning = TerminalView.say, TerminalView.warn

        def say(view: TerminalView, text: str) -> None:
            self.said.append(text)
            show_text(view, text)

        def warn(view: TerminalView, text: str) -> None:
            self.warnings.append(text)
            self.titles.append(view.title)
            show_warning(view, text)
            assert len(self.warnings) < 1000
            if self._until():
                there.press(b"q")

        monkeypatch.setattr(TerminalView, "say", say)
        monkeypatch.setattr(TerminalView, "warn", warn)

    def run(self, until: Callable[[], bool]) -> str:
        """Watch until something holds, which is asked whenever the watcher has looked; return what was written."""
        self._until = until
        flags = ["--env_name=CartPole-v1", "--mode=watch", "--view=terminal"]
        assert watch(parse_command_line(flags), Alone(), explicit_settings(flags)) == 0
        return self.there.read().decode()


@pytest.fixture
def watched(
    on: Callable[..., Terminal], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Watched]:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return lambda: Watched(on(), monkeypatch)


def test_watch_shows_the_newest_checkpoint_and_how_far_the_training_is(watched: Callable[[], Watched]) -> None:
    shown = watched()
    written = shown.run(lambda: len(shown.said) == 3)
    assert "CartPole-v1 at 128 steps" in written
    assert "cart position" in written
    assert shown.said[1].startswith("training: 128 steps")
    assert not any(shown.warnings)


def test_watch_says_that_an_agent_s_numbers_overflow_and_waits_for_one_that_can_be_played(
    watched: Callable[[], Watched],
) -> None:
    newest, before = (Path(f"checkpoints/CartPole-v1/step_{steps:012d}") for steps in (128, 64))
    newest.rename("later")
    tensors = safetensors.torch.load((before / MODEL).read_bytes())
    tensors |= {name: torch.full_like(tensor, 3e38) for name, tensor in tensors.items() if "weight" in name}
    replace_file(before, MODEL, safetensors.torch.save(tensors))
    shown = watched()

    def until() -> bool:
        if len(shown.warnings) == 5:
            assert all("cannot be played: the outputs" in warning for warning in shown.warnings[1:])
            Path("later").rename(newest)
        return "128" in shown.titles[-1] and shown.warnings[-1] == ""

    written = shown.run(until)
    assert "this agent cannot be played: the outputs of its network are not finite" in written


def test_watch_says_which_checkpoint_is_damaged_and_why_another_is_not_shown(
    watched: Callable[[], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = Path("checkpoints/CartPole-v1/step_000000000128")
    (newest / MODEL).write_bytes(b"x")
    shown, polls = watched(), iter([Refusal("no, thank you")])
    poll = Selection.poll

    def refuse_once(selection: Selection) -> tuple[bool, bool]:
        for refusal in polls:
            raise refusal
        return poll(selection)

    monkeypatch.setattr(Selection, "poll", refuse_once)
    shown.run(lambda: len(shown.warnings) == 5)
    assert all("64" in title for title in shown.titles[1:])
    assert all(
        warning.startswith("no, thank you; ") and "damaged" in warning and newest.name in warning
        for warning in shown.warnings[1:]
    )


@pytest.mark.parametrize("flags", [["--mode=record"], ["--mode=evaluate"], []])
def test_a_view_is_for_play_and_watch_only(trained: Path, flags: list[str]) -> None:
    job = ppo(trained, "--env_name=CartPole-v1", "--view=terminal", *flags)
    assert job.returncode == 2
    assert "view must be auto except for play, and terminal for watch" in job.stderr


def test_a_window_is_refused_where_there_is_no_display(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    job = ppo(trained, "--env_name=CartPole-v1", "--mode=play", "--view=window")
    assert job.returncode == 2
    assert job.stderr == "ppo: view must be terminal or auto here, got window: no display\n"


class Process:
    """A `python -m ppo --view=terminal` of its own in a pseudo-terminal of 24 x 80."""

    def __init__(self, folder: Path, env_name: str, mode: str, *flags: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        os.set_blocking(self.master, False)
        self.settings = termios.tcgetattr(slave)
        self._slave, self.written = slave, b""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ppo", f"--env_name={env_name}", f"--mode={mode}", "--view=terminal", *flags],
            **{"stdin": slave, "stdout": slave, "stderr": slave, "cwd": folder},
            env=environment(TERM="xterm-256color", PYTHONIOENCODING="utf-8"),
            # The kernel only suspends a group whose parent is in another group.
            process_group=0,
        )
        self.send = self._process.send_signal

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def read_until(self, is_there: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not is_there():
            assert time.monotonic() < deadline
            time.sleep(0.02)
            self._read()

    def shows(self, text: str) -> bool:
        """Return whether a text is on the screen now."""
        _, entered, drawn = self.written.rpartition(ENTER + b"\x1b[?25l\x1b[2J")
        pictures = drawn.rpartition(b"\x1b[?2026l")[0] if entered and LEAVE not in drawn else b""
        screen = Screen(24, 80)
        screen.obey(pictures.decode())
        return any(text in "".join(character for character, _, _ in row) for row in screen.cells)

    def is_suspended(self) -> bool:
        _, status = os.waitpid(self._process.pid, os.WNOHANG | os.WUNTRACED)
        return os.WIFSTOPPED(status)

    def is_whole(self) -> bool:
        """Return whether the terminal is as it was before."""
        self._read()
        return self.written.count(ENTER) <= self.written.count(LEAVE) and self.settings == termios.tcgetattr(
            self._slave
        )

    def wait(self) -> tuple[int, str]:
        """Return the exit code, and what is written once the terminal is whole."""
        self.read_until(lambda: self._process.poll() is not None)
        self.read_until(lambda: LEAVE in self.written)  # the kernel may pass it on a little later
        self._read()
        return self._process.returncode, self.written[self.written.rindex(LEAVE) :].decode()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._slave)
        os.close(self.master)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.written += os.read(self.master, 1 << 16)


@pytest.fixture
def process(trained: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*flags: str) -> Process:
        started.append(Process(trained, "CartPole-v1", *flags))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["play", "watch"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGQUIT, None)]
)
def test_a_signal_that_ends_it_leaves_a_whole_terminal_with_the_results(
    process: Callable[..., Process], mode: str, number: signal.Signals, code: int | None
) -> None:
    view = process(mode, *(["--episodes=1000"] if mode == "play" else []))
    view.read_until(lambda: view.shows(": return "))
    view.send(number)
    ended, after = view.wait()
    assert view.is_whole()
    assert ended == (-number if code is None else code)
    assert (": return " in after) == (code is not None)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["play", "watch"])
def test_it_can_be_suspended_and_continued(process: Callable[..., Process], mode: str) -> None:
    view = process(mode, *(["--episodes=1000"] if mode == "play" else []))
    view.read_until(lambda: view.shows("the network sees"))
    view.press(b" ")
    view.read_until(lambda: view.shows("paused"))
    for number in (signal.SIGTSTP, signal.SIGSTOP):
        view.send(number)
        view.read_until(view.is_suspended)
        if number == signal.SIGTSTP:
            view.read_until(view.is_whole)
        else:
            assert not view.is_whole()
        view.written = b""
        view.send(signal.SIGCONT)
        view.read_until(lambda: view.shows("paused") and view.shows("the network sees"))
    view.press(b"q")
    code, _ = view.wait()
    assert code == 0
    assert view.is_whole()


@pytest.mark.slow
def test_play_ends_with_its_games_and_prints_them(process: Callable[..., Process]) -> None:
    view = process("play", "--episodes=2")
    code, after = view.wait()
    assert code == 0
    assert view.is_whole()
    assert after.index("game 1: return") < after.index("game 2: return")
