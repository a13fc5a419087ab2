"""The script that measures what watching takes plays, shows and counts."""

import pytest

from ppo.settings import Refusal
from scripts.measure_watching import in_a_terminal, on_a_page


def test_a_page_of_pong_takes_little_of_a_core_and_is_sent_something() -> None:
    share, megabits = on_a_page("PongNoFrameskip-v4", seconds=2.0)
    assert 0.0 < share < 0.2
    assert megabits > 0.0


def test_a_world_without_an_agent_is_refused() -> None:
    with pytest.raises(Refusal, match="exit code 2"):
        on_a_page("BowlingNoFrameskip-v4", seconds=1.0)


def test_a_terminal_is_shown_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():  # standard output is that of the process
        pictures, share, megabits = in_a_terminal("PongNoFrameskip-v4", (24, 80), seconds=1.0)
    assert 1.0 < pictures <= 31.0
    assert share > 0.0 and megabits > 0.0
