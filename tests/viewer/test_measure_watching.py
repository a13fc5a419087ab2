"""The script that measures what watching takes plays, shows and counts."""

import pytest

from scripts.measure_watching import in_a_terminal, on_a_page


def test_a_page_takes_more_than_its_game_and_is_sent_something() -> None:
    share, of_game, megabits = on_a_page("PongNoFrameskip-v4", seconds=1.0)
    assert 0.0 < of_game < share
    assert megabits > 0.0


def test_a_terminal_is_shown_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():  # standard output is that of the process
        pictures, share, megabits = in_a_terminal("PongNoFrameskip-v4", (24, 80), seconds=1.0)
    assert 1.0 < pictures <= 31.0
    assert share > 0.0 and megabits > 0.0
