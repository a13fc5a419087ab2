"""What a resumed run keeps of a log: the bytes counted by its checkpoint.

Only the header and the end of the kept part are read, so that a large file costs neither time nor memory.
"""

import errno
import os
import stat
from pathlib import Path

from ppo.outputs.folders import rename_aside

_MAX_LINE_BYTES = 65_536
# A disk error, missing permission, or a folder, link or socket in the file's place.
_IN_THE_WAY = (errno.EIO, errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENXIO)


def keep_start(path: Path, header: bytes, length: int) -> list[str]:
    """Truncate a log after the last whole line within its first `length` bytes, and return the messages.

    Anything that is not a log with this header is renamed.

    Raises:
        OSError: the file could not be truncated or renamed; it is unchanged.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its other end.
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return [f"WARNING: {path} is missing and is recreated"] if length else []
    except OSError as error:
        if error.errno not in _IN_THE_WAY:
            raise
        return [f"WARNING: {path} cannot be opened ({error.strerror}); it was renamed to {rename_aside(path)}"]
    try:
        kept = _cut(descriptor, header, length)
    finally:
        os.close(descriptor)
    if kept is None:
        return [
            f"WARNING: {path} has other columns than this run, or is damaged; it was renamed to {rename_aside(path)}"
        ]
    return [f"WARNING: {path} lacks {length - kept} bytes that it had at the checkpoint"] if kept < length else []


def _cut(descriptor: int, header: bytes, length: int) -> int | None:
    """Truncate a file and return its new size, or None if it is not a log with this header."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return None
    first = os.pread(descriptor, len(header), 0)
    if header.startswith(first) and status.st_size < len(header):
        kept = 0  # the file ends within the header, which is rewritten
    elif first == header:
        end = min(status.st_size, max(length, len(header)))
        start = max(0, end - _MAX_LINE_BYTES)
        kept = start + os.pread(descriptor, end - start, start).rfind(b"\n") + 1
        if kept == start:
            return None
    else:
        return None
    if kept < status.st_size:
        os.ftruncate(descriptor, kept)
    return kept
