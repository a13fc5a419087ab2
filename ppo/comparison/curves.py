"""The learning curves of runs, read from their progress.csv and grouped over seeds."""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ppo.comparison.statistics import Floats, bootstrap, mean
from ppo.report.logs import read_facts
from ppo.settings import Refusal, did_you_mean, printable

LOG = "progress.csv"
GAMES = 100
"""Number of games that a return is averaged over; fewer at the start of a run."""
_COLUMNS = ("env_steps", "rollout/episodes", "time/seconds", "rollout/return_mean")
_SEED = re.compile(r"-seed-?\d+$")
_POINTS = 200


@dataclass(frozen=True)
class Curve:
    """A run's progress after each update, from the first finished game on; arrays are (updates,)."""

    name: str
    steps: Floats
    episodes: Floats
    minutes: Floats
    returns: Floats
    """Mean returns of the last 100 games."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """When, where and how the run was started, from its config.json."""

    @property
    def final_return(self) -> float:
        """The return at the end."""
        return float(self.returns[-1])

    def steps_to(self, goal: float) -> float | None:
        """Return the steps after which the mean return of a full 100 games first reached a goal, or None."""
        reached = np.flatnonzero((self.returns >= goal) & (self.episodes >= GAMES))
        return float(self.steps[reached[0]]) if len(reached) else None


@dataclass(frozen=True)
class Average:
    """The mean of a group's curves at common places, and its bootstrap interval; arrays are (X,)."""

    places: Floats
    mean: Floats
    low: Floats
    high: Floats


def average(curves: Sequence[Curve], axis: str) -> Average:
    """Average curves over the part of an axis (steps, episodes or minutes) that all of them cover; it may be empty."""
    axes = [getattr(curve, axis) for curve in curves]
    first, last = max(along[0] for along in axes), min(along[-1] for along in axes)
    places = np.linspace(first, last, _POINTS if first <= last else 0)
    pairs = zip(axes, curves, strict=True)
    values = np.stack([np.interp(places, along, curve.returns) for along, curve in pairs])
    return Average(places, mean(values), *bootstrap(values))


def group_of(name: str) -> str:
    """Return a run's name without its seed: `X` for `X`, `X-seed1` and `X-seed-1`."""
    return _SEED.sub("", name)


def grouped(curves: Sequence[Curve]) -> Mapping[str, list[Curve]]:
    """Return the runs of each group, in the order given."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(group_of(curve.name), []).append(curve)
    return groups


def find_curves(names: Sequence[str], run_dir: Path) -> list[Curve]:
    """Return the curves of runs.

    Args:
        names: of runs in `run_dir`, where a name without a seed stands for all its seeds; or paths to run folders or to
            copies of a progress.csv.
        run_dir: the setting.

    Raises:
        Refusal: there is no such run, or no game has finished in it.
    """
    paths = dict.fromkeys(path for name in names for path in _logs(name, run_dir))
    curves = [_read(path) for path in paths]
    there_are = Counter(curve.name for curve in curves)
    # Folders of the same name in different places hold different runs, such as before and after a change.
    places = [path.parent if path.name == LOG else path for path in paths]
    return [
        curve if there_are[curve.name] == 1 else replace(curve, name=printable(str(place)))
        for curve, place in zip(curves, places, strict=True)
    ]


def _logs(name: str, run_dir: Path) -> list[Path]:
    if "/" in name or name.endswith(".csv"):
        path = Path(name)
        path = path / LOG if path.is_dir() else path
        if not path.is_file():
            raise Refusal(f"runs must name runs, folders of runs or copies of {LOG}; there is no {path}")
        return [path]
    there_are = sorted((path.parent.name for path in run_dir.glob(f"*/{LOG}")), key=_by_seed)
    found = [run_dir / other / LOG for other in there_are if name in (other, group_of(other))]
    if not found:
        listing = ", ".join(there_are) or "none yet"
        raise Refusal(f"there is no run {name!r} in {run_dir}{did_you_mean(name, there_are)}; runs: {listing}")
    return found


def _by_seed(name: str) -> tuple[str, int]:
    seed = _SEED.search(name)
    return group_of(name), int(re.sub(r"\D", "", seed[0])) if seed else 0


def _read(path: Path) -> Curve:
    name = path.parent.name if path.name == LOG else path.stem
    try:
        with open(path, newline="", errors="replace") as file:
            rows = np.array(list(_numbers(file)))
    except (OSError, csv.Error) as error:
        raise Refusal(f"{path} cannot be read: {printable(str(error))}") from error
    if not len(rows):
        raise Refusal(f"no game has finished yet in the run of {path}")
    steps, episodes, seconds, returns = rows.T
    facts = read_facts(path.parent) if path.name == LOG else {}
    return Curve(printable(name), steps, episodes, seconds / 60.0, returns, facts)


def _numbers(lines: Iterator[str]) -> Iterator[list[float]]:
    """Yield the complete rows; a run in progress may have written only half of its last one."""
    for row in csv.DictReader(lines):
        try:
            numbers = [float(row[column]) for column in _COLUMNS]
        except (KeyError, TypeError, ValueError):
            continue
        if np.isfinite(numbers).all():
            yield numbers
