"""Random and human scores of 57 Atari games, and the human-normalised score.

The table is `human_random_57.csv` in this package: the figures of google-deepmind/dqn_zoo, for games of at most 108,000
frames that begin with up to 30 no-ops.
"""

import csv
from importlib import resources


def human_normalised_score(rom: str, episode_return: float) -> float | None:
    """Return (score - random) / (human - random), Mnih et al. 2015; None for a game without published scores.

    Args:
        rom: the game's ROM name, e.g. "ms_pacman".
        episode_return: raw return of a whole game, or a mean of such returns.
    """
    both = random_and_human(rom)
    return None if both is None else (episode_return - both[0]) / (both[1] - both[0])


def random_and_human(rom: str) -> tuple[float, float] | None:
    """Return the mean scores of random play and of a human in a game; None for one without published scores."""
    with resources.files("ppo.envs.atari").joinpath("human_random_57.csv").open() as file:
        for row in csv.DictReader(file):
            if row["game"] == rom:
                return float(row["random"]), float(row["human"])
    return None
