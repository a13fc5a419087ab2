"""One run at a time writes a model; a killed run blocks no other."""

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppo.outputs import lock
from ppo.outputs.lock import ModelLock, is_abandoned, sign
from ppo.settings import Refusal

HOLD = """
import sys
from pathlib import Path
from ppo.settings import Refusal
from ppo.outputs.lock import ModelLock
held = ModelLock([Path(folder) for folder in sys.argv[1:]])
try:
    held.acquire(take_over=False)
except Refusal as refusal:
    print("refused", refusal, flush=True)
    sys.exit()
print("held", flush=True)
sys.stdin.read()
held.release()
"""
AT_ONCE = HOLD.replace("try:\n", "print('ready', flush=True)\nsys.stdin.readline()\ntry:\n", 1)


def start(folders: list[Path], program: str = HOLD) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", program, *map(str, folders)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def end(process: "subprocess.Popen[str]") -> None:
    """Let a holder end on its own."""
    with process:
        assert process.stdin
        process.stdin.close()


def started_at_once(number: int, folders: list[Path], program: str) -> tuple[list[int], list[str]]:
    """Let processes take a lock at the same moment; return their ids and their output."""
    processes = [start(folders, program) for _ in range(number)]
    for process in processes:
        assert line_of(process) == "ready"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    said = [line_of(process) for process in processes]
    for process in processes:
        end(process)
    return [process.pid for process in processes], said


@contextlib.contextmanager
def held_elsewhere(*folders: Path, program: str = HOLD) -> Iterator["subprocess.Popen[str]"]:
    """Hold a model's lock in another process, which is killed at the end."""
    with start(list(folders), program) as process:
        try:
            assert line_of(process) == "held"
            yield process
        finally:
            process.kill()


def acquire(*folders: Path, take_over: bool = False) -> list[str]:
    """Take and release a lock; return the notes."""
    model = ModelLock(folders)
    notes = model.acquire(take_over=take_over)
    model.release()
    return notes


