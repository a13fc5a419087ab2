"""What a resumed run keeps of a log: the bytes that its checkpoint counts.

Only the header of the file and the end of what is kept are read, so that its size costs neither time nor memory.
"""

import errno
import os
import stat
from pathlib import Path

from ppo.outputs.folders import rename_aside

_MAX_LINE_BYTES = 65_536
# A medium's error, no permission, a folder, a link or a socket in the file's place.
_IN_THE_WAY = (errno.EIO, errno.EACCES, errno.EISDIR, errno.ELOOP, errno.ENXIO)


def keep_start(path: Path, header: bytes, length: int) -> list[str]:
    """Cut a log behind its last whole line within the first `length` bytes, and return the messages.

    What has another header, or is no such file, is renamed.

    Raises:
        OSError: it could not be done; the file is as it was.
    """
    try:
        # Opening a pipe would wait for its other end without O_NONBLOCK.
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return [f"WARNING: {path} is gone and is begun again"] if length else []
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
    """Cut a file and return its new size; None if it is not such a log."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return None
    first = os.pread(descriptor, len(header), 0)
    if header.startswith(first) and status.st_size < len(header):
        kept = 0  # cut within the header, which is written again
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
