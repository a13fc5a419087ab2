"""Folders and files that a job writes, on disks that may be full, vanish or lose power.

Folders are checked before any work starts, and moved aside but never deleted. Files are whole or absent, or grow by
whole records.
"""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ppo.settings import Refusal

# Not empty: a full disk still accepts an empty file.
_PROBE_BYTES = 65_536
# Neither blocks if a named pipe is in the way, nor follows a link.
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOFOLLOW


class GrowingFile:
    """A file of whole records after a header; records that cannot be written wait in memory and are retried.

    The file is reopened for every write, which costs some ten microseconds and detects that it was removed.
    """

    def __init__(self, path: Path, header: bytes = b"", size: int = 0) -> None:
        """Prepare to append to a file of `size` bytes, or to start it with its header."""
        self.path = path
        self.header = header
        self._size = size
        self._waiting: list[bytes] = []
        self._has_begun = False
        self._end: int | None = None
        """Where the last whole record ends, if an error may have left a partial record after it."""
        self._name_is_on_disk = False

    @property
    def num_waiting(self) -> int:
        """Number of records that are not in the file yet."""
        return len(self._waiting)

    @property
    def length(self) -> int:
        """Bytes of the file, waiting records included."""
        return (self._size or len(self.header)) + sum(map(len, self._waiting))

    def add(self, record: bytes) -> None:
        """Queue a record for the next `write`."""
        self._waiting.append(record)

    def write(self) -> bool:
        """Append all waiting records; return whether the file, with its earlier records, had been removed.

        Raises:
            OSError: the records still wait; the file ends with a whole record, or the next `write` cuts it back to one.
        """
        try:
            descriptor, is_new = os.open(self.path, _APPEND), False
        except FileNotFoundError:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, is_new = os.open(self.path, _APPEND | os.O_CREAT, 0o666), True
            self._end, self._name_is_on_disk = None, False
        try:
            size = self._append(descriptor)
        finally:
            os.close(descriptor)  # on a network disk this, too, may raise that there is no space left
        self._size = size
        was_removed = is_new and self._has_begun
        self._waiting.clear()
        self._has_begun, self._end = True, None
        return was_removed

    def sync(self) -> None:
        """Flush what was written to disk.

        Raises:
            OSError: some of it may not be on disk.
        """
        descriptor = os.open(self.path, _APPEND)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if not self._name_is_on_disk:
            sync_folder(self.path.parent)
            self._name_is_on_disk = True

    def _append(self, descriptor: int) -> int:
        """Append what waits and return the file's new size."""
        size = os.fstat(descriptor).st_size
        if self._end is not None and size > self._end:
            os.ftruncate(descriptor, self._end)
            size = self._end
        self._end = size
        content = b"".join([self.header, *self._waiting] if size == 0 else self._waiting)
        try:
            written = 0
            while written < len(content):  # after a short write, the next one raises the cause
                written += os.write(descriptor, content[written:])
        except OSError:
            os.ftruncate(descriptor, size)
            raise
        return size + len(content)


def require_writable(setting: str, folder: Path) -> None:
    """Create a folder if necessary and check that a file can be written in it.

    Raises:
        Refusal: no file can be written; names the setting. Folders created here are removed.
    """
    made: list[Path] = []
    try:
        for path in (*reversed(folder.parents), folder):
            if not os.path.isdir(path):
                path.mkdir(exist_ok=True)
                made.append(path)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:  # unnamed, so that a kill leaves nothing behind
            written = 0
            while written < _PROBE_BYTES:
                written += probe.write(bytes(_PROBE_BYTES - written))
            os.fsync(probe.fileno())
    except OSError as error:
        for path in reversed(made):
            with contextlib.suppress(OSError):
                path.rmdir()
        raise Refusal(
            f"{setting} must be a folder this user can write to, got {folder}: {_reason(folder, error)}"
        ) from error


def move_aside(folders: Sequence[Path]) -> list[Path]:
    """Rename the folders that exist to `<name>.before-<time>` and return their new names.

    Raises:
        Refusal: one of them cannot be renamed; those renamed before it are renamed back.
    """
    moved: list[tuple[Path, Path]] = []
    for folder in dict.fromkeys(folders):
        if not os.path.lexists(folder):
            continue
        try:
            moved.append((folder, rename_aside(folder)))
        except OSError as error:
            back = "".join(_move_back(*pair) for pair in reversed(moved))
            raise Refusal(f"{folder} cannot be moved aside: {error.strerror}{back}") from error
    return [aside for _, aside in moved]


def rename_aside(path: Path) -> Path:
    """Rename a file or folder to an unused name, `<name>.before-<time>`, and return the new path.

    Raises:
        OSError: it keeps its old name.
    """
    return path.rename(unused(path.with_name(f"{path.name}.before-{datetime.now():%Y%m%d-%H%M%S}")))


def unused(path: Path, suffix: str = "") -> Path:
    """Return an unused path with this suffix, with a number before the suffix if necessary.

    No other process can take the name meanwhile: only the run that holds a model's lock names files of the model.
    """
    numbered = (path.with_name(f"{path.name}-{number}{suffix}") for number in itertools.count(2))
    names = itertools.chain([path.with_name(f"{path.name}{suffix}")], numbered)
    return next(name for name in names if not os.path.lexists(name))


def write_whole(path: Path, content: bytes) -> None:
    """Replace or create a file so that, whatever happens, the old one or the new one is whole on disk.

    Raises:
        OSError: the file could not be written; the old one, if any, remains.
    """
    with contextlib.suppress(OSError):  # left by a killed process
        path.with_name(f".{path.name}.tmp").unlink()
    scratch = unused(path.with_name(f".{path.name}"), ".tmp")
    try:
        with open(scratch, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(folder: Path, error: OSError) -> str:
    for path in (*reversed(folder.parents), folder):
        if os.path.islink(path) and not os.path.exists(path):
            return f"{path} is a link to {os.readlink(path)}, which does not exist"
        if os.path.exists(path) and not os.path.isdir(path):
            return f"{path} is not a folder"
    return error.strerror or str(error)


def _move_back(folder: Path, aside: Path) -> str:
    try:
        aside.rename(folder)
    except OSError as error:
        return f"; {folder} is now {aside} and cannot be moved back: {error.strerror}"
    return ""
