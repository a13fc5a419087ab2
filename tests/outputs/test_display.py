"""A run's terminal output, and that a run survives the loss of standard output."""

import contextlib
import errno
import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ppo.outputs import display
from ppo.outputs.display import (
    LiveTable,
    PlainLines,
    Terminal,
    describe_return,
    find_terminal,
    live_table,
    print_line,
    summary_line,
    time_left,
)
from ppo.outputs.trackers import OutputError, Tracker, Trackers
from ppo.standard_streams import prepare_standard_streams
from tests.jobs import CARTPOLE, environment, ppo

METRICS: dict[str, float | int | None] = {
    "update": 3,
    "env_steps": 250_000,
    "time/steps_per_second": 1000.0,
    "rollout/return_mean": -20.25,
    "rollout/episodes": 7,
    "update/policy_loss": -0.0123,
    "update/value_loss": 0.5,
    "update/entropy": 1.79,
    "update/approx_kl": 0.0061,
    "update/learning_rate": 2.5e-4,
}
BEFORE_THE_FIRST_GAME = {**METRICS, "rollout/return_mean": None, "rollout/episodes": 0}


def rendered(metrics: dict[str, float | int | None]) -> str:
    """Return the live table as text."""
    file = StringIO()
    Console(file=file, width=100).print(live_table("Pong on 4 ranks", metrics, 1_000_000))
    return file.getvalue()


def test_before_the_first_game_the_return_is_said_in_words() -> None:
    assert describe_return(BEFORE_THE_FIRST_GAME) == "no game finished yet"


@pytest.mark.parametrize("show", [rendered, lambda metrics: summary_line(metrics, 1_000_000)], ids=["table", "line"])
def test_before_the_first_game_no_display_shows_nan_or_none(show: Callable[[dict[str, Any]], str]) -> None:
    text = show(BEFORE_THE_FIRST_GAME)
    assert "no game finished yet" in text
    assert "nan" not in text.lower() and "none" not in text.lower()


@pytest.mark.parametrize(
    ("games", "words"),
    [
        (1, "-20.25 (mean of the last 1 of 1 games)"),
        (7, "-20.25 (mean of the last 7 of 7 games)"),
        (250, "-20.25 (mean of the last 100 of 250 games)"),
    ],
)
def test_the_return_is_the_mean_of_at_most_100_games(games: int, words: str) -> None:
    assert describe_return({**METRICS, "rollout/episodes": games}) == words


def test_the_summary_line_says_how_far_how_fast_how_long_and_how_well() -> None:
    line = summary_line(METRICS, 1_000_000)
    for part in (
        "250,000 steps",
        "25.0%",
        "1,000 steps/s",
        "0:12:30 left",
        "return -20.25",
        "entropy 1.790",
        "KL 0.0061",
    ):
        assert part in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("env_steps", "speed", "expected"),
    [
        (0, 1000.0, "0:16:40"),
        (0, 100.0, "2:46:40"),
        (1_000_000, 1000.0, "0:00:00"),
        (1_000_500, 1000.0, "0:00:00"),
        (0, 0.0, "-:--:--"),
        (0, None, "-:--:--"),
    ],
)
def test_time_left_is_steps_left_over_speed(env_steps: int, speed: float | None, expected: str) -> None:
    assert time_left({"env_steps": env_steps, "time/steps_per_second": speed}, 1_000_000) == expected


def test_the_live_table_shows_progress_return_and_losses() -> None:
    text = rendered(METRICS)
    for part in ("Pong on 4 ranks", "250,000 of 1,000,000 (25.0%)", "0:12:30", "1,000 steps per second", "-20.25"):
        assert part in text
    for label, value in (("value loss", "0.5"), ("entropy", "1.79"), ("KL", "0.0061"), ("learning rate", "0.00025")):
        assert [line for line in text.splitlines() if label in line and value in line]


def test_the_live_table_has_room_for_everything_in_60_columns() -> None:
    file = StringIO()
    long = {**METRICS, "rollout/episodes": 1_234_567, "env_steps": 123_456_789, "update/value_loss": -1.234e-05}
    evaluation = ("-12345.25 ± 123.20 over 100 games", "1,000,250,000 steps, in 12.3 s")
    Console(file=file, width=60).print(live_table("Pong", long, 10_000_000_000, evaluation, "▁" * 40))
    text = file.getvalue()
    for part in (*evaluation, "123,456,789 of 10,000,000,000 (1.2%)", "learning rate", "▁" * 40, "1,234,567"):
        assert part in text
    assert "…" not in text
    assert {len(line.rstrip()) for line in text.splitlines()[1:]} == {60}


