"""What a person sees of a run, as text."""

from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from ppo.outputs import display
from ppo.outputs.display import LiveTable, PlainLines, Terminal, describe_return, live_table, summary_line, time_left

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
