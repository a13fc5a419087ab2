"""Folders `step_*` that are whole or absent: written under another name, flushed to disk and renamed.

If a name needed on the way is taken by something that cannot be deleted, the next free name is used.
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
    """Write a folder with these files, whole or not at all.

    Anything already at this path is set aside.

    Raises:
        OSError: the folder could not be written; nothing is left behind.
    """
    parent = folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    name = f".{folder.name}.{os.getpid()}"
    _try_to_delete(parent / f"{name}{_SCRATCH}")  # left by a killed process; containers reuse process ids
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
    """Rename a folder to `<name>.damaged` and return the new path.

    Earlier `.damaged` folders are deleted, or disks would fill.

    Raises:
        OSError: the folder could not be renamed.
    """
    for earlier in folder.parent.glob(f"{PREFIX}*{_ASIDE}"):
        _try_to_delete(earlier)
    return folder.rename(unused(folder, _ASIDE))


def remove_folder(folder: Path) -> None:
    """Delete a folder, renaming it first so that it disappears whole even if the deletion is interrupted.

    Raises:
        OSError: the folder could not be renamed. If only the deletion fails, the rest is left to `remove_scratch`.
    """
    _try_to_delete(folder.rename(unused(folder.with_name(f".{folder.name}"), _SCRATCH)))


def remove_scratch(parent: Path) -> list[Path]:
    """Delete what killed writers left behind; return paths with scratch or `.damaged` names that stay."""
    in_the_way = [path for path in parent.glob(f".{PREFIX}*{_SCRATCH}") if not _try_to_delete(path)]
    return in_the_way + [path for path in parent.glob(f"{PREFIX}*{_ASIDE}") if path.is_symlink() or not path.is_dir()]


def _try_to_delete(folder: Path) -> bool:
    """Delete a folder and return whether it is gone; other files, and links to folders, stay."""
    if folder.is_dir():  # rmtree would open a pipe, which waits for its other end
        with contextlib.suppress(OSError, RecursionError):  # folders may be nested too deeply for Python
            shutil.rmtree(folder)
    return not os.path.lexists(folder)


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # so that the file is read back from the disk, not from the page cache
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
