"""Logs equal those of a run without a stop after a stop and a resume, and log failures never end a run."""

import contextlib
import csv
import errno
import json
import os
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ppo.config import Config
from ppo.outputs.log_start import keep_start
from ppo.outputs.tensorboard import TensorBoard
from ppo.outputs.trackers import (
    CsvFiles,
    FinishedEpisode,
    MessageFile,
    Metrics,
    OutputError,
    Trackers,
    write_config,
)
from tests.disks import SmallDisk, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path) as mounted:
        yield mounted


def metrics(update: int, **others: float | None) -> dict[str, float | int | None]:
    return {"update": update, "env_steps": update * 10, "rollout/return_mean": None, "update/entropy": 1.25, **others}


def game(episode: int, update: int) -> FinishedEpisode:
    return FinishedEpisode(
        episode=episode,
        update=update,
        env_steps=update * 10 - 3,
        environment=2,
        episode_return=-21.0,
        episode_length=764,
        seconds=12.34567,
    )


def log_updates(folder: Path, updates: Sequence[int], lengths: dict[str, int] | None = None) -> dict[str, int]:
    """Log updates with one finished game each, behind what is kept, and return the lengths for the next checkpoint."""
    lengths = dict(lengths or {})
    files = CsvFiles(folder, lengths)
    for update in updates:
        files.log(metrics(update), [game(update, update)])
    files.close()
    return lengths


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Return a curve as TensorBoard reads it."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_progress_has_a_row_per_update_under_the_names_of_the_metrics(tmp_path: Path) -> None:
    log_updates(tmp_path, [1, 2])
    first, second = rows(tmp_path / "progress.csv")
    assert first == {"update": "1", "env_steps": "10", "rollout/return_mean": "", "update/entropy": "1.25"}
    assert second["update"] == "2"


def test_an_unknown_value_is_an_empty_cell(tmp_path: Path) -> None:
    log_updates(tmp_path, [1])
    assert (tmp_path / "progress.csv").read_text().splitlines()[1] == "1,10,,1.25"


@pytest.mark.parametrize("value", [np.float64(0.1), np.float32(0.5), np.int64(3)])
def test_numbers_of_numpy_are_written_as_numbers(tmp_path: Path, value: float) -> None:
    files = CsvFiles(tmp_path, {})
    files.log({"update": 1, "update/entropy": value}, [])
    files.close()
    assert float(rows(tmp_path / "progress.csv")[0]["update/entropy"]) == value


def test_floats_are_written_without_loss(tmp_path: Path) -> None:
    value = 0.1 + 0.2
    files = CsvFiles(tmp_path, {})
    files.log(metrics(1, other=value), [])
    files.close()
    assert float(rows(tmp_path / "progress.csv")[0]["other"]) == value


def test_episodes_has_a_row_per_game(tmp_path: Path) -> None:
    files = CsvFiles(tmp_path, {})
    files.log(metrics(1), [game(1, 1), game(2, 1)])
    files.log(metrics(2), [])
    files.close()
    first, second = rows(tmp_path / "episodes.csv")
    assert first == {
        "episode": "1",
        "update": "1",
        "env_steps": "7",
        "environment": "2",
        "return": "-21.0",
        "length": "764",
        "time/seconds": "12.346",
    }
    assert second["episode"] == "2"


def test_before_the_first_game_episodes_has_a_header_and_no_rows(tmp_path: Path) -> None:
    CsvFiles(tmp_path, {}).close()
    assert (tmp_path / "episodes.csv").read_text().startswith("episode,update,env_steps,")
    assert rows(tmp_path / "episodes.csv") == []


def test_rows_are_on_disk_as_soon_as_they_are_logged(tmp_path: Path) -> None:
    files = CsvFiles(tmp_path, {})
    files.log(metrics(1), [game(1, 1)])
    assert len(rows(tmp_path / "progress.csv")) == len(rows(tmp_path / "episodes.csv")) == 1
    files.close()


# ------------------------------------------------------------------------------------------------------------- resume


FILES = ("progress.csv", "episodes.csv")


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


def test_a_resumed_run_leaves_the_bytes_of_a_run_that_was_never_stopped(tmp_path: Path) -> None:
    log_updates(tmp_path / "whole", [1, 2, 3, 4])
    saved = log_updates(tmp_path / "stopped", [1, 2])
    log_updates(tmp_path / "stopped", [3], saved)  # killed after update 3, last saved after update 2
    log_updates(tmp_path / "stopped", [3, 4], saved)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


