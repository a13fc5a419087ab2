"""Finished runs whose scores are committed: docs/runs/scores/<world>-<steps>-seed-<N>.csv and .json."""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
RUNS = DOCS / "runs" / "scores"
_USUAL_PROTOCOL = "nature"
_UNITS = {"k": 1_000, "M": 1_000_000}
_NAME = re.compile(r"(?P<world>.+)-(?P<steps>\d+[kM]?)-seed-(?P<seed>\d+)")


@dataclass(frozen=True)
class ScoredRun:
    """A finished run and the evaluation of its final agent."""

    name: str
    """Stem of its files in docs/runs/scores."""
    world: str
    steps: str
    """The requested length, such as 500k or 4M."""
    seed: int
    evaluation: Mapping[str, Any]
    """The content of its evaluation.json."""
    training_mean: float
    """Mean return of the last 100 games of training."""
    env_steps: int

    @property
    def score(self) -> float:
        """Mean return of the evaluation."""
        return float(self.evaluation["return_mean"])


def number_of(steps: str) -> int:
    """Return the number that a length stands for: 500,000 for 500k."""
    return int(steps.rstrip("kM")) * _UNITS.get(steps[-1], 1)


def minutes_of(world: str, steps: str, rates: Mapping[str, float]) -> str:
    """Return how long a run takes, for a table; nothing where the speed is unknown.

    Args:
        world: its name.
        steps: such as 500k.
        rates: steps per second on a quiet machine, by world.
    """
    return f"{number_of(steps) / rates[world] / 60:,.1f}" if world in rates else ""


def length_of(steps: int) -> str:
    """Return how the tables and file names write a number of steps: 500k for 500,000."""
    unit = next((unit for unit in ("M", "k") if steps % _UNITS[unit] == 0), "")
    return f"{steps // _UNITS.get(unit, 1)}{unit}"


@dataclass(frozen=True)
class Row:
    """A row of the tables: a world and how long an agent learns in it."""

    world: str
    steps: str
    """Such as 500k or 4M."""
    flags: tuple[str, ...]
    """Flags of training and evaluation that make the world."""

    @property
    def name(self) -> str:
        """The name of the row's runs, without their seed."""
        return f"{self.world}-{self.steps}"

    @property
    def env_steps(self) -> int:
        """The number of steps."""
        return number_of(self.steps)


def read_worlds() -> list[Row]:
    """Read the rows of the table of worlds, in its order."""
    rows = json.loads((DOCS / "measurements" / "published.json").read_text())
    return [Row(r["world"], r["steps"], tuple(r.get("flags", f"--env_name={r['world']}").split())) for r in rows]


def read_games() -> list[Row]:
    """Read the rows of the tables of Atari games, in their order."""
    rows = json.loads((DOCS / "measurements" / "published_atari.json").read_text())
    return [Row(world_of_game(row), row["steps"], _flags_of_game(row)) for row in rows]


def protocol_of(row: Mapping[str, str]) -> str:
    """Return the protocol of a game's row."""
    return row.get("protocol", _USUAL_PROTOCOL)


def id_of_game(row: Mapping[str, str]) -> str:
    """Return the id of a game's environment."""
    return f"{row['game']}NoFrameskip-v4"


def world_of_game(row: Mapping[str, str]) -> str:
    """Return the name of a game's world in the names of runs: its id, and its protocol if that is not the usual one."""
    protocol = protocol_of(row)
    return id_of_game(row) + ("" if protocol == _USUAL_PROTOCOL else f"-{protocol}")


def _flags_of_game(row: Mapping[str, str]) -> tuple[str, ...]:
    env_name, protocol = f"--env_name={id_of_game(row)}", protocol_of(row)
    return (env_name,) if protocol == _USUAL_PROTOCOL else (env_name, f"--protocol={protocol}")


def read_runs(folder: Path) -> Iterator[ScoredRun]:
    """Read the runs of a folder.

    Raises:
        SystemExit: a file is misnamed, or its evaluation is missing or of a different number of steps.
    """
    for path in sorted(folder.glob("*.csv")):
        name = _NAME.fullmatch(path.stem)
        if name is None or not path.with_suffix(".json").exists():
            raise SystemExit(f"{path} must be named <world>-<steps>-seed-<N>.csv and have its evaluation beside it")
        with path.open(newline="") as file:
            last = list(csv.DictReader(file))[-1]
        evaluation = json.loads(path.with_suffix(".json").read_text())
        if evaluation["env_steps"] != int(last["env_steps"]):
            message = (
                f"{path} ends at {last['env_steps']} steps, but its evaluation is for the agent at "
                f"{evaluation['env_steps']} steps"
            )
            raise SystemExit(message)
        yield ScoredRun(
            name=path.stem,
            world=name["world"],
            steps=name["steps"],
            seed=int(name["seed"]),
            evaluation=evaluation,
            training_mean=float(last["rollout/return_mean"]),
            env_steps=int(last["env_steps"]),
        )
