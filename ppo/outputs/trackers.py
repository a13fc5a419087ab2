"""Trackers: the outputs to which every update is reported; only rank 0 has any.

    runs/<model_name>/
        config.json          the settings, and facts about where the run takes place
        progress.csv         a row per update
        episodes.csv         a row per finished game, with the raw return of the whole game
        games/               those games, for replay (`ppo.outputs.game_log`)
        messages.txt         messages about the run, with the time
        events.out.tfevents  progress.csv for TensorBoard, and what only TensorBoard shows: see `tensorboard.py`

After a resume the CSV files read like those of an uninterrupted run: the checkpoint records their lengths, and rows
added since are cut off before new ones are written. TensorBoard hides such events itself.

No trouble with an output ends training: `Trackers` warns once and continues. Only the header and the line ends of a log
are read back, and no damage to a log is an error.
"""

import contextlib
import csv
import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from ppo.config import Config
from ppo.outputs.folders import GrowingFile, rename_aside, write_whole
from ppo.outputs.log_start import keep_start
from ppo.outputs.manifest import LOGS
from ppo.outputs.video import VideoError
from ppo.settings import printable
from ppo.standard_streams import say_on_standard_error

EPISODE_COLUMNS = ("episode", "update", "env_steps", "environment", "return", "length", "time/seconds")

Metrics = Mapping[str, float | int | None]
Clips = Callable[[int], bytes | None]
"""Returns an animated gif of the policy after this many updates, or None if no clip is due.

Raises a VideoError once if a clip could not be made; there are no more clips after that.
"""


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
    state: Mapping[str, NDArray[Any]] | None = None
    """Its initial state and actions, for replay; None if unknown."""


class OutputError(OSError):
    """An output does not currently work."""

    def __init__(self, trouble: str, relief: str) -> None:
        """Store the error message and the recovery message; outputs that fail together share the latter."""
        super().__init__(trouble)
        self.relief = relief


class Tracker(Protocol):
    """Receives every update's metrics and the games that ended in it.

    Every method may raise an OutputError; the next call retries what failed.
    """

    notes: list[str]
    """Messages about this output, cleared by the caller that shows them."""

    def log(self, metrics: Metrics, episodes: Sequence[FinishedEpisode]) -> None:
        """Record one update; the metrics are the same every time, None for those not known yet."""

    def say(self, text: str) -> None:
        """Record a message."""

    def sync(self) -> None:
        """Flush to disk what must survive a power cut, before a checkpoint relies on it."""

    def close(self) -> None:
        """Finish all output except messages."""


