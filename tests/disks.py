"""Disks of one megabyte for tests, which can be filled and made read-only; root ignores the permissions of folders."""

import contextlib
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class SmallDisk:
    """A mounted tmpfs."""

    path: Path

    def fill(self) -> None:
        """Leave no byte free."""
        with open(self.path / "ballast", "ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def make_room(self) -> None:
        """Undo `fill`."""
        (self.path / "ballast").unlink()

    @contextlib.contextmanager
    def kept_full(self) -> Iterator[None]:
        """Also take freed space, within a millisecond: space that one save frees may be enough for the next."""
        ended = threading.Event()

        def keep_full() -> None:
            while not ended.wait(0.001):
                self.fill()

        self.fill()
        thread = threading.Thread(target=keep_full, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.make_room()

    def set_writable(self, writable: bool) -> None:
        """Mount it anew."""
        option = "rw" if writable else "ro"
        subprocess.run(["mount", "-o", f"remount,{option}", str(self.path)], check=True)


@contextlib.contextmanager
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """Mount a disk, or skip the test where that is not allowed."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], capture_output=True, text=True, check=False
        )
    except OSError as error:
        pytest.skip(f"no small disk: {error}")
    if mounted.returncode:
        pytest.skip(f"no small disk: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
