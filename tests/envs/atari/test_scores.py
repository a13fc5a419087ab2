"""Human-normalised scores of the 57 games."""

import csv
from importlib import resources

import ale_py
import pytest
from ale_py import roms

from ppo.envs.atari.scores import human_normalised_score

TABLE = list(csv.DictReader(resources.files("ppo.envs.atari").joinpath("human_random_57.csv").read_text().splitlines()))


def test_the_table_has_57_different_games() -> None:
    assert len({row["game"] for row in TABLE}) == len(TABLE) == 57


@pytest.mark.parametrize("game", [row["game"] for row in TABLE])
def test_every_game_is_a_rom_that_ale_can_load(game: str) -> None:
    path = roms.get_rom_path(game)
    assert path is not None
    assert ale_py.ALEInterface.isSupportedROM(path) is not None


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["game"])
def test_a_random_agent_scores_0_and_a_human_1(row: dict[str, str]) -> None:
    assert human_normalised_score(row["game"], float(row["random"])) == 0.0
    assert human_normalised_score(row["game"], float(row["human"])) == 1.0


def test_the_score_is_linear_in_the_return() -> None:
    # Pong, Mnih et al. 2015: random -20.7, human 14.6 under this table.
    assert human_normalised_score("pong", 21.0) == pytest.approx((21.0 + 20.7) / (14.6 + 20.7))


def test_a_game_without_published_scores_has_none() -> None:
    assert human_normalised_score("tetris", 100.0) is None