TAILS = {
    "nothing": b"",
    "a torn line": b"3,30,",
    "a number that reads as an earlier update": b"1",
    "zeros, as a power cut leaves them": bytes(5000),
    "random bytes": bytes(range(256)) * 20,
    "a line without end": b"7" * 300_000,
    "lines": b"2,20,,1.25\n" * 10,
}


@pytest.mark.parametrize("kind", TAILS)
def test_whatever_a_log_has_got_since_the_checkpoint_is_cut_off(tmp_path: Path, kind: str) -> None:
    log_updates(tmp_path / "whole", [1, 2, 3, 4])
    saved = log_updates(tmp_path / "run", [1, 2])
    for name in FILES:
        with open(tmp_path / "run" / name, "ab") as file:
            file.write(TAILS[kind])
    files = CsvFiles(tmp_path / "run", saved)
    for update in (3, 4):
        files.log(metrics(update), [game(update, update)])
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert files.notes == []
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(FILES)


def test_what_the_checkpoint_counts_is_left_as_it_is(tmp_path: Path) -> None:
    saved = log_updates(tmp_path, [1, 2, 3])
    for name in FILES:
        with open(tmp_path / name, "r+b") as file:
            file.seek(-20, os.SEEK_END)
            file.write(b"\n\0\xff,,")
    damaged = contents(tmp_path)
    log_updates(tmp_path, [4], saved)
    assert [content.startswith(before) for content, before in zip(contents(tmp_path), damaged, strict=True)] == [
        True
    ] * 2


def test_a_run_that_starts_from_scratch_starts_new_files(tmp_path: Path) -> None:
    log_updates(tmp_path, [1, 2, 3])
    log_updates(tmp_path, [1])
    assert [len(rows(tmp_path / name)) for name in FILES] == [1, 1]


def test_resuming_without_the_files_starts_new_ones_and_says_so(tmp_path: Path) -> None:
    saved = log_updates(tmp_path, [1, 2])
    for name in FILES:
        (tmp_path / name).unlink()
    files = CsvFiles(tmp_path, saved)
    files.log(metrics(3), [game(3, 3)])
    assert [rows(tmp_path / name)[0]["update"] for name in FILES] == ["3", "3"]
    assert files.notes == [f"WARNING: {tmp_path / name} is missing and is recreated" for name in FILES]


def test_of_a_log_that_is_too_short_the_whole_lines_are_kept_and_it_is_reported(tmp_path: Path) -> None:
    saved = log_updates(tmp_path, [1, 2, 3])
    sizes = {name: (tmp_path / name).stat().st_size for name in FILES}
    for name in FILES:
        os.truncate(tmp_path / name, sizes[name] - 2)
    files = CsvFiles(tmp_path, dict(saved))
    files.log(metrics(4), [game(4, 4)])
    assert [[row["update"] for row in rows(tmp_path / name)] for name in FILES] == [["1", "2", "4"]] * 2
    assert [note.partition(" lacks ")[0] for note in files.notes] == [f"WARNING: {tmp_path / name}" for name in FILES]


def wrong_header(path: Path) -> None:
    path.write_text("update,other\n1,2\n")


def fewer_columns(path: Path) -> None:
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"".join(line.rpartition(b",")[0] + b"\n" for line in lines))


def fewer_columns_and_a_hole(path: Path) -> None:
    fewer_columns(path)
    os.truncate(path, 2 << 30)


def only_zeros(path: Path) -> None:
    path.write_bytes(bytes(4096))


def a_picture(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 500)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name(f"{path.name}.elsewhere")))


@pytest.mark.parametrize(
    "damage",
    [wrong_header, fewer_columns, fewer_columns_and_a_hole, only_zeros, a_picture, a_folder, a_pipe, a_link],
)
@pytest.mark.parametrize("resumed", [False, True])
def test_a_file_of_another_kind_is_moved_aside_with_a_note(
    tmp_path: Path, damage: Callable[[Path], None], resumed: bool
) -> None:
    saved = log_updates(tmp_path, [1, 2, 3])
    for name in FILES:
        damage(tmp_path / name)
    files = CsvFiles(tmp_path, saved if resumed else {})
    files.log(metrics(4), [game(4, 4)])
    assert [[row["update"] for row in rows(tmp_path / name)] for name in FILES] == [["4"]] * 2
    for name in FILES:
        (aside,) = [path for path in tmp_path.iterdir() if path.name.startswith(f"{name}.before-")]
        assert [note for note in files.notes if f"it was renamed to {aside}" in note]


