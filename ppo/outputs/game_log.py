"""A log of the games of a training run, each as its initial state and its actions, so that any can be replayed.

    runs/<model_name>/games/000000000001.games      named after the first game in it

A file is a sequence of blocks. Each block is a header and arrays that are compressed together, and holds the games that
ended between two checkpoints, or fewer if they are long. The games are the rows of episodes.csv, from all ranks; rank 0
writes them. A resumed run cuts off the blocks after its checkpoint, reading only their headers, so that its log holds
the games of an uninterrupted run. When the log exceeds its allowed bytes, the oldest file is deleted.

Reading a log executes nothing, whoever wrote it: a block is hashed, bounded and decoded like a checkpoint.
"""

import contextlib
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ppo.outputs.folders import GrowingFile, rename_aside
from ppo.outputs.tensor_file import MAX_FILE_BYTES, decode_tensors, encode_tensors
from ppo.outputs.trackers import FinishedEpisode, Metrics, OutputError
from ppo.outputs.untrusted import DamagedCheckpointError, only_damage, open_regular
from ppo.settings import Refusal

_MEGABYTE = 1_000_000
_FILES = 16
"""Number of files that share the allowed bytes, since the oldest is deleted as a whole."""
_BYTES_AT_ONCE = 1_000_000
"""Bytes of games that may wait for the next checkpoint: until then, a resumed run would play them again anyway."""
_SUFFIX = ".games"
_MAGIC = b"PPOGAME1"
# Magic, last update, numbers of the first and last game, bytes of the packed and unpacked block, CRC-32 when packed.
_HEADER = struct.Struct("<8sQQQQQI")
_STATE = "state/"

GameState = dict[str, NDArray[Any]]
"""The initial state of a game, and its `actions`: see `Environments.take_games`."""


@dataclass(frozen=True)
class LoggedGame:
    """A game of a training run."""

    number: int
    environment: int
    episode_return: float
    episode_length: int
    state: GameState


@dataclass(frozen=True)
class _Block:
    """The header of a block of consecutive games."""

    update: int
    first: int
    last: int
    num_bytes: int
    num_unpacked: int
    crc: int


class GameLog:
    """A tracker that writes finished games."""

    def __init__(self, folder: Path, megabytes: int, update: int) -> None:
        """Prepare to append to the log of a run.

        Args:
            folder: the run's folder.
            megabytes: maximum size of the log.
            update: the run's last update; blocks of later updates are cut off before the first game is added.
        """
        self.notes: list[str] = []
        self._folder, self._bytes, self._update = folder / "games", megabytes * _MEGABYTE, update
        self._file_bytes = min(self._bytes // _FILES, MAX_FILE_BYTES)
        self._has_begun = self._is_failing = False
        self._games: list[FinishedEpisode] = []
        self._waiting = 0
        self._file: GrowingFile | None = None

    def log(self, metrics: Metrics, episodes: Sequence[FinishedEpisode]) -> None:
        """Queue the games of an update; they are written with the next checkpoint, or earlier if they are many."""
        for game in episodes:
            if game.state is not None:
                self._games.append(game)
                self._waiting += _bytes_of(game)
        while self._waiting > max(self._bytes, _BYTES_AT_ONCE):  # writing has failed for a long time
            self._waiting -= _bytes_of(self._games.pop(0))  # as the log itself forgets the oldest
        if self._is_failing or self._waiting >= min(_BYTES_AT_ONCE, self._file_bytes):
            self._write()

    def say(self, text: str) -> None:
        """Ignore messages."""

    def sync(self) -> None:
        """Flush all games to disk."""
        self._write()
        with self._trouble():
            if self._file is not None and self._file.length:
                self._file.sync()

    def close(self) -> None:
        """Write the waiting games, without a later retry."""
        self._write()

    def _write(self) -> None:
        """Write the waiting games as one block, and delete the oldest files while the log is too large."""
        with self._trouble():
            if not self._has_begun:
                self._begin()
            self._flush()  # so that at most one block waits in the file
            if self._games:
                block, first = _encode(self._games), self._games[0].episode
                if self._file is None or self._file.length + len(block) > self._file_bytes:
                    self._file = self._next_file(first)
                self._file.add(block)
                self._games, self._waiting = [], 0
                self._flush()
            self._is_failing = False

    def _flush(self) -> None:
        if self._file is not None and self._file.num_waiting and self._file.write():
            self.notes.append(
                f"WARNING: {self._file.path} was removed during the run; it is recreated without its earlier content"
            )

    def _begin(self) -> None:
        """Cut off the blocks after the checkpoint, and continue with the last file."""
        for path in _files_in(self._folder):
            kept, size = _kept_bytes(path, self._update)
            if kept is None:
                self.notes.append(f"WARNING: {path} is no log of games; it was renamed to {rename_aside(path)}")
            elif kept == 0:
                path.unlink()
            else:
                if kept < size:
                    os.truncate(path, kept)
                self._file = GrowingFile(path, size=kept)
        self._has_begun = True

    def _next_file(self, first: int) -> GrowingFile:
        """Return a new file, named after its first game, and make room for it."""
        paths = _files_in(self._folder)
        sizes = [os.lstat(path).st_size for path in paths]
        while paths and sum(sizes) > self._bytes - self._file_bytes:
            paths.pop(0).unlink(missing_ok=True)
            sizes.pop(0)
        return GrowingFile(self._folder / f"{first:012}{_SUFFIX}")

    @contextlib.contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._is_failing = True
            raise OutputError(
                f"the games in {self._folder} cannot be written ({error.strerror}); training continues, and as "
                "many games as --replay_megabytes allows are kept in memory until they can be written",
                relief=f"the games in {self._folder} are written again",
            ) from error


def _bytes_of(game: FinishedEpisode) -> int:
    return sum(array.nbytes for array in (game.state or {}).values())


def find_game(run_folder: Path, number: int) -> LoggedGame:
    """Return a game of a training run by its number in episodes.csv.

    Raises:
        Refusal: the game is not in the log; says which games are.
        DamagedCheckpointError: the log is damaged where the game should be.
    """
    folder = run_folder / "games"
    paths = _files_in(folder)
    first = last = 0
    for path in paths:
        with open_regular(path, MAX_FILE_BYTES) as (file, size):
            for block, at in _blocks(file, size):
                first, last = first or block.first, block.last
                if block.first <= number <= block.last:
                    file.seek(at)
                    games = _decode(path, block, file.read(block.num_bytes))
                    found = next((game for game in games if game.number == number), None)
                    if found is not None:
                        return found
    if not last:
        raise Refusal(
            f"episode {number} cannot be played again: {folder} has no logged games; games are not logged by older "
            "versions, or with --replay_megabytes=0 or --env_engine=vector"
        )
    raise Refusal(
        f"episode must be one of those in {folder}, from {first} to {last}, got {number}; the oldest are deleted when "
        "the log exceeds --replay_megabytes, and episodes of more than 100,000 steps are not logged"
    )


def _files_in(folder: Path) -> list[Path]:
    """Return the files of a log, oldest first."""
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / n for n in names if n.endswith(_SUFFIX) and n[: -len(_SUFFIX)].isdecimal() and n.isascii()]


