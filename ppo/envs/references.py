"""Reference scores to compare an agent with: `references.csv` in this package, where each row names its source.

Published scores follow different protocols: training averages, one chosen agent, earlier versions of a world.
"""

import csv
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Reference:
    """A mean return of whole games."""

    label: str
    score: float
    source: str


def references_of(world: str) -> list[Reference]:
    """Return the scores of a world.

    Args:
        world: a Gymnasium id, or a game's ROM name, e.g. "ms_pacman".
    """
    with resources.files("ppo.envs").joinpath("references.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["world"] == world]
    return [Reference(row["label"], float(row["score"]), row["source"]) for row in rows]
