"""The log of a training run, followed as it grows."""

import os
import time
from io import BufferedReader
from pathlib import Path

from ppo.outputs.untrusted import DamagedCheckpointError, open_regular
from ppo.report.logs import CURVES, MAX_LINE_BYTES, MAX_LOG_BYTES, PLACES, Columns, Rows

_MOST_POINTS = 300
_BYTES_AT_ONCE = 1 << 20
_BYTES_OF_TAIL = 200


class Progress:
    """The curves in a progress.csv; every call of `poll` reads what is new.

    A row that is still being written is left until it is complete. A file that has been replaced, or truncated and
    extended as by a resumed run, is re-read from its beginning.
    """

    def __init__(self) -> None:
        """Begin without any rows."""
        self._seen: tuple[int, ...] = ()
        self._restart()

    def poll(self, path: Path) -> bool:
        """Read up to a megabyte of new rows of a file, which need not exist; return whether the curves have changed."""
        before = self._rows
        count = before.count if before else 0
        try:
            with open_regular(path, MAX_LOG_BYTES) as (file, _):
                self._follow(file)
        except DamagedCheckpointError:
            self._seen = ()
            self._restart()
        return self._rows is not before or (self._rows.count if self._rows else 0) != count

    @property
    def columns(self) -> Columns:
        """The curves so far, in at most `2 * _MOST_POINTS` points; empty if there is no log."""
        return self._rows.columns() if self._rows else {}

    @property
    def seconds_since(self) -> float:
        """Seconds since the file was last modified; 0 if there is no file."""
        return max(0.0, time.time() - self._seen[2] / 1e9) if self._seen else 0.0

    def _restart(self) -> None:
        self._rows: Rows | None = None
        self._offset, self._tail, self._unfinished, self._is_damaged = 0, b"", b"", False

    def _follow(self, file: BufferedReader) -> None:
        status = os.fstat(file.fileno())
        seen = status.st_ino, status.st_size, status.st_mtime_ns
        if seen == self._seen and (self._is_damaged or self._offset + len(self._unfinished) == status.st_size):
            return
        is_another, self._seen = seen[:1] != self._seen[:1], seen
        if is_another or not self._has_tail(file):
            self._restart()
        if self._is_damaged:
            return
        file.seek(self._offset)
        content = file.read(_BYTES_AT_ONCE)
        lines = content.split(b"\n")
        self._unfinished = lines.pop()
        for line in lines:
            self._take(line)
        self._offset += len(content) - len(self._unfinished)
        self._tail = (self._tail + content[: len(content) - len(self._unfinished)])[-_BYTES_OF_TAIL:]
        self._is_damaged = self._is_damaged or len(self._unfinished) > MAX_LINE_BYTES

    def _has_tail(self, file: BufferedReader) -> bool:
        """Return whether the bytes read last are unchanged in the file."""
        file.seek(self._offset - len(self._tail))
        return file.read(len(self._tail)) == self._tail

    def _take(self, line: bytes) -> None:
        if self._is_damaged or len(line) > MAX_LINE_BYTES:
            self._is_damaged = True  # this program writes no such line: read no more of the file
        elif self._rows is None:
            self._rows = Rows(line, (*PLACES, *CURVES), PLACES, _MOST_POINTS, num_newest=1)
        else:
            self._rows.add(line)
