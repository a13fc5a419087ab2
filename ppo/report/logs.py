"""A run's logs as columns of bounded length, whatever the files contain.

The files of a run folder are untrusted: only known columns are read; anything but a finite number becomes NaN.
"""

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo.config import Config, section_types
from ppo.families import family_of
from ppo.outputs.untrusted import DamagedCheckpointError, brief, only_damage, open_regular, parse_json
from ppo.settings import Refusal

PHASES = ("env", "inference", "learn", "communicate", "evaluation", "save")
CURVES = (
    *("time/steps_per_second", *(f"time/{phase}" for phase in PHASES), "rollout/return_mean"),
    *("evaluation/return_mean", "update/entropy", "update/approx_kl", "update/clip_fraction"),
    *("update/explained_variance", "update/value_loss", "update/grad_norm", "update/learning_rate"),
)
PLACES = ("env_steps", "time/seconds")
_GAMES = ("env_steps", "time/seconds", "return", "length")
_MOST_POINTS = 700
_MOST_GAMES = 1500
_NEWEST_GAMES = 1000
MAX_LOG_BYTES = 1 << 30
_MAX_TEXT_BYTES = 1 << 20
MAX_LINE_BYTES = 65_536
_MOST_MESSAGES = 40
_MOST_HOSTS = 50
_MOST_RANKS = 4096
# Larger numbers are read as NaN: this one fits float32, and no world's return comes near it.
_LARGEST = 1e30

Columns = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Logs:
    """What a run wrote about itself."""

    curves: Columns
    """Columns of progress.csv: each point is a mean over equally many updates, NaN where none has a number."""
    games: Columns
    """Columns of episodes.csv, for some of the games."""
    num_games: int
    """How many games episodes.csv has."""
    newest: Columns
    """Columns of episodes.csv, for the newest games."""
    messages: list[str]
    """The newest warnings of messages.txt."""
    settings: Config | None
    """The settings in config.json; None if this version cannot read them."""
    facts: dict[str, str]
    """When, where and how the run was started, from config.json."""
    evaluation: dict[str, float] | None
    """From evaluation.json: mean return, number of games and the agent's steps."""


def read_logs(folder: Path) -> Logs:
    """Read the logs in a run's folder; missing or damaged ones are empty."""
    curves, _, _ = _read_csv(folder / "progress.csv", (*PLACES, *CURVES), PLACES, _MOST_POINTS)
    games, newest, num_games = _read_csv(folder / "episodes.csv", _GAMES, _GAMES, _MOST_GAMES)
    config = _read_object(folder / "config.json")
    evaluation = _evaluation_of(_read_object(folder / "evaluation.json"))
    messages, settings, facts = _read_messages(folder), _settings_of(config), _facts_of(config)
    return Logs(curves, games, num_games, newest, messages, settings, facts, evaluation)


def read_settings(folder: Path) -> Config | None:
    """Read the settings of a run from config.json in its folder; None if there are none that this version can read."""
    return _settings_of(_read_object(folder / "config.json"))


def read_facts(folder: Path) -> dict[str, str]:
    """Return when, where and how the run in a folder was started; empty if its config.json does not say so."""
    return _facts_of(_read_object(folder / "config.json"))


def with_card(logs: Logs, path: Path) -> Logs:
    """Return the logs with their gaps filled from a shipped agent's card."""
    card = _read_object(path)
    evaluated = card.get("evaluation")
    evaluation = _evaluation_of(evaluated) if isinstance(evaluated, dict) else None
    return dataclasses.replace(logs, facts={**_facts_of(card), **logs.facts}, evaluation=logs.evaluation or evaluation)


def _read_csv(path: Path, names: Sequence[str], last: Sequence[str], most: int) -> tuple[Columns, Columns, int]:
    """Return the named columns in at most `2 * most` rows, the newest rows, and the number of rows in the file."""
    lines = _lines(path)
    rows = Rows(next(lines, b""), names, last, most)
    for line in lines:
        rows.add(line)
    return rows.columns(), rows.newest(), rows.count


