"""Folders `step_*` that are whole or absent: written under another name, flushed to disk and renamed.

Where something has a name that is needed on the way and cannot be deleted, the next name that is free does as well.
"""

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ppo.outputs.folders import sync_folder, unused

PREFIX = "step_"
_ASIDE, _SCRATCH = ".damaged", ".tmp"


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder with these files whole or not at all.

    What stands in its place is set aside.

    Raises:
        OSError: it could not be written; nothing is left behind.
    """
    parent = folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    name = f".{folder.name}.{os.getpid()}"
    _try_to_delete(parent / f"{name}{_SCRATCH}")  # of a process that was killed; containers reuse process ids
    scratch = unused(parent / name, _SCRATCH)
    try:
        scratch.mkdir()
        for name, content in files.items():
            _write(scratch / name, content)
        sync_folder(scratch)
        if os.path.lexists(folder):
            set_aside(folder)
        scratch.rename(folder)
        sync_folder(parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def set_aside(folder: Path) -> Path:
    """Rename a folder to `<name>.damaged` and return it; of such folders only this one is kept, or disks would fill.

    Raises:
        OSError: it could not be renamed.
    """
    for earlier in folder.parent.glob(f"{PREFIX}*{_ASIDE}"):
        _try_to_delete(earlier)
    return folder.rename(unused(folder, _ASIDE))


def remove_folder(folder: Path) -> None:
    """Delete a folder that from the first moment on is not there any more, even if the deletion is interrupted.

    Raises:
        OSError: it could not be renamed. What could not be deleted after that is for `remove_scratch`.
    """
    _try_to_delete(folder.rename(unused(folder.with_name(f".{folder.name}"), _SCRATCH)))


def remove_scratch(parent: Path) -> list[Path]:
    """Delete what killed writers left behind; return what has such a name, or that of one set aside, and stays."""
    in_the_way = [path for path in parent.glob(f".{PREFIX}*{_SCRATCH}") if not _try_to_delete(path)]
    return in_the_way + [path for path in parent.glob(f"{PREFIX}*{_ASIDE}") if path.is_symlink() or not path.is_dir()]


def _try_to_delete(folder: Path) -> bool:
    """Delete a folder and return whether it has gone; what is none, or a link to one, stays."""
    if folder.is_dir():  # or a pipe would have to be opened first, which waits for its other end
        with contextlib.suppress(OSError, RecursionError):  # Python follows folders within folders only so far
            shutil.rmtree(folder)
    return not os.path.lexists(folder)


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # so that reading it again asks the disk and not the memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