def _blocks(file: BufferedReader, size: int) -> Iterator[tuple[_Block, int]]:
    """Yield the whole blocks of a file, each with the offset of its data; anything after the last is ignored."""
    at = 0
    while at + _HEADER.size <= size:
        file.seek(at)
        magic, *numbers = _HEADER.unpack(file.read(_HEADER.size))
        block = _Block(*numbers)
        if magic != _MAGIC or block.num_bytes > size - at - _HEADER.size:
            return
        yield block, at + _HEADER.size
        at += _HEADER.size + block.num_bytes


def _kept_bytes(path: Path, update: int) -> tuple[int | None, int]:
    """Return the bytes of a file's blocks up to an update (None if it is not a regular file), and its size."""
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return None, 0
    with open(path, "rb") as file:
        size, kept = os.fstat(file.fileno()).st_size, 0
        for block, at in _blocks(file, size):
            if block.update > update:
                break
            kept = at + block.num_bytes
    return kept, size


def _encode(games: Sequence[FinishedEpisode]) -> bytes:
    """Encode games as a block: their actions are concatenated, all other arrays stacked."""
    arrays: dict[str, NDArray[Any]] = {
        "number": np.array([game.episode for game in games], np.int64),
        "environment": np.array([game.environment for game in games], np.int64),
        "episode_return": np.array([game.episode_return for game in games], np.float64),
        "episode_length": np.array([game.episode_length for game in games], np.int64),
    }
    states = [game.state for game in games if game.state is not None]
    for name in states[0]:
        parts = [state[name] for state in states]
        arrays[_STATE + name] = _narrow(np.concatenate(parts)) if name == "actions" else np.stack(parts)
    unpacked = encode_tensors({name: torch.from_numpy(array) for name, array in arrays.items()})
    packed = zlib.compress(unpacked, 1)
    numbers = (games[-1].update, games[0].episode, games[-1].episode, len(packed), len(unpacked), zlib.crc32(packed))
    return _HEADER.pack(_MAGIC, *numbers) + packed


def _narrow(actions: NDArray[Any]) -> NDArray[Any]:
    """Return small integers as bytes, which compress faster and better."""
    is_small = actions.dtype == np.int64 and actions.size and actions.min() >= 0 and actions.max() < 256
    return actions.astype(np.uint8) if is_small else actions


def _decode(path: Path, block: _Block, packed: bytes) -> list[LoggedGame]:
    """Decode the games of a block.

    Raises:
        DamagedCheckpointError: the block is not as this program writes it.
    """
    with only_damage(path):
        if block.num_unpacked > MAX_FILE_BYTES or zlib.crc32(packed) != block.crc:
            raise DamagedCheckpointError("is damaged")
        unpacker = zlib.decompressobj()
        unpacked = unpacker.decompress(packed, max(1, block.num_unpacked))
        if len(unpacked) != block.num_unpacked or unpacker.unconsumed_tail:
            raise DamagedCheckpointError("is damaged")
        arrays = {name: tensor.numpy() for name, tensor in decode_tensors(unpacked, path).items()}
        number, environment, returns, lengths = (
            arrays.pop(name).astype(kind, casting="safe")
            for name, kind in (
                ("number", np.int64),
                ("environment", np.int64),
                ("episode_return", np.float64),
                ("episode_length", np.int64),
            )
        )
        ends = np.cumsum(lengths)
        if (lengths < 0).any() or len(arrays[f"{_STATE}actions"]) != (ends[-1] if len(ends) else 0):
            raise DamagedCheckpointError("has other numbers of actions than its games have steps")
        games = []
        for place in range(len(number)):
            state = {name.removeprefix(_STATE): array[place] for name, array in arrays.items()}
            state["actions"] = arrays[f"{_STATE}actions"][ends[place] - lengths[place] : ends[place]]
            of = int(number[place]), int(environment[place]), float(returns[place]), int(lengths[place])
            games.append(LoggedGame(*of, state))
        return games