def test_a_header_that_was_cut_short_is_written_again(tmp_path: Path) -> None:
    log_updates(tmp_path, [1, 2, 3])
    for name in FILES:
        os.truncate(tmp_path / name, 5)
    log_updates(tmp_path, [4])
    assert [[row["update"] for row in rows(tmp_path / name)] for name in FILES] == [["4"]] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_the_size_of_a_log_costs_neither_memory_nor_time(tmp_path: Path) -> None:
    log_updates(tmp_path / "whole", [1, 2, 3])
    saved = log_updates(tmp_path / "run", [1, 2])
    for name in FILES:
        os.truncate(tmp_path / "run" / name, 8 << 30)
    tracemalloc.start()
    started = time.process_time()
    log_updates(tmp_path / "run", [3], saved)
    seconds, (_, most_bytes) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")
    assert most_bytes < 1 << 20
    assert seconds < 1.0


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(st.binary(max_size=200), st.sampled_from([b"a,b\n", b"a,b\n1,2\n", b"a,b"])),
    st.binary(max_size=200),
    st.integers(0, 2**63 - 1) | st.integers(0, 300),
)
def test_no_content_and_no_length_is_an_error(start: bytes, rest: bytes, length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        path.write_bytes(start + rest)
        notes = keep_start(path, b"a,b\n", length)
        left = path.read_bytes() if path.exists() else b""
        assert left == b"" or (left.startswith(b"a,b\n") and left.endswith(b"\n"))
        assert (start + rest).startswith(left) and len(left) <= max(length, 4)
        assert bool(notes) or len(left) >= length


def test_an_ordinary_resume_has_nothing_to_report(tmp_path: Path) -> None:
    saved = log_updates(tmp_path, [1, 2])
    log_updates(tmp_path, [3], saved)
    files = CsvFiles(tmp_path, saved)
    files.log(metrics(3), [])
    assert files.notes == []


def test_rows_that_waited_for_room_while_a_checkpoint_was_saved_are_counted_by_it(disk: SmallDisk) -> None:
    lengths: dict[str, int] = {}
    files = CsvFiles(disk.path / "run", lengths)
    files.log(metrics(1), [game(1, 1)])
    disk.fill()
    for update in range(2, 600):
        with contextlib.suppress(OutputError):
            files.log(metrics(update), [game(update, update)])
    saved = dict(lengths)
    assert saved["progress.csv"] > (disk.path / "run" / "progress.csv").stat().st_size
    disk.make_room()
    files.log(metrics(600), [game(600, 600)])  # which is lost: the run is killed here
    log_updates(disk.path / "run", [600], saved)
    log_updates(disk.path / "reference", range(1, 601))
    assert contents(disk.path / "run") == contents(disk.path / "reference")


def test_dropping_rows_needs_no_room_on_the_disk(disk: SmallDisk) -> None:
    saved = log_updates(disk.path / "run", [1, 2])
    log_updates(disk.path / "run", [3], saved)
    disk.fill()
    log_updates(disk.path / "run", [3, 4], saved)
    disk.make_room()
    assert [[row["update"] for row in rows(disk.path / "run" / name)] for name in FILES] == [["1", "2", "3", "4"]] * 2


def test_a_cut_that_fails_leaves_the_file_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_updates(tmp_path / "whole", [1, 2, 3, 4])
    saved = log_updates(tmp_path / "run", [1, 2])
    log_updates(tmp_path / "run", [3], saved)
    before = (tmp_path / "run" / "progress.csv").read_bytes()

    def fail(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    files = CsvFiles(tmp_path / "run", saved)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(OutputError, match="Input/output error"):
            files.log(metrics(3), [game(3, 3)])
    assert (tmp_path / "run" / "progress.csv").read_bytes() == before
    files.log(metrics(4), [game(4, 4)])
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------------------- trouble


class Listener:
    """Trackers with all files and a display that records messages."""

    def __init__(self, folder: Path, lengths: dict[str, int] | None = None) -> None:
        self.folder = folder
        self.display = Recorder()
        self.trackers = Trackers([CsvFiles(folder, lengths or {}), TensorBoard(folder, 0), self.display])

    def log(self, updates: Sequence[int]) -> None:
        for update in updates:
            self.trackers.log(metrics(update), [game(update, update)])

    @property
    def said(self) -> list[str]:
        return [line.removeprefix("say ") for line in self.display.heard if line.startswith("say ")]


def assert_whole(folder: Path, num_updates: int) -> None:
    """Assert that the logs are those of updates that met no trouble."""
    reference = folder.parent / "reference"
    log_updates(reference, range(1, num_updates + 1))
    assert contents(folder) == contents(reference)
    assert curve(folder, "update/entropy") == [(10 * n, 1.25) for n in range(1, num_updates + 1)]
    assert curve(folder, "episode/return") == [(10 * n - 3, -21.0) for n in range(1, num_updates + 1)]


def test_a_full_disk_costs_one_warning_and_in_the_end_no_row(disk: SmallDisk) -> None:
    run = Listener(disk.path / "run")
    run.log([1, 2])
    disk.fill()
    run.log(range(3, 600))
    (warning,) = run.said
    assert warning.startswith("WARNING") and "No space left on device" in warning and "training continues" in warning
    for name in FILES:
        text = (disk.path / "run" / name).read_text()
        assert text.endswith("\n") and 2 < text.count("\n") < 599
    disk.make_room()
    run.log([600])
    assert len(run.said) == 2 and "written again" in run.said[1]
    run.trackers.close()
    assert len(run.said) == 2
    assert_whole(disk.path / "run", 600)


def test_a_second_time_is_reported_again(disk: SmallDisk) -> None:
    run = Listener(disk.path / "run")
    for updates in (range(1, 100), range(100, 200)):
        disk.fill()
        run.log(updates)
        disk.make_room()
        run.log([])
        run.trackers.log(metrics(updates[-1]), [])
    assert [line.startswith("WARNING") for line in run.said] == [True, False, True, False]


def test_a_line_that_was_never_written_is_reported_at_the_end(disk: SmallDisk) -> None:
    run = Listener(disk.path / "run")
    disk.fill()
    run.log(range(1, 100))
    run.trackers.close()
    assert len(run.said) == 2 and "lack their last rows" in run.said[1]
    assert run.display.heard[-2:] == ["close", f"say {run.said[1]}"]


def test_a_disk_that_becomes_read_only_costs_one_warning_and_no_row(disk: SmallDisk) -> None:
    run = Listener(disk.path / "run")
    run.log([1])
    disk.set_writable(False)
    run.log([2, 3])
    run.trackers.sync()
    assert len(run.said) == 1 and "Read-only file system" in run.said[0]
    disk.set_writable(True)
    run.log([4])
    run.trackers.close()
    assert_whole(disk.path / "run", 4)


@pytest.mark.parametrize("level", ["run", "."])
def test_a_folder_that_is_removed_is_made_again_with_headers_and_one_warning(tmp_path: Path, level: str) -> None:
    run = Listener(tmp_path / "runs" / "run")
    run.log([1, 2])
    shutil.rmtree(tmp_path / "runs" / level)
    run.log([3, 4])
    run.trackers.close()
    (warning,) = run.said
    assert warning.startswith("WARNING: files were removed from")
    assert [[row["update"] for row in rows(run.folder / name)] for name in FILES] == [["3", "4"]] * 2
    assert curve(run.folder, "update/entropy") == [(30, 1.25), (40, 1.25)]


def test_a_file_in_the_place_of_the_folder_is_no_reason_to_stop(tmp_path: Path) -> None:
    run = Listener(tmp_path / "run")
    run.log([1])
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").touch()
    run.log([2, 3])
    run.trackers.sync()
    assert len(run.said) == 1 and "Not a directory" in run.said[0]
    (tmp_path / "run").unlink()
    run.log([4])
    assert [row["update"] for row in rows(tmp_path / "run" / "progress.csv")] == ["2", "3", "4"]


def test_pipes_in_the_place_of_the_files_do_not_block(tmp_path: Path) -> None:
    run = Listener(tmp_path)
    run.log([1])
    for path in tmp_path.iterdir():
        path.unlink()
        os.mkfifo(path)
    run.log([2])
    run.trackers.close()
    assert len(run.said) == 2


@pytest.mark.parametrize("target", ["precious", "nowhere", "a log", "/dev/full"])
def test_logs_are_not_written_where_a_link_leads(tmp_path: Path, target: str) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    run.mkdir()
    (outside / "precious").write_text("precious")
    log_updates(outside / "log", [1, 2])
    for name in FILES:
        to = outside / "log" / name if target == "a log" else outside / target
        (run / name).symlink_to(to)
    for name in ("config.json", ".config.json.tmp", ".progress.csv.tmp"):
        (run / name).symlink_to(outside / target)
    before = {path: path.read_text() for path in outside.rglob("*") if path.is_file()}
    assert write_config(run, Config()) == []
    listener = Listener(run)
    listener.log([3])
    listener.trackers.sync()
    assert [row["update"] for row in rows(run / "progress.csv")] == ["3"]
    assert sorted(words.split()[1] for words in listener.said) == sorted(str(run / name) for name in FILES)
    assert json.loads((run / "config.json").read_text())
    assert {path: path.read_text() for path in outside.rglob("*") if path.is_file()} == before


def test_a_link_that_takes_the_place_of_a_log_meanwhile_is_not_followed(tmp_path: Path) -> None:
    run = Listener(tmp_path / "run")
    run.log([1])
    (tmp_path / "run" / "progress.csv").unlink()
    (tmp_path / "run" / "progress.csv").symlink_to(tmp_path / "precious")
    run.log([2])
    assert not (tmp_path / "precious").exists()
    (tmp_path / "run" / "progress.csv").unlink()
    run.log([3])
    assert [row["update"] for row in rows(tmp_path / "run" / "progress.csv")] == ["2", "3"]


def test_a_run_that_cannot_even_begin_its_logs_trains_all_the_same(disk: SmallDisk) -> None:
    disk.set_writable(False)
    (note,) = write_config(disk.path / "run", Config())
    assert note.startswith("WARNING") and "config.json was not written: Read-only file system" in note
    run = Listener(disk.path / "run")
    run.log([1])
    assert len(run.said) == 1
    disk.set_writable(True)
    run.log([2])
    assert_whole(disk.path / "run", 2)


def test_the_settings_of_the_last_start_stay_if_new_ones_cannot_be_written(disk: SmallDisk) -> None:
    assert write_config(disk.path, Config(), ranks=2) == []
    disk.fill()
    assert len(write_config(disk.path, Config(), ranks="x" * 5000)) == 1
    assert json.loads((disk.path / "config.json").read_text())["ranks"] == 2


def test_notes_about_the_files_are_reported_with_the_first_update(tmp_path: Path) -> None:
    run = Listener(tmp_path, {"progress.csv": 100})
    run.log([3, 4])
    assert run.said == [f"WARNING: {tmp_path / 'progress.csv'} is missing and is recreated"]


def test_a_message_is_printable_whatever_it_names(tmp_path: Path) -> None:
    run = Listener(tmp_path)
    run.trackers.say("WARNING: checkpoints/a\x1b]0;b\x07\nc\u202e\udcff cannot be read")
    assert run.said == ["WARNING: checkpoints/a?]0;b? c?? cannot be read"]


class Faulty:
    """A tracker whose every method raises."""

    def __init__(self, error: OSError) -> None:
        self.notes: list[str] = []
        self.error: OSError | None = error

    def log(self, metrics: Metrics, episodes: Sequence[FinishedEpisode]) -> None:
        if self.error:
            raise self.error

    def say(self, text: str) -> None:
        self.log({}, [])

    def sync(self) -> None:
        self.log({}, [])

    def close(self) -> None:
        self.log({}, [])


def test_no_trackers_trouble_reaches_the_loop_or_another_tracker(capsys: pytest.CaptureFixture[str]) -> None:
    recorder = Recorder()
    trackers = Trackers([Faulty(OSError(errno.EIO, "Input/output error")), recorder])
    trackers.log(metrics(1), [])
    trackers.log(metrics(2), [])
    trackers.sync()
    trackers.close()
    assert [line for line in recorder.heard if not line.startswith("say")] == ["log 1 0", "log 2 0", "sync", "close"]
    assert "Input/output error" in capsys.readouterr().err


def test_where_the_display_is_what_failed_standard_error_gets_the_words_and_one_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    display = Faulty(OutputError("the screen is dark", relief="there is light"))
    trackers = Trackers([display])
    for update in (1, 2, 3):
        trackers.log(metrics(update), [])
    trackers.say("saved")
    trackers.say("saved again")
    assert capsys.readouterr().err.splitlines().count("WARNING: the screen is dark") == 1
    display.error = None
    trackers.log(metrics(4), [])
    trackers.say("on screen")
    assert capsys.readouterr().err == ""


def test_words_that_failed_on_the_screen_are_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    trackers = Trackers([Faulty(OutputError("the screen is dark", relief="there is light"))])
    trackers.say("the checkpoint was not saved")
    assert capsys.readouterr().err == "WARNING: the screen is dark\nthe checkpoint was not saved\n"


def test_without_standard_error_either_nothing_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    Trackers([Faulty(OSError(errno.EPIPE, "Broken pipe"))]).say("hello")


def test_sync_has_both_files_and_the_events_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Listener(tmp_path)
    run.log([1])
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name))
    run.trackers.sync()
    assert {"progress.csv", "episodes.csv", tmp_path.name} < set(synced)
    assert any(name.startswith("events.out.tfevents.") for name in synced)
    assert run.display.heard[-1] == "sync"


