"""Untrusted files: read without following links, blocking, executing anything or trusting any number in them.

Any content that this program would not write raises DamagedCheckpointError, whatever the bytes.
"""

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from ppo.settings import Refusal, printable

_MAX_INTEGER = 2**63 - 1


class DamagedCheckpointError(Exception):
    """A file or folder is not a checkpoint as this program writes it."""


@contextmanager
def only_damage(path: Path) -> Iterator[None]:
    """Turn every exception raised while a file's content is interpreted into a DamagedCheckpointError.

    No list of the exceptions that libraries raise would be complete.

    Raises:
        DamagedCheckpointError: anything but a Refusal or a MemoryError was raised; names the file.
    """
    try:
        yield
    except (Refusal, MemoryError):
        raise
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"{path} {error}") from error
    except Exception as error:
        what = f"{type(error).__name__}: {brief(error)}"
        raise DamagedCheckpointError(f"{path} cannot be understood ({what})") from error


@contextmanager
def open_regular(path: Path, max_bytes: int) -> Iterator[tuple[BufferedReader, int]]:
    """Open a regular file of at most `max_bytes` and yield it with its size.

    Raises:
        DamagedCheckpointError: it is missing, too large, or a link, pipe, device or folder, or reading it raised an
            OSError.
    """
    try:
        _require_regular(path, os.lstat(path).st_mode)  # opening some devices has side effects
        # Without O_NONBLOCK, opening a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)  # of the open file: the path may name another one by now
            _require_regular(path, status.st_mode)
            if status.st_size > max_bytes:
                raise DamagedCheckpointError(f"{path} has {status.st_size} bytes, more than the {max_bytes} allowed")
            yield file, status.st_size
    except OSError as error:
        raise DamagedCheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def parse_json(content: bytes) -> Any:
    """Parse JSON more strictly than Python does: no NaN, no infinity, no duplicate keys, no huge integers.

    Raises:
        DamagedCheckpointError: the content is not such JSON.
    """
    try:
        return json.loads(
            content.decode(),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_real,
            parse_constant=_constant,
        )
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"is not JSON: {brief(error)}") from error


def brief(something: object) -> str:
    """Return an error, or a value from a file, as one printable line of bounded length."""
    text = printable(str(something)[:200])
    return text if len(str(something)) <= 200 else f"{text}..."


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise DamagedCheckpointError(f"{path} is not a regular file")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a key occurs twice")
    return members


def _integer(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > _MAX_INTEGER:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError("a number out of range")
    return float(text)


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no number")
