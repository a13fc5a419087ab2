"""Folders a job writes to: checked before any work, moved aside but never deleted."""

from datetime import datetime
from pathlib import Path

from ppo.config import Refusal


def require_writable(setting: str, folder: Path) -> None:
    """Make a folder if need be and try that a file can be made in it.

    Raises:
        Refusal: it cannot; names the setting.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Refusal(f"{setting} must be a folder this user can write to, got {folder}: {error.strerror}") from error


def move_aside(folders: list[Path]) -> list[Path]:
    """Rename those of the folders that exist to `<name>.before-<time>` and return their new names."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return [f.rename(f.with_name(f"{f.name}.before-{stamp}")) for f in dict.fromkeys(folders) if f.exists()]
