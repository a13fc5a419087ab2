"""What a resumed run keeps of a CSV file: whole rows, numbered upwards, up to the update of its checkpoint."""

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ppo.outputs.folders import rename_aside, write_whole

_MAX_LINE_BYTES = 65_536
# A medium's error, no permission, a folder or a loop of links in the file's place.
_UNREADABLE = (errno.EIO, errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENXIO)


def keep_rows(path: Path, header: bytes, update: int) -> list[str]:
    """Drop from a CSV file what is later than an update, doubled or damaged, and return the messages.

    A file with another header is moved aside, but one of an earlier version, which has some of the columns, is given
    empty cells for the others. Rows are numbered by their first column, and nearly always those to drop are the last,
    so that the file need only be cut.

    Raises:
        OSError: it could not be done; the file is as it was.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            first, size = file.readline(_MAX_LINE_BYTES), os.fstat(file.fileno()).st_size
            kept = _rows_to_keep(file, header, update) if first == header else _Kept([(0, 0)])
    except FileNotFoundError:
        first, size, kept = b"", 0, _Kept([(0, 0)])
    except OSError as error:
        if error.errno not in _UNREADABLE:
            raise
        return [f"WARNING: {path} cannot be read ({error.strerror}); it was renamed to {rename_aside(path)}"]
    if _has_fewer_columns(first, header):
        write_whole(path, _with_empty_cells(path.read_bytes(), header))
        note = f"{path} is of an earlier version; columns that it lacks were added, with empty cells"
        return [note, *keep_rows(path, header, update)]
    if first != header and not (header.startswith(first) and size == len(first)):
        return [f"{path} has other columns than this run, or is damaged; it was renamed to {rename_aside(path)}"]
    if len(kept.parts) > 1:
        content = path.read_bytes()
        write_whole(path, b"".join(content[start:end] for start, end in kept.parts))
    elif kept.parts[0][1] < size:
        os.truncate(path, kept.parts[0][1])
    notes = [f"WARNING: {kept.num_damaged} damaged lines were dropped from {path}"] if kept.num_damaged else []
    if header.startswith(b"update,") and kept.num_rows < update:
        notes.append(f"{path} lacks {update - kept.num_rows} of the {update} updates before the checkpoint")
    return notes


@dataclass
class _Kept:
    """What is kept of a CSV file: parts as bytes from and to."""

    parts: list[tuple[int, int]]
    num_rows: int = 0
    num_damaged: int = 0
    """Damaged lines; not a last one that was cut short, as a process that is killed leaves it."""


def _rows_to_keep(file: IO[bytes], header: bytes, update: int) -> _Kept:
    """Find the rows up to an update in a file whose header has been read."""
    columns = _cells(header)
    position, last_number = columns.index(b"update"), 0
    kept = _Kept([(0, len(header))])
    end = len(header)
    while line := file.readline(_MAX_LINE_BYTES):
        start, end = end, end + len(line)
        is_row = line.endswith(b"\n") and line.isascii() and b"\0" not in line
        while not line.endswith(b"\n") and (line := file.readline(_MAX_LINE_BYTES)):
            end += len(line)
        cells = line.split(b",")
        is_row = is_row and len(cells) == len(columns) and _is_number(cells[0]) and _is_number(cells[position])
        if not is_row:
            kept.num_damaged += line.endswith(b"\n")
        elif int(cells[position]) <= update and int(cells[0]) > last_number:
            last_number = int(cells[0])
            kept.num_rows += 1
            if kept.parts[-1][1] == start:
                kept.parts[-1] = (kept.parts[-1][0], end)
            else:
                kept.parts.append((start, end))
    return kept


def _has_fewer_columns(old: bytes, new: bytes) -> bool:
    """Return whether a header is that of an earlier version: whole, numbered alike and with some of the columns."""
    if not old.endswith(b"\n"):
        return False
    old_columns, new_columns = _cells(old), _cells(new)
    numbered_alike = old_columns[0] == new_columns[0] and b"update" in old_columns
    return numbered_alike and len(set(old_columns)) == len(old_columns) and set(old_columns) < set(new_columns)


def _with_empty_cells(content: bytes, header: bytes) -> bytes:
    """Return a file's content under a header with more columns; lines that are no rows stay as they are."""
    first, *lines, unfinished = content.split(b"\n")
    position = {name: index for index, name in enumerate(_cells(first))}

    def widened(line: bytes) -> bytes:
        cells = _cells(line)
        if len(cells) != len(position):
            return line
        return b",".join(cells[position[name]] if name in position else b"" for name in _cells(header))

    return header + b"".join(widened(line) + b"\n" for line in lines) + unfinished


def _cells(line: bytes) -> list[bytes]:
    return line.rstrip(b"\n").split(b",")


def _is_number(cell: bytes) -> bool:
    return cell.isdigit() and len(cell) < 20
