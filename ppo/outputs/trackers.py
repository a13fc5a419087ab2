"""Trackers: who is told about every update. Rank 0 has the files and the screen, the other ranks have none.

    runs/<model_name>/
        config.json          the settings, and the versions they ran with
        progress.csv         a row per update
        episodes.csv         a row per finished game, raw return of the whole game
        events.out.tfevents  the same as progress.csv, for TensorBoard

After a stop and a resume the CSV files read like those of a run that was never stopped: rows past the checkpoint are
dropped before new ones are added.
"""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from ppo.config import Config

EPISODE_COLUMNS = ("episode", "update", "env_steps", "environment", "return", "length", "time/seconds")

Metrics = Mapping[str, float | int | None]


@dataclass(frozen=True)
class FinishedEpisode:
    """A finished game, numbered over the whole run."""

    episode: int
    update: int
    env_steps: int
    environment: int
    episode_return: float
    episode_length: int
    seconds: float


class Tracker(Protocol):
    """Receives every update's metrics and the games that ended in it."""

    def log(self, metrics: Metrics, episodes: Sequence[FinishedEpisode]) -> None:
        """Take note of one update; the same metrics every time, None for what is not known yet."""

    def say(self, text: str) -> None:
        """Take note of an event in words."""

    def close(self) -> None:
        """Finish all output."""


class Trackers:
    """Several trackers as one; none of them off rank 0."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        """Tell all of `trackers`."""
        self._trackers = trackers

    def log(self, metrics: Metrics, episodes: Sequence[FinishedEpisode]) -> None:
        """Pass an update on."""
        for tracker in self._trackers:
            tracker.log(metrics, episodes)

    def say(self, text: str) -> None:
        """Pass an event on."""
        for tracker in self._trackers:
            tracker.say(text)

    def close(self) -> None:
        """Close all."""
        for tracker in self._trackers:
            tracker.close()


class CsvFiles:
    """progress.csv and episodes.csv, flushed row by row."""

    def __init__(self, folder: Path, resumed_update: int) -> None:
        """Open both files to append, keeping the rows of the first `resumed_update` updates."""
        folder.mkdir(parents=True, exist_ok=True)
        self._progress_path = folder / "progress.csv"
        episodes_path = folder / "episodes.csv"
        for path in (self._progress_path, episodes_path):
            _drop_rows_after(path, resumed_update)
        self._progress_file: IO[str] | None = None
        self._progress: csv.DictWriter[str] | None = None
        new = not episodes_path.exists()
        self._episodes_file = open(episodes_path, "a", newline="")
        self._episodes = csv.writer(self._episodes_file, lineterminator="\n")
        if new:
            self._episodes.writerow(EPISODE_COLUMNS)
            self._episodes_file.flush()

    def log(self, metrics: Metrics, episodes: Sequence[FinishedEpisode]) -> None:
        """Append a row, and a row per game."""
        if self._progress is None or self._progress_file is None:
            new = not self._progress_path.exists()
            self._progress_file = open(self._progress_path, "a", newline="")
            self._progress = csv.DictWriter(self._progress_file, list(metrics), lineterminator="\n")
            if new:
                self._progress.writeheader()
        self._progress.writerow({name: _as_text(value) for name, value in metrics.items()})
        self._progress_file.flush()
        for game in episodes:
            row = (game.episode, game.update, game.env_steps, game.environment, game.episode_return)
            self._episodes.writerow([*row, game.episode_length, f"{game.seconds:.3f}"])
        self._episodes_file.flush()

    def say(self, text: str) -> None:
        """Words are not for the CSV files."""

    def close(self) -> None:
        """Close both files."""
        if self._progress_file:
            self._progress_file.close()
        self._episodes_file.close()


class TensorBoard:
    """Scalars for `tensorboard --logdir runs`, under the names of the CSV columns."""

    def __init__(self, folder: Path, resumed_steps: int) -> None:
        """Open an event file that overrides what an interrupted run wrote past `resumed_steps`."""
        from torch.utils.tensorboard import SummaryWriter

        purge = resumed_steps + 1 if resumed_steps else None
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def log(self, metrics: Metrics, episodes: Sequence[FinishedEpisode]) -> None:
        """Write every known metric at this number of steps."""
        steps = metrics["env_steps"]
        for name, value in metrics.items():
            if value is not None and name not in ("update", "env_steps"):
                self._writer.add_scalar(name, value, steps)
        for game in episodes:
            self._writer.add_scalar("episode/return", game.episode_return, game.env_steps)
            self._writer.add_scalar("episode/length", game.episode_length, game.env_steps)

    def say(self, text: str) -> None:
        """Words are not for the curves."""

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


def write_config(folder: Path, config: Config, **facts: Any) -> None:
    """Write the run's settings, and facts about where it runs, to config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**config.to_dict(), **facts}, indent=1)
    (folder / "config.json").write_text(text + "\n")


def _as_text(value: float | int | None) -> str:
    return "" if value is None else str(value)


def _drop_rows_after(path: Path, update: int) -> None:
    """Rewrite a CSV file without the rows of later updates and without a last line that was cut short."""
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    if update == 0 or not lines:
        path.unlink()
        return
    columns = next(csv.reader([lines[0]]))
    position = columns.index("update")
    kept = [lines[0]]
    for line in lines[1:]:
        row = next(csv.reader([line]))
        if len(row) == len(columns) and line.endswith("\n") and int(row[position]) <= update:
            kept.append(line)
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text("".join(kept))
    os.replace(scratch, path)