class Trackers:
    """Several trackers as one, none off rank 0; their errors are reported through them and never raised."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        """Report to all of `trackers`."""
        self._trackers = trackers
        self._reliefs: set[str] = set()
        """Messages for when the current troubles are over."""

    def log(self, metrics: Metrics, episodes: Sequence[FinishedEpisode]) -> None:
        """Pass an update to all trackers."""
        before = set(self._reliefs)
        over = before - self._tell_all(lambda to: to.log(metrics, episodes))
        self._reliefs -= over
        for relief in over:
            self.say(relief)

    def say(self, text: str) -> None:
        """Pass a message, made printable, to all trackers, and to standard error too if one of them fails."""
        text = printable(text)
        failed = [error for tracker in self._trackers if (error := _failure(lambda to: to.say(text), tracker))]
        new = {error.relief: error for error in failed if error.relief not in self._reliefs}
        self._reliefs |= set(new)
        for words in (*(f"WARNING: {error}" for error in new.values()), *([text] if failed else [])):
            say_on_standard_error(words)

    def sync(self) -> None:
        """Flush what was logged to disk."""
        self._tell_all(lambda to: to.sync())

    def close(self) -> None:
        """Close all trackers; only messages can be passed on afterwards."""
        self._tell_all(lambda to: to.close())

    def _tell_all(self, tell: Callable[[Tracker], None]) -> set[str]:
        """Call `tell` with every tracker, warn of new trouble, and return the reliefs of all current trouble."""
        failed = [error for tracker in self._trackers if (error := _failure(tell, tracker))]
        notes = [note for tracker in self._trackers for note in tracker.notes]
        for tracker in self._trackers:
            tracker.notes.clear()
        new = {error.relief: f"WARNING: {error}" for error in failed if error.relief not in self._reliefs}
        self._reliefs |= set(new)
        for words in dict.fromkeys([*notes, *new.values()]):
            self.say(words)
        return {error.relief for error in failed}


class CsvFiles:
    """progress.csv and episodes.csv; a row is written when it is logged or, if that fails, with a later one."""

    def __init__(self, folder: Path, lengths: dict[str, int]) -> None:
        """Prepare to append to both files, each after the bytes that `lengths` gives for it.

        Args:
            folder: folder of the files.
            lengths: bytes of each file by name, absent for a new one; kept up to date for the next checkpoint.
        """
        self.notes: list[str] = []
        self._folder, self._lengths = folder, lengths
        self._progress: GrowingFile | None = None  # its columns are unknown before the first update
        self._episodes = self._file("episodes.csv", _csv_row(EPISODE_COLUMNS))
        self._to_keep = {name: lengths.get(name, 0) for name in LOGS}

    def log(self, metrics: Metrics, episodes: Sequence[FinishedEpisode]) -> None:
        """Append a row for the update, and a row per game."""
        if self._progress is None:
            self._progress = self._file("progress.csv", _csv_row(list(metrics)))
        self._progress.add(_csv_row(["" if value is None else str(value) for value in metrics.values()]))
        for game in episodes:
            row = (game.episode, game.update, game.env_steps, game.environment, game.episode_return)
            self._episodes.add(_csv_row([*row, game.episode_length, f"{game.seconds:.3f}"]))
        with trouble_with(self._folder):
            self._write()

    def say(self, text: str) -> None:
        """Ignore messages."""

    def sync(self) -> None:
        """Flush all rows to disk."""
        with trouble_with(self._folder):
            self._write()
            for file in self._files():
                file.sync()

    def close(self) -> None:
        """Write waiting rows, without a later retry."""
        with loss_of(self._folder):
            self._write()

    def _file(self, name: str, header: bytes) -> GrowingFile:
        return GrowingFile(self._folder / name, header, self._lengths.get(name, 0))

    def _files(self) -> list[GrowingFile]:
        return [file for file in (self._progress, self._episodes) if file]

    def _write(self) -> None:
        """Write both files, the second even if the first fails."""
        failed: OSError | None = None
        for file in self._files():
            try:
                self._write_one(file)
            except OSError as error:
                failed = error
            self._lengths[file.path.name] = file.length
        if failed:
            raise failed

    def _write_one(self, file: GrowingFile) -> None:
        name = file.path.name
        if name in self._to_keep:
            self.notes += keep_start(file.path, file.header, self._to_keep[name])
            del self._to_keep[name]
        if file.write():
            self.notes.append(removal_note(self._folder))


class MessageFile:
    """messages.txt: the messages about a run, one per line, from all its starts."""

    def __init__(self, folder: Path) -> None:
        """Prepare to append to the file."""
        self.notes: list[str] = []
        self._folder, self._file = folder, GrowingFile(folder / "messages.txt")
        self._has_way = False

    def log(self, metrics: Metrics, episodes: Sequence[FinishedEpisode]) -> None:
        """Write waiting messages; metrics are not for this file."""
        self._write()

    def say(self, text: str) -> None:
        """Append a line; if it cannot be written, the next update reports it."""
        self._file.add(f"{datetime.now().isoformat(timespec='seconds')} {text}\n".encode(errors="replace"))
        with contextlib.suppress(OSError):
            self._write()

    def sync(self) -> None:
        """Write waiting messages; no checkpoint relies on this file."""
        self._write()

    def close(self) -> None:
        """Write waiting messages, without a later retry."""
        with loss_of(self._folder):
            self._write()

    def _write(self) -> None:
        if not self._file.num_waiting:
            return
        with trouble_with(self._folder):
            if not self._has_way and os.path.lexists(self._file.path):
                self._make_way(self._file.path)
            self._has_way = True
            self._file.write()

    def _make_way(self, path: Path) -> None:
        """Rename what is in the file's place if it is not a regular file, such as a link."""
        if not stat.S_ISREG(os.lstat(path).st_mode):
            self.notes.append(f"WARNING: {path} is no regular file; it was renamed to {rename_aside(path)}")


def write_config(folder: Path, config: Config, **facts: Any) -> list[str]:
    """Write the run's settings, and facts about where it runs, to config.json; return the messages."""
    content = json.dumps({**config.to_dict(), **facts}, indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "config.json", content.encode())
    except OSError as error:
        return [f"WARNING: {folder / 'config.json'} was not written: {error.strerror}"]
    return []


def _csv_row(cells: Sequence[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def newest_clip(clips: Clips, metrics: Metrics, notes: list[str]) -> bytes | None:
    """Return the clip of an update, or None if there is none; note the error if it could not be made."""
    try:
        return clips(int(metrics["update"] or 0))
    except VideoError as error:
        notes.append(f"WARNING: {error}; there are no more clips until the next start")
        return None


def removal_note(folder: Path) -> str:
    """Return the message for files that were removed from a folder and are started anew."""
    return f"WARNING: files were removed from {folder} during the run; they are recreated without their earlier content"


def _failure(tell: Callable[[Tracker], None], tracker: Tracker) -> OutputError | None:
    try:
        tell(tracker)
    except OutputError as error:
        return error
    except OSError as error:
        return OutputError(str(error), f"over: {error}")
    return None


@contextlib.contextmanager
def trouble_with(folder: Path) -> Iterator[None]:
    """Turn an OSError into an OutputError about the logs in a folder, which may pass."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"the logs in {folder} cannot be written ({error.strerror}); training continues, and the missing "
            "entries are kept in memory until they can be written",
            relief=f"the logs in {folder} are written again, with what had to wait",
        ) from error


@contextlib.contextmanager
def loss_of(folder: Path) -> Iterator[None]:
    """Turn an OSError into an OutputError about the logs in a folder, which will not pass."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"the logs in {folder} lack their last rows ({error.strerror})", relief="") from error