def drawn_on(terminal: int, columns: int, live: LiveTable | None = None) -> tuple[LiveTable, list[str]]:
    """Give a pseudo-terminal a size, have an update drawn on it, and return the lines that were sent to it."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    live = live or LiveTable("Pong", 1_000_000, Terminal(columns, rows=40))
    live.log(METRICS, [])
    sys.stdout.flush()
    sent = os.read(terminal, 65_536).decode()
    return live, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", sent).replace("\r", "").splitlines()


def test_the_live_table_follows_the_size_of_its_terminal() -> None:
    def widths(lines: list[str]) -> set[int]:
        return {len(line.rstrip()) for line in lines if line.startswith("│")}

    terminal, slave = os.openpty()
    with os.fdopen(slave, "w") as output, contextlib.redirect_stdout(output):
        live, wide = drawn_on(terminal, 80)
        _, narrow = drawn_on(terminal, 40, live)
        _, again = drawn_on(terminal, 80, live)
        live.close()
    os.close(terminal)
    assert widths(wide) == widths(again) == {60}
    assert widths(narrow) == {40}


def test_the_live_table_shows_the_course_of_the_return(capsys: pytest.CaptureFixture[str]) -> None:
    live = LiveTable("Pong", 1_000_000, Terminal(columns=80, rows=40))
    for mean in (None, -21.0, -21.0, 0.0, 21.0):
        live.log({**METRICS, "rollout/return_mean": mean}, [])
    live.close()
    assert "▁▁▅█" in capsys.readouterr().out


def test_the_last_line_of_a_run_stands_below_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(display, "find_terminal", lambda: Terminal(columns=200, rows=40))
    job = ppo(tmp_path, *CARTPOLE, "--env_steps=64")
    assert job.returncode == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", job.stdout).splitlines()
    assert any("learning rate" in line for line in lines)
    assert re.fullmatch(r"done: CartPole-v1 at 64 steps, saved in \S+; return \d+\.\d+ \(.* games\)", lines[-1])


def test_plain_lines_come_at_most_every_few_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 101.0, 104.9, 105.0, 105.1])
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    lines = PlainLines(1_000_000)
    for _ in range(5):
        lines.log(METRICS, [])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_plain_lines_print_events_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    PlainLines(10).say("resuming")
    assert capsys.readouterr().out == "resuming\n"


def test_output_that_is_no_terminal_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(display.make_display("title", 10), PlainLines)


def test_the_live_display_draws_the_table_and_events(capsys: pytest.CaptureFixture[str]) -> None:
    live = LiveTable("Pong on 4 ranks", 1_000_000, Terminal(columns=100, rows=40))
    live.log(METRICS, [])
    live.say("saved [bold]as is[/bold]")
    live.close()
    printed = capsys.readouterr().out
    assert "250,000 of 1,000,000" in printed and "saved [bold]as is[/bold]" in printed


# ------------------------------------------------------------------------------------------------ standard output fails


class FailingOutput(StringIO):
    """Standard output that raises as long as it has an error."""

    error: Exception | None = None

    def write(self, text: str) -> int:
        if self.error:
            raise self.error
        return super().write(text)


@contextlib.contextmanager
def standard_output() -> Iterator[FailingOutput]:
    stream = FailingOutput()
    with contextlib.redirect_stdout(stream):
        yield stream


def displays() -> list[Tracker]:
    return [PlainLines(1_000_000), LiveTable("Pong", 1_000_000, Terminal(columns=100, rows=40))]


ERRORS = {
    "broken pipe": BrokenPipeError(errno.EPIPE, "Broken pipe"),
    "full disk": OSError(errno.ENOSPC, "No space left on device"),
    "terminal gone": OSError(errno.EIO, "Input/output error"),
    "closed file": ValueError("I/O operation on closed file"),
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("position", [0, 1], ids=["lines", "table"])
def test_trouble_with_standard_output_is_one_warning_and_words_come_on_standard_error(
    capsys: pytest.CaptureFixture[str], kind: str, position: int
) -> None:
    with standard_output() as output:
        trackers = Trackers([displays()[position]])
        output.error = ERRORS[kind]
        for _ in range(3):
            trackers.log(METRICS, [])
        trackers.say("saved")
        trackers.close()
    warning, *words = capsys.readouterr().err.splitlines()
    assert warning.startswith("WARNING: cannot write to standard output (")
    assert str(ERRORS[kind]).rpartition("] ")[2] in warning
    assert words == ["saved"]


@pytest.mark.parametrize("position", [0, 1], ids=["lines", "table"])
def test_a_disk_that_has_room_again_gets_lines_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    clock = iter(range(100, 10_000, 100))
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    with standard_output() as output:
        trackers = Trackers([displays()[position]])
        output.error = ERRORS["full disk"]
        trackers.log(METRICS, [])
        output.error = None
        trackers.log(METRICS, [])
        trackers.say("saved")
    assert "standard output can be written to again" in output.getvalue() and "saved" in output.getvalue()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_pipe_without_a_reader_is_not_tried_again() -> None:
    lines = PlainLines(10)
    with standard_output() as output:
        output.error = ERRORS["broken pipe"]
        for _ in range(2):
            with pytest.raises(OutputError, match="Broken pipe"):
                lines.say("saved")
            output.error = None
    assert output.getvalue() == ""


def test_standard_output_that_was_closed_from_the_start_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert find_terminal() is None
    with pytest.raises(OutputError, match="it is closed"):
        PlainLines(10).say("hello")


def test_standard_output_that_was_closed_later_is_no_terminal() -> None:
    with standard_output() as output:
        output.close()
        assert find_terminal() is None


NOT_ASCII = "moved aside to Pr\u00fcfung/\U0001f600"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("columns", [None, 60, 80])
def test_a_character_that_cannot_be_encoded_is_escaped_and_output_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], encoding: str, columns: int | None
) -> None:
    written = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(written, encoding))
    prepare_standard_streams()
    evaluation = {"evaluation/return_mean": 1.0, "evaluation/return_stderr": 0.5, "evaluation/episodes": 10}
    show: Tracker = PlainLines(1_000_000)
    if columns:
        show = LiveTable("Pr\u00fcfung " * 5, 1_000_000, Terminal(columns, rows=40))
    trackers = Trackers([show])
    for _ in range(2):
        trackers.say(NOT_ASCII)
        trackers.log({**METRICS, **evaluation, "time/evaluation": 1.0}, [])
    trackers.close()
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue().decode(encoding)).splitlines()
    assert [line.strip() for line in lines].count(NOT_ASCII.encode(encoding, "backslashreplace").decode(encoding)) == 2
    assert len([line for line in lines if "250,000" in line]) >= 2
    # A longer line would break the table.
    assert columns is None or max(map(len, lines)) <= columns
    assert capsys.readouterr().err == ""


def test_a_line_that_standard_output_does_not_take_is_reported_on_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with standard_output() as output:
        print_line("game 1")
        output.error = ERRORS["broken pipe"]
        print_line("game 2")
    assert output.getvalue() == "game 1\n"
    assert capsys.readouterr().err == "game 2\n"


def test_a_terminal_that_is_closed_does_not_end_the_live_display(capsys: pytest.CaptureFixture[str]) -> None:
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as terminal, contextlib.redirect_stdout(terminal):
        trackers = Trackers([LiveTable("Pong", 1_000_000, Terminal(columns=100, rows=40))])
        trackers.log(METRICS, [])
        os.close(master)
        for _ in range(3):
            trackers.log(METRICS, [])
        trackers.close()
    errors = capsys.readouterr().err
    assert errors.count("WARNING") == 1 and "Input/output error" in errors


def finished(program: str, output: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a program with its standard output redirected by the shell."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {program} {output}"],
        cwd=folder,
        env=environment(PYTHON=sys.executable),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("output", ["| head -c0", ">&-", "> /dev/full"])
def test_where_standard_output_goes_nowhere_the_exit_code_stays_that_of_the_run(tmp_path: Path, output: str) -> None:
    (tmp_path / "program.py").write_text(
        "import time\n"
        "from ppo.outputs.display import make_display\n"
        "from ppo.outputs.trackers import Trackers\n"
        "trackers = Trackers([make_display('Pong', 10)])\n"
        "time.sleep(0.2)\n"
        "for number in range(3):\n"
        "    trackers.say(str(number))\n"
        "trackers.close()\n"
    )
    job = finished("$PYTHON program.py", output, tmp_path)
    warning, *words = job.stderr.splitlines()
    assert warning.startswith("WARNING: cannot write to standard output (")
    assert (job.returncode, words) == (0, ["0", "1", "2"])


def test_a_training_into_a_pipe_that_is_closed_continues_to_its_end(tmp_path: Path) -> None:
    flags = " ".join([*CARTPOLE, "--env_steps=320", "--checkpoint_interval=5"])
    job = finished(f"$PYTHON -m ppo {flags}", "| head -1", tmp_path)
    assert job.returncode == 0
    assert job.stderr.count("WARNING: cannot write to standard output (Broken pipe)") == 1
    assert "Traceback" not in job.stderr and "done: CartPole-v1 at 320 steps" in job.stderr
    assert (tmp_path / "checkpoints" / "CartPole-v1" / "step_000000000320").is_dir()
