"""Folders `step_*` that are whole or absent: written under another name, flushed to disk and renamed."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ppo.outputs.folders import sync_folder

PREFIX = "step_"
_ASIDE = ".damaged"


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder with these files whole or not at all.

    What stands in its place is set aside.

    Raises:
        OSError: it could not be written; nothing is left behind.
    """
    parent = folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    scratch = parent / f".{folder.name}.{os.getpid()}.tmp"
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed; containers reuse process ids
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
        shutil.rmtree(earlier, ignore_errors=True)
    return folder.rename(folder.with_name(f"{folder.name}{_ASIDE}"))


def remove_folder(folder: Path) -> None:
    """Delete a folder that from the first moment on is not there any more, even if the deletion is interrupted.

    Raises:
        OSError: it could not be deleted.
    """
    shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.tmp")))


def remove_scratch(parent: Path) -> None:
    """Delete what killed writers left behind."""
    for scratch in parent.glob(f".{PREFIX}*.tmp"):
        shutil.rmtree(scratch, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # so that reading it again asks the disk and not the memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