# ------------------------------------------------------------------------------------------------------ other trackers


class Recorder:
    """A tracker that records its calls."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.notes: list[str] = []

    def log(self, metrics: Metrics, episodes: Sequence[FinishedEpisode]) -> None:
        self.heard.append(f"log {metrics['update']} {len(episodes)}")

    def say(self, text: str) -> None:
        self.heard.append(f"say {text}")

    def sync(self) -> None:
        self.heard.append("sync")

    def close(self) -> None:
        self.heard.append("close")


def test_several_trackers_all_receive_everything() -> None:
    first, second = Recorder(), Recorder()
    both = Trackers([first, second])
    both.say("hello")
    both.log(metrics(1), [game(1, 1)])
    both.close()
    assert first.heard == second.heard == ["say hello", "log 1 1", "close"]


def test_config_json_holds_the_settings_and_facts(tmp_path: Path) -> None:
    write_config(tmp_path / "run", Config(), ranks=4)
    data = json.loads((tmp_path / "run" / "config.json").read_text())
    assert data.pop("ranks") == 4
    assert Config.from_dict(data, Config().family) == Config()


def messages(folder: Path) -> list[str]:
    """Return the lines of messages.txt without the time."""
    lines = (folder / "messages.txt").read_text().splitlines()
    return [line.partition(" ")[2] for line in lines]


def test_messages_of_all_starts_stay_in_their_order(tmp_path: Path) -> None:
    for text in ("first start", "second start"):
        trackers = Trackers([MessageFile(tmp_path)])
        trackers.say(text)
        trackers.say(f"WARNING: of the {text}")
        trackers.close()
    assert messages(tmp_path) == [
        *("first start", "WARNING: of the first start", "second start", "WARNING: of the second start")
    ]


def test_messages_wait_while_the_disk_is_full_and_trouble_is_reported_once(
    disk: SmallDisk, capsys: pytest.CaptureFixture[str]
) -> None:
    trackers = Trackers([MessageFile(disk.path)])
    trackers.say("before")
    disk.fill()
    trackers.say("x" * 10_000)
    assert capsys.readouterr().err == ""
    trackers.log(metrics(1), [])
    trackers.log(metrics(2), [])
    disk.make_room()
    trackers.log(metrics(3), [])
    said = messages(disk.path)
    assert said[:2] == ["before", "x" * 10_000]
    assert sum("cannot be written" in line for line in said) == 1 and "written again" in said[-1]


@pytest.mark.parametrize("make", [lambda path, to: path.symlink_to(to), lambda path, to: os.mkfifo(path)])
def test_messages_are_not_written_to_what_is_no_regular_file(
    tmp_path: Path, make: Callable[[Path, Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious").write_text("precious")
    make(tmp_path / "messages.txt", tmp_path / "precious")
    trackers = Trackers([MessageFile(tmp_path)])
    trackers.say("hello")
    trackers.log(metrics(1), [])
    assert messages(tmp_path)[0] == "hello" and "it was renamed to" in messages(tmp_path)[1]
    assert (tmp_path / "precious").read_text() == "precious"