class Rows:
    """The rows read from a file so far, as columns of bounded length."""

    def __init__(
        self, header: bytes, names: Sequence[str], last: Sequence[str], most: int, num_newest: int = _NEWEST_GAMES
    ) -> None:
        """Begin before the first row.

        Args:
            header: the first line of the file.
            names: the columns to keep.
            last: the columns for which a merged row holds the last value; the others hold means.
            most: half the largest number of merged rows.
            num_newest: how many of the newest rows are also kept unmerged.
        """
        found = header.decode(errors="replace").rstrip("\n").split(",")
        self._names, self._most = names, most
        self._places = [found.index(name) if name in found else -1 for name in names]
        self._is_last = np.array([name in last for name in names])
        self._rows: list[NDArray[np.float64]] = []
        self._bucket: list[NDArray[np.float64]] = []
        self._newest: deque[bytes] = deque(maxlen=num_newest)
        self._last, self._stride = b"", 1
        self.count = 0

    def add(self, line: bytes) -> None:
        """Add the next row."""
        self.count += 1
        self._last = line
        self._newest.append(line)
        if not self._is_last.all():
            self._bucket.append(self._parsed(line))
        if self.count % self._stride == 0:
            self._rows.append(self._under_way())
            self._bucket = []
            if len(self._rows) == 2 * self._most:
                pairs = range(0, len(self._rows), 2)
                self._rows = [_merged(self._rows[place : place + 2], self._is_last) for place in pairs]
                self._stride *= 2

    def columns(self) -> Columns:
        """Return all rows, merged."""
        unmerged = [self._under_way()] if self.count % self._stride else []
        return self._columns([*self._rows, *unmerged])

    def newest(self) -> Columns:
        """Return the newest rows, unmerged."""
        return self._columns([self._parsed(line) for line in self._newest])

    def _under_way(self) -> NDArray[np.float64]:
        return _merged(self._bucket or [self._parsed(self._last)], self._is_last)

    def _parsed(self, line: bytes) -> NDArray[np.float64]:
        cells = line.decode(errors="replace").split(",")
        return np.array([_number(cells[place]) if 0 <= place < len(cells) else np.nan for place in self._places])

    def _columns(self, rows: list[NDArray[np.float64]]) -> Columns:
        block = np.array(rows).reshape(len(rows), len(self._names))
        return {name: block[:, place] for place, name in enumerate(self._names)}


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the complete lines of a file, up to the first that cannot be read."""
    try:
        with open_regular(path, MAX_LOG_BYTES) as (file, _):
            while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                yield line
    except DamagedCheckpointError:
        return


def _number(text: str) -> float:
    try:
        value = float(text) if len(text) < 40 else np.nan
    except ValueError:
        return np.nan
    return value if abs(value) <= _LARGEST else np.nan


def _merged(rows: list[NDArray[np.float64]], is_last: NDArray[np.bool_]) -> NDArray[np.float64]:
    if len(rows) == 1:
        return rows[0]
    block = np.array(rows)
    known = ~np.isnan(block)
    sums = np.where(known, block, 0.0).sum(0)
    means = np.where(known.any(0), sums / np.maximum(known.sum(0), 1), np.nan)
    return np.where(is_last, block[-1], means)


def _read_messages(folder: Path) -> list[str]:
    """Return the newest warnings of messages.txt."""
    try:
        with open_regular(folder / "messages.txt", MAX_LOG_BYTES) as (file, size):
            file.seek(max(0, size - _MAX_TEXT_BYTES))
            lines = file.read(_MAX_TEXT_BYTES).decode(errors="replace").splitlines()
    except DamagedCheckpointError:
        return []
    return [brief(line) for line in lines if "WARNING" in line][-_MOST_MESSAGES:]


def _settings_of(data: dict[str, Any]) -> Config | None:
    """Return the settings in the contents of config.json; None if they cannot be read."""
    try:
        with only_damage(Path("config.json")):
            family = family_of(data["run"]["env_name"])
            return Config.from_dict({name: data[name] for name in section_types(family) if name in data}, family)
    except (DamagedCheckpointError, Refusal):
        return None


def _facts_of(data: dict[str, Any]) -> dict[str, str]:
    """Return when, where and how a run was started; facts of the wrong type are left out."""
    names = ("started", "command", "commit", "code")
    facts = {name: _long(data[name]) for name in names if isinstance(data.get(name), str)}
    ranks, hosts = data.get("ranks"), data.get("hosts")
    if type(ranks) is int and ranks > 0:  # true is not a number of ranks
        facts["ranks"] = str(ranks)  # parse_json refuses huge integers
    if isinstance(hosts, list):
        own = [host for host in hosts[:_MOST_RANKS] if isinstance(host, str)]
        counts = {host: own.count(host) for host in list(dict.fromkeys(own))[:_MOST_HOSTS]}
        facts["hosts"] = _long(", ".join(f"{host} ({n} ranks)" if n > 1 else host for host, n in counts.items()))
    return facts


def _evaluation_of(data: dict[str, Any]) -> dict[str, float] | None:
    numbers = [data.get(name) for name in ("return_mean", "episodes", "env_steps")]
    known = [float(number) for number in numbers if isinstance(number, int | float) and abs(number) <= _LARGEST]
    return dict(zip(("score", "games", "steps"), known, strict=True)) if len(known) == len(numbers) else None


def _read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; empty if there is none."""
    try:
        with open_regular(path, _MAX_TEXT_BYTES) as (file, size):
            data = parse_json(file.read(size))
    except DamagedCheckpointError:
        return {}
    return data if isinstance(data, dict) else {}


def _long(text: str) -> str:
    """Return a text as one printable line of at most 2,000 characters."""
    return "".join(brief(text[place : place + 200]) for place in range(0, min(len(text), 2000), 200))
