"""Folders and files on disks that are full, read-only or vanish: refused by name, or nothing lost and nothing torn."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppo.outputs.folders import GrowingFile, move_aside, require_writable, write_whole
from ppo.settings import Refusal
from tests.disks import SmallDisk, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path) as mounted:
        yield mounted


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------------------------- require_writable


def test_a_folder_is_made_with_its_parents_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    require_writable("run_dir", tmp_path / "a" / "b" / "c")
    assert names(tmp_path / "a" / "b" / "c") == []


def test_a_process_that_is_killed_while_it_tries_a_folder_leaves_nothing_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(names(tmp_path)))
    require_writable("run_dir", tmp_path)
    assert seen == [[]]


def test_a_relative_folder_is_made_where_the_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    require_writable("run_dir", Path("runs/Pong"))
    assert (tmp_path / "runs" / "Pong").is_dir()


@pytest.mark.parametrize("asked", ["file", "file/Pong", "file/Pong/deeper"])
def test_a_file_in_the_way_at_any_level_is_refused_by_name(tmp_path: Path, asked: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match=r"^run_dir must be .*: .*/file is not a folder$"):
        require_writable("run_dir", tmp_path / asked)


@pytest.mark.parametrize("asked", ["link", "link/Pong"])
def test_a_link_to_nowhere_is_refused_by_name(tmp_path: Path, asked: str) -> None:
    (tmp_path / "link").symlink_to("unmounted")
    with pytest.raises(Refusal, match=r"run_dir must be .*/link is a link to unmounted, which does not exist$"):
        require_writable("run_dir", tmp_path / asked)


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    with pytest.raises(Refusal, match="run_dir must be"):
        require_writable("run_dir", tmp_path / "one" / "Pong")


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="File name too long"):
        require_writable("run_dir", tmp_path / ("x" * 300))


def test_a_read_only_disk_is_refused(disk: SmallDisk) -> None:
    disk.set_writable(False)
    for folder in (disk.path, disk.path / "runs" / "Pong"):
        with pytest.raises(Refusal, match=r"checkpoint_dir must be .*: Read-only file system"):
            require_writable("checkpoint_dir", folder)


def test_a_full_disk_is_refused_and_no_folder_is_left(disk: SmallDisk) -> None:
    disk.fill()
    with pytest.raises(Refusal, match=r"checkpoint_dir must be .*: No space left on device"):
        require_writable("checkpoint_dir", disk.path / "runs" / "Pong")
    assert names(disk.path) == ["ballast"]


# ---------------------------------------------------------------------------------------------------------- move_aside


def test_a_moved_folder_keeps_its_content_and_a_missing_one_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "Pong").mkdir()
    (tmp_path / "Pong" / "weights").write_text("precious")
    (aside,) = move_aside([tmp_path / "Pong", tmp_path / "Breakout", tmp_path / "Pong"])
    assert aside.name.startswith("Pong.before-") and (aside / "weights").read_text() == "precious"
    assert names(tmp_path) == [aside.name]


def test_two_within_one_second_get_two_names(tmp_path: Path) -> None:
    moved = []
    for content in ("first", "second", "third"):
        (tmp_path / "Pong").mkdir()
        (tmp_path / "Pong" / content).touch()
        moved += move_aside([tmp_path / "Pong"])
    assert [names(folder) for folder in moved] == [["first"], ["second"], ["third"]]


def test_even_an_empty_folder_of_that_name_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "Pong").mkdir()
    (first,) = move_aside([tmp_path / "Pong"])
    (tmp_path / "Pong").mkdir()
    (second,) = move_aside([tmp_path / "Pong"])
    assert names(tmp_path) == sorted([first.name, second.name])


def test_a_link_is_moved_aside_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "Pong").symlink_to("elsewhere")
    (aside,) = move_aside([tmp_path / "Pong"])
    assert aside.is_symlink() and (tmp_path / "elsewhere").is_dir()


def test_if_the_second_cannot_be_moved_the_first_has_its_name_again(tmp_path: Path, disk: SmallDisk) -> None:
    # A folder that something is mounted on cannot be renamed.
    (tmp_path / "Pong").mkdir()
    (tmp_path / "Pong" / "weights").touch()
    with pytest.raises(Refusal, match=r"disk cannot be moved aside: Device or resource busy$"):
        move_aside([tmp_path / "Pong", disk.path])
    assert names(tmp_path) == ["Pong", "disk"]
    assert names(tmp_path / "Pong") == ["weights"]


def test_if_the_first_cannot_be_moved_back_the_refusal_says_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, renamed = Path.rename, []

    def only_once(self: Path, target: Path) -> Path:
        if renamed:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        renamed.append(target)
        return rename(self, target)

    for name in ("checkpoints", "logs"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(Path, "rename", only_once)
    with pytest.raises(Refusal, match=r"logs cannot be moved aside.*/checkpoints is now .*checkpoints\.before-"):
        move_aside([tmp_path / "checkpoints", tmp_path / "logs"])


# --------------------------------------------------------------------------------------------------------- write_whole


def test_a_file_is_replaced_and_nothing_else_remains(tmp_path: Path) -> None:
    for content in (b"old", b"new"):
        write_whole(tmp_path / "file", content)
    assert (tmp_path / "file").read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["file", ".file.tmp"])
@pytest.mark.parametrize("target", ["precious", "nowhere"])
def test_a_file_is_not_written_where_a_link_leads(tmp_path: Path, name: str, target: str) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / name).symlink_to(target)
    write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new" and not (tmp_path / "file").is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"
    assert names(tmp_path) == ["file", "precious"]


def test_a_folder_with_the_name_of_the_scratch_file_is_stepped_around(tmp_path: Path) -> None:
    (tmp_path / ".file.tmp").mkdir()
    write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert names(tmp_path) == [".file.tmp", "file"]


def test_a_failed_write_leaves_the_old_file(disk: SmallDisk) -> None:
    write_whole(disk.path / "file", b"old")
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        write_whole(disk.path / "file", b"new" * 10_000)
    assert (disk.path / "file").read_bytes() == b"old"
    assert names(disk.path) == ["ballast", "file"]


def test_a_file_is_on_disk_before_it_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append("replace"), replace(old, new)))
    write_whole(tmp_path / "file", b"new")
    assert done == [".file.tmp", "replace", tmp_path.name]


# --------------------------------------------------------------------------------------------------------- GrowingFile


HEADER = b"number\n"


def grown(path: Path, *records: bytes) -> GrowingFile:
    file = GrowingFile(path, HEADER)
    for record in records:
        file.add(record)
        file.write()
    return file


def test_a_growing_file_begins_with_its_header_and_continues_without_it(tmp_path: Path) -> None:
    grown(tmp_path / "new" / "file", b"1\n", b"2\n")
    grown(tmp_path / "new" / "file", b"3\n")
    assert (tmp_path / "new" / "file").read_bytes() == b"number\n1\n2\n3\n"


@pytest.mark.parametrize("bytes_that_fit", range(5))
def test_a_record_that_does_not_fit_leaves_no_part_of_it_and_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_that_fit: int
) -> None:
    file = grown(tmp_path / "file", b"111\n")
    write, left = os.write, [bytes_that_fit]

    def nearly_full(descriptor: int, content: bytes) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, content[: left[0]])
        left[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", nearly_full)
        file.add(b"22222\n")
        with pytest.raises(OSError, match="No space left"):
            file.write()
    assert (tmp_path / "file").read_bytes() == b"number\n111\n"
    assert file.num_waiting == 1
    file.add(b"3\n")
    file.write()
    assert (tmp_path / "file").read_bytes() == b"number\n111\n22222\n3\n"
    assert file.num_waiting == 0


def test_what_could_not_be_cut_back_is_cut_back_by_the_next_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = grown(tmp_path / "file", b"1\n")
    write = os.write

    def broken(descriptor: int, content: bytes) -> int:
        if len(content) > 1:
            return write(descriptor, content[:1])
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def cannot(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", broken)
        patch.setattr(os, "ftruncate", cannot)
        file.add(b"22\n")
        with pytest.raises(OSError, match="Input/output error"):
            file.write()
    assert (tmp_path / "file").read_bytes() == b"number\n1\n22"
    file.write()
    assert (tmp_path / "file").read_bytes() == b"number\n1\n22\n"


def test_a_disk_that_reports_only_on_closing_that_it_is_full_gets_the_record_again_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = grown(tmp_path / "file", b"1\n")
    close = os.close

    def full(descriptor: int) -> None:
        close(descriptor)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", full)
        file.add(b"2\n")
        with pytest.raises(OSError, match="quota"):
            file.write()
    file.write()
    assert (tmp_path / "file").read_bytes() == b"number\n1\n2\n"


def test_a_file_that_was_removed_is_begun_again_and_that_is_reported(tmp_path: Path) -> None:
    file = GrowingFile(tmp_path / "run" / "file", HEADER)
    assert file.write() is False
    file.path.unlink()
    file.path.parent.rmdir()
    file.add(b"2\n")
    assert file.write() is True
    assert file.write() is False
    assert file.path.read_bytes() == b"number\n2\n"


def test_a_file_that_was_emptied_gets_its_header_again(tmp_path: Path) -> None:
    file = grown(tmp_path / "file", b"1\n")
    os.truncate(file.path, 0)
    file.add(b"2\n")
    file.write()
    assert file.path.read_bytes() == b"number\n2\n"


def test_a_pipe_in_the_place_of_a_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "file")
    with pytest.raises(OSError, match="No such device"):
        grown(tmp_path / "file", b"1\n")


def test_sync_has_the_content_on_disk_and_the_name_too_the_first_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name))
    file = grown(tmp_path / "file", b"1\n")
    file.sync()
    assert synced == ["file", tmp_path.name]
    file.sync()
    assert synced[2:] == ["file"]


def test_no_descriptor_stays_open_whatever_fails(disk: SmallDisk) -> None:
    def num_open() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = num_open()
    file = grown(disk.path / "file", b"1\n")
    disk.fill()
    for _ in range(20):
        file.add(bytes(5000))
        with contextlib.suppress(OSError):
            file.write()
        with contextlib.suppress(OSError):
            write_whole(disk.path / "other", bytes(5000))
        with contextlib.suppress(Refusal):
            require_writable("run_dir", disk.path)
    assert num_open() == before