def record_of(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock.json"


def leave_record(folder: Path, **changes: Any) -> dict[str, Any]:
    """Leave the record of a run that ended without removing it."""
    model = ModelLock([folder])
    model.acquire(take_over=False)
    record: dict[str, Any] = json.loads(record_of(folder).read_text()) | changes
    model.release()
    record_of(folder).write_text(json.dumps(record))
    return record


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def pong(tmp_path: Path) -> Path:
    return tmp_path / "Pong"


# ------------------------------------------------------------------------------------------------------ who may have it


def test_a_free_lock_is_taken_without_a_word_and_leaves_no_file_at_the_end(pong: Path) -> None:
    model = ModelLock([pong])
    assert model.acquire(take_over=False) == []
    assert names(pong.parent) == [".Pong.lock", ".Pong.lock.json"]
    model.release()
    assert names(pong.parent) == []


def test_releasing_twice_or_without_having_it_does_no_harm(pong: Path) -> None:
    model = ModelLock([pong])
    model.release()
    model.acquire(take_over=False)
    model.release()
    model.release()
    assert acquire(pong) == []


def test_the_record_names_who_holds_it(pong: Path) -> None:
    with held_elsewhere(pong) as holder:
        record = json.loads(record_of(pong).read_text())
        assert (record["host"], record["pid"]) == (os.uname().nodename, holder.pid)
        assert abs(time.time() - time.mktime(time.strptime(record["started"][:19], "%Y-%m-%dT%H:%M:%S"))) < 60
        assert "ModelLock" in record["command"]


@pytest.mark.parametrize("take_over", [False, True])
def test_a_lock_that_is_held_is_refused_with_its_holder_whatever_the_flag(pong: Path, take_over: bool) -> None:
    with held_elsewhere(pong) as holder:
        host = re.escape(os.uname().nodename)
        with pytest.raises(Refusal, match=rf"Pong: process {holder.pid} on {host}, started .*another --model_name"):
            acquire(pong, take_over=take_over)
        assert json.loads(record_of(pong).read_text())["pid"] == holder.pid


def test_another_lock_of_the_same_process_is_refused_too(pong: Path) -> None:
    model = ModelLock([pong])
    model.acquire(take_over=False)
    with pytest.raises(Refusal, match=f"process {os.getpid()} "):
        acquire(pong)
    model.release()


def test_a_lock_is_free_again_when_its_holder_has_ended(pong: Path) -> None:
    process = start([pong])
    assert line_of(process) == "held"
    end(process)
    assert acquire(pong) == []


def test_other_models_in_the_same_folders_are_free(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "Pong"):
        assert acquire(tmp_path / "Breakout") == []


def test_the_lock_of_a_killed_process_is_taken_over_with_a_note_that_names_it(pong: Path) -> None:
    with held_elsewhere(pong) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        (note,) = acquire(pong)
    assert f"process {holder.pid} on" in note and "has ended" in note
    assert names(pong.parent) == []


def test_children_of_a_killed_process_do_not_keep_its_lock(pong: Path) -> None:
    spawns = HOLD.replace(
        'print("held"', 'import subprocess; p = subprocess.Popen(["sleep", "60"], close_fds=False); print("held"'
    ).replace("sys.stdin.read()", "print(p.pid, flush=True); sys.stdin.read()")
    with held_elsewhere(pong, program=spawns) as holder:
        child = int(line_of(holder))
        try:
            holder.kill()
            holder.wait()
            os.kill(child, 0)
            assert len(acquire(pong)) == 1
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_machine_that_has_booted_again_has_no_holder(pong: Path) -> None:
    leave_record(pong, pid=os.getppid(), boot_id="an earlier one")
    (note,) = acquire(pong)
    assert "has ended" in note


def test_a_lock_of_another_machine_is_refused_unless_the_flag_takes_it_over(pong: Path) -> None:
    leave_record(pong, host="node17", boot_id="another", pid=4711)
    with pytest.raises(Refusal, match=r"process 4711 on node17.* cannot be checked from .*--take_over_lock"):
        acquire(pong)
    (note,) = acquire(pong, take_over=True)
    assert "process 4711 on node17" in note and "because of --take_over_lock" in note


def test_a_container_that_has_ended_is_known_by_the_boot_of_its_machine(pong: Path) -> None:
    # Every container has a host name and process numbers of its own.
    leave_record(pong, host="1f0e5a", pid_namespace="pid:[1]")
    (note,) = acquire(pong)
    assert "1f0e5a" in note


def test_a_requeued_slurm_job_takes_over_the_lock_of_its_earlier_start(
    pong: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_record(pong, host="node17", boot_id="another", slurm_job_id="55")
    monkeypatch.setenv("SLURM_JOB_ID", "56")
    with pytest.raises(Refusal, match=r"Slurm job 55"):
        acquire(pong)
    monkeypatch.setenv("SLURM_JOB_ID", "55")
    (note,) = acquire(pong)
    assert "earlier start of this Slurm job" in note


def test_a_refused_start_leaves_the_folder_as_it_was(pong: Path) -> None:
    leave_record(pong, host="node17", boot_id="another")
    with pytest.raises(Refusal):
        acquire(pong)
    assert names(pong.parent) == [".Pong.lock.json"]


def test_the_record_of_the_new_holder_is_not_removed(pong: Path) -> None:
    model = ModelLock([pong])
    model.acquire(take_over=False)
    other = json.loads(record_of(pong).read_text()) | {"host": "node17"}
    record_of(pong).write_text(json.dumps(other))
    model.release()
    assert json.loads(record_of(pong).read_text()) == other


def test_a_lock_file_that_another_run_made_meanwhile_is_not_removed(pong: Path) -> None:
    model = ModelLock([pong])
    model.acquire(take_over=False)
    (pong.parent / ".Pong.lock").unlink()
    (pong.parent / ".Pong.lock").touch()
    model.release()
    assert names(pong.parent) == [".Pong.lock"]


def test_folders_that_vanished_do_not_make_the_release_fail(tmp_path: Path) -> None:
    parent = tmp_path / "runs"
    parent.mkdir()
    model = ModelLock([parent / "Pong"])
    model.acquire(take_over=False)
    for path in parent.iterdir():
        path.unlink()
    parent.rmdir()
    model.release()


# ------------------------------------------------------------------------------------------------------ damaged records


def valid() -> dict[str, Any]:
    return {field: None for field in ("boot_id", "pid_namespace", "start_ticks", "slurm_job_id")} | {
        "host": "node17",
        "pid": 4711,
        "started": "today",
        "command": "ppo",
    }


DAMAGED = {
    "nothing": b"",
    "zeros": bytes(500),
    "bytes": bytes(range(256)),
    "text": b"hello",
    "a cut record": json.dumps(valid()).encode()[:-5],
    "a list": b"[1]",
    "depth": b"[" * 50_000,
    "a huge number": b"1" * 60_000,
    "too much": b" " * 70_000 + json.dumps(valid()).encode(),
    "no host": json.dumps({k: v for k, v in valid().items() if k != "host"}).encode(),
    "a process group": json.dumps(valid() | {"pid": -1}).encode(),
    "process 0": json.dumps(valid() | {"pid": 0}).encode(),
    "no process number": json.dumps(valid() | {"pid": True}).encode(),
    "a number out of range": json.dumps(valid() | {"pid": 2**64}).encode(),
    "a list for a host": json.dumps(valid() | {"host": ["a"]}).encode(),
}


def test_what_the_damaged_records_are_made_of_is_a_whole_one(pong: Path) -> None:
    record_of(pong).write_text(json.dumps(valid()))
    with pytest.raises(Refusal, match=r"process 4711 on node17"):
        acquire(pong)


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_record_is_taken_over_where_the_lock_itself_says_enough(pong: Path, kind: str) -> None:
    record_of(pong).write_bytes(DAMAGED[kind])
    (note,) = acquire(pong)
    assert "no readable record" in note


@pytest.mark.parametrize("kind", ["nothing", "too much"])
def test_a_damaged_record_needs_the_flag_where_the_holder_may_be_on_another_machine(
    pong: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(lock, "_LOCAL_FILE_SYSTEMS", ())
    record_of(pong).write_bytes(DAMAGED[kind])
    with pytest.raises(Refusal, match=r"no readable record: .*\.Pong\.lock\.json.*--take_over_lock"):
        acquire(pong)
    (note,) = acquire(pong, take_over=True)
    assert "because of --take_over_lock" in note


def test_a_pipe_in_the_place_of_the_record_does_not_block(pong: Path) -> None:
    os.mkfifo(record_of(pong))
    (note,) = acquire(pong)
    assert "no readable record" in note


def test_a_record_cannot_send_commands_to_the_terminal(pong: Path) -> None:
    leave_record(pong, host="node17", boot_id="another", command="\x1b[2J\nppo" + "x" * 5000)
    with pytest.raises(Refusal) as caught:
        acquire(pong)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1500


# ----------------------------------------------------------------------------------------------------- the same folder


def test_two_spellings_of_a_folder_are_one_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "link").symlink_to("checkpoints")
    monkeypatch.chdir(tmp_path)
    spellings = [tmp_path / "checkpoints", Path("checkpoints"), Path("checkpoints/../checkpoints"), Path("link")]
    with held_elsewhere(tmp_path / "checkpoints" / "Pong"):
        for spelling in spellings:
            with pytest.raises(Refusal, match="another run is already writing to"):
                acquire(spelling / "Pong")


def test_a_link_to_a_models_folder_is_the_lock_of_that_model(tmp_path: Path) -> None:
    (tmp_path / "Pong").mkdir()
    (tmp_path / "alias").symlink_to("Pong")
    for held, wanted in (("Pong", "alias"), ("alias", "Pong")):
        with held_elsewhere(tmp_path / held), pytest.raises(Refusal, match="another run is already writing to"):
            acquire(tmp_path / wanted)


def test_checkpoints_and_logs_in_one_folder_are_one_lock(pong: Path) -> None:
    assert acquire(pong, pong) == []


@pytest.mark.parametrize("shared", ["checkpoints", "runs"])
def test_sharing_one_folder_is_enough_to_be_refused_and_the_other_is_let_go(tmp_path: Path, shared: str) -> None:
    for folder in (shared, "own"):
        (tmp_path / folder).mkdir()
    with held_elsewhere(tmp_path / shared / "Pong"):
        with pytest.raises(Refusal, match=f"{shared}/Pong: process"):
            acquire(tmp_path / "own" / "Pong", tmp_path / shared / "Pong")
        assert names(tmp_path / "own") == []
        assert acquire(tmp_path / "own" / "Pong") == []


# ------------------------------------------------------------------------------------------------------------- at once


def test_of_eight_that_start_at_once_exactly_one_gets_it(tmp_path: Path) -> None:
    for folder in ("checkpoints", "runs"):
        (tmp_path / folder).mkdir()
    folders = [tmp_path / "checkpoints" / "Pong", tmp_path / "runs" / "Pong"]
    numbers, said = started_at_once(8, folders, AT_ONCE)
    assert said.count("held") == 1
    winner = numbers[said.index("held")]
    assert all(line == "held" or f"process {winner} on" in line for line in said)
    assert names(tmp_path / "checkpoints") == names(tmp_path / "runs") == []


def test_removing_the_lock_files_lets_no_two_in(pong: Path) -> None:
    # The holder creates a file that must not exist; three processes compete for a second.
    program = """
import sys, time
from pathlib import Path
from ppo.settings import Refusal
from ppo.outputs.lock import ModelLock
folder = Path(sys.argv[1])
inside, turns, end = folder.with_name("inside"), 0, time.monotonic() + 1.0
while time.monotonic() < end:
    lock = ModelLock([folder])
    try:
        lock.acquire(take_over=False)
    except Refusal:
        continue
    inside.touch(exist_ok=False)
    inside.unlink()
    lock.release()
    turns += 1
print(turns)
"""
    processes = [start([pong], program) for _ in range(3)]
    turns = [int(process.communicate()[0]) for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sum(turns) > 20 and sum(count > 0 for count in turns) > 1
    assert names(pong.parent) == []


# ------------------------------------------------------------------------------------------- file systems without flock


NO_FLOCK = """
import errno, fcntl, os
def refuse(descriptor, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = refuse
"""


def forbid_flock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_flock(monkeypatch, errno.ENOLCK)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_flock_the_record_alone_is_the_lock(pong: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    forbid_flock(monkeypatch, number)
    model = ModelLock([pong])
    assert model.acquire(take_over=False) == []
    assert names(pong.parent) == [".Pong.lock.json"]
    model.release()
    assert names(pong.parent) == []


@pytest.mark.usefixtures("without_flock")
@pytest.mark.parametrize("take_over", [False, True])
def test_without_flock_a_live_process_is_refused(pong: Path, take_over: bool) -> None:
    with held_elsewhere(pong, program=NO_FLOCK + HOLD) as holder:
        with pytest.raises(Refusal, match=f"process {holder.pid} on"):
            acquire(pong, take_over=take_over)
        holder.kill()
        holder.wait()
        (note,) = acquire(pong)
        assert f"process {holder.pid} on" in note


@pytest.mark.usefixtures("without_flock")
def test_without_flock_a_process_number_that_is_used_again_is_another_process(pong: Path) -> None:
    leave_record(pong, pid=os.getppid(), start_ticks=1)
    (note,) = acquire(pong)
    assert "has ended" in note


@pytest.mark.usefixtures("without_flock")
def test_without_flock_a_dead_process_that_is_not_yet_buried_is_dead(pong: Path) -> None:
    with held_elsewhere(pong, program=NO_FLOCK + HOLD) as holder:
        holder.kill()
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        assert len(acquire(pong)) == 1


@pytest.mark.usefixtures("without_flock")
@pytest.mark.parametrize(
    "changes", [{"host": "node17", "boot_id": "another"}, {"pid_namespace": "pid:[1]"}], ids=["machine", "container"]
)
def test_without_flock_a_process_that_cannot_be_seen_needs_the_flag(pong: Path, changes: dict[str, str]) -> None:
    leave_record(pong, **changes, pid=4711)
    with pytest.raises(Refusal, match=r"process 4711 on .* cannot be checked"):
        acquire(pong)
    assert len(acquire(pong, take_over=True)) == 1


@pytest.mark.usefixtures("without_flock")
def test_without_flock_a_damaged_record_needs_the_flag(pong: Path) -> None:
    record_of(pong).touch()
    with pytest.raises(Refusal, match="--take_over_lock"):
        acquire(pong)
    assert len(acquire(pong, take_over=True)) == 1


@pytest.mark.usefixtures("without_flock")
def test_without_flock_a_take_over_in_progress_is_left_alone(pong: Path) -> None:
    leave_record(pong, pid=os.getppid(), start_ticks=1)
    other = Path(f"{record_of(pong)}.taking")
    other.touch()
    with pytest.raises(Refusal, match=r"delete .*\.taking"):
        acquire(pong)
    other.unlink()
    assert len(acquire(pong)) == 1
    assert names(pong.parent) == []


@pytest.mark.usefixtures("without_flock")
def test_without_flock_what_is_in_the_way_of_the_record_is_named(pong: Path) -> None:
    record_of(pong).symlink_to("nowhere")
    with pytest.raises(Refusal, match=r"\.Pong\.lock\.json is in the way"):
        acquire(pong)


def test_without_flock_exactly_one_of_several_takes_over_a_stale_record(pong: Path) -> None:
    leave_record(pong, pid=os.getppid(), start_ticks=1)
    _, said = started_at_once(5, [pong], NO_FLOCK + AT_ONCE)
    assert said.count("held") == 1


# -------------------------------------------------------------------------------------------------------- other trouble


@pytest.mark.parametrize("name", [".Pong.lock", ".Pong.lock.json", ".Pong.lock.json.tmp"])
@pytest.mark.parametrize("target", ["precious", "nowhere"])
def test_a_lock_is_not_written_where_a_link_leads(pong: Path, tmp_path: Path, name: str, target: str) -> None:
    (tmp_path / "precious").write_text("precious")
    (pong.parent / name).symlink_to(tmp_path / target)
    with contextlib.suppress(Refusal):
        ModelLock([pong]).acquire(take_over=True)
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_scratch_folder_is_abandoned_once_the_process_that_signed_it_has_surely_ended(tmp_path: Path) -> None:
    assert not is_abandoned(tmp_path)
    sign(tmp_path)
    assert not is_abandoned(tmp_path)
    record = tmp_path / "owner.json"
    for changes, abandoned in (({"start_ticks": 1}, True), ({"start_ticks": 1, "host": "x", "boot_id": "x"}, False)):
        owner = json.loads(record.read_text()) | changes
        record.write_text(json.dumps(owner))
        assert is_abandoned(tmp_path) is abandoned


def test_a_folder_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refusal, match=r"cannot be locked: .*file/\.Pong\.lock"):
        acquire(tmp_path / "file" / "Pong")


def test_a_full_disk_is_refused_and_nothing_is_left(pong: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Refusal, match="cannot be locked: No space left on device"):
        acquire(pong)
    assert names(pong.parent) == []
    monkeypatch.undo()
    assert acquire(pong) == []
