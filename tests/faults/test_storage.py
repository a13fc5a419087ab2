"""Disks that are full, read-only or gone, damaged files and locks: nothing is lost or torn, and messages are right."""

import os
import signal
import socket
import time

import pytest

from tests.disks import small_disk
from tests.faults.running import (
    ENDLESS,
    STEADY,
    RunningJob,
    checkpoint_steps,
    csv_rows,
    hashes,
    run_to_end,
    scratch_left,
)
from tests.jobs import CARTPOLE, ppo

FLAGS = [*CARTPOLE, *STEADY, "--checkpoint_interval=1"]


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path) as mounted:
        yield mounted


def test_training_continues_while_the_disk_of_the_checkpoints_is_full(disk, tmp_path, fault_report):
    with RunningJob(tmp_path, *FLAGS, ENDLESS, f"--checkpoint_dir={disk.path}") as job:
        job.wait_for_updates(5)
        with disk.kept_full():
            job.wait_until(lambda: job.log.count("was not saved: ") >= 3)
        updates = len(csv_rows(tmp_path, "progress.csv"))
        job.wait_for_updates(updates + 5)
        with disk.kept_full():
            warnings = job.log.count("was not saved: ")
            job.wait_until(lambda: job.log.count("was not saved: ") > warnings)
            os.kill(job.process.pid, signal.SIGUSR1)
            code, _ = job.end(within=20, since=time.time())
        assert code == 1, job.log
        assert "WITHOUT a last checkpoint" in job.log
        assert "No space left on device" in job.log[job.log.rindex("was not saved") :]
        assert "Traceback" not in job.log
    assert [path.name for path in disk.path.rglob("*.tmp")] == []
    log = run_to_end(tmp_path, *FLAGS, "--env_steps=64", f"--checkpoint_dir={disk.path}")
    assert "damaged" not in log
    fault_report(
        5,
        "disk of the checkpoints filled, emptied, filled again",
        "a warning per failed save, exit code 1, nothing torn",
    )


def test_training_continues_while_the_disk_of_the_logs_is_full(disk, tmp_path, fault_report):
    with RunningJob(tmp_path, *FLAGS, ENDLESS, f"--run_dir={disk.path}") as job:
        progress = disk.path / "CartPole-v1/progress.csv"
        job.wait_until(lambda: progress.exists() and len(progress.read_text().splitlines()) > 3)
        disk.fill()
        job.wait_until(lambda: "the logs in" in job.log)
        before = checkpoint_steps(tmp_path)[-1]
        job.wait_until(lambda: checkpoint_steps(tmp_path)[-1] >= before + 640)
        disk.make_room()
        job.wait_until(lambda: "are written again" in job.log)
        os.kill(job.process.pid, signal.SIGUSR1)
        code, _ = job.end(within=20, since=time.time())
        assert code == 75, job.log
        # Games are written apart from the other logs, and only if one ends while the disk is full.
        assert job.log.count("WARNING: the logs in") == 1, job.log
        assert job.log.count("WARNING: the games in") <= 1, job.log
        assert job.log.count("WARNING") == 1 + job.log.count("WARNING: the games in"), job.log
    lines = progress.read_text().splitlines()
    assert [int(line.split(",")[0]) for line in lines[1:]] == list(range(1, len(lines)))
    fault_report(6, "disk of the logs full for some updates", "one warning, training unaffected, no row missing")


def test_folders_that_vanish_during_the_run_are_made_again_or_warned_of(tmp_path, fault_report):
    with RunningJob(tmp_path, *FLAGS, ENDLESS) as job:
        job.wait_for_updates(5)
        for folder in ("runs", "checkpoints"):
            os.rename(tmp_path / folder, tmp_path / f"{folder}-elsewhere")
        job.wait_until(lambda: (tmp_path / "checkpoints/CartPole-v1").exists() and checkpoint_steps(tmp_path))
        os.kill(job.process.pid, signal.SIGUSR1)
        code, _ = job.end(within=20, since=time.time())
        assert "Traceback" not in job.log
        assert code == 75, job.log
        assert "removed" in job.log
    assert run_to_end(tmp_path, *FLAGS, "--env_steps=64").count("is finished") == 1
    fault_report(17, "runs and checkpoints removed during the run", "made again, warned of, the last save succeeded")


def test_a_read_only_folder_is_refused_before_anything_starts(disk, tmp_path, fault_report):
    disk.set_writable(False)
    log = run_to_end(tmp_path, *FLAGS, f"--checkpoint_dir={disk.path / 'checkpoints'}", code=2, within=40)
    assert log.count("checkpoint_dir must be a folder this user can write to") == 1
    assert "Traceback" not in log
    fault_report(17, "read-only checkpoint_dir", "exit code 2, one message")


DAMAGE = {
    "emptied": lambda path: path.write_bytes(b""),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "cut by a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "replaced by text": lambda path: path.write_text("hello"),
    "with one bit flipped": lambda path: path.write_bytes(
        path.read_bytes()[:-5] + bytes([path.read_bytes()[-5] ^ 4]) + path.read_bytes()[-4:]
    ),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("file", ["model.safetensors", "training.safetensors", "manifest.json"])
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(how, file, tmp_path, fault_report):
    flags = [*CARTPOLE, *STEADY, "--checkpoint_interval=1"]
    assert ppo(tmp_path, *flags, "--env_steps=192").returncode == 0
    expected = hashes(tmp_path, 192)
    DAMAGE[how](tmp_path / "checkpoints/CartPole-v1/step_000000000192" / file)
    job = ppo(tmp_path, *flags, "--env_steps=192")
    assert job.returncode == 0, job.stderr
    assert "skipped a damaged checkpoint" in job.stdout
    assert "step_000000000192" in job.stdout
    assert "resuming CartPole-v1 at 128 steps" in job.stdout
    assert hashes(tmp_path, 192) == expected
    fault_report(7, f"{file} of the newest checkpoint {how}", "named, resumed from the one before, same sha256 again")


def test_none_valid_is_refused_until_fresh_is_set(tmp_path, fault_report):
    assert ppo(tmp_path, *CARTPOLE, "--env_steps=64").returncode == 0
    for model in tmp_path.rglob("model.safetensors"):
        model.write_bytes(b"")
    job = ppo(tmp_path, *CARTPOLE, "--env_steps=128")
    assert job.returncode == 2
    assert "--fresh" in job.stderr
    assert ppo(tmp_path, *CARTPOLE, "--env_steps=64", "--fresh").returncode == 0
    assert len(list((tmp_path / "checkpoints").glob("CartPole-v1.before-*/step_*"))) == 2
    fault_report(7, "every checkpoint damaged", "exit code 2 until --fresh, which moved them aside")


def test_a_second_run_of_one_model_is_refused_and_names_the_first(tmp_path, fault_report):
    with RunningJob(tmp_path, *FLAGS, ENDLESS) as first:
        first.wait_for_updates(2)
        before = len(csv_rows(tmp_path, "progress.csv"))
        log = run_to_end(tmp_path, *FLAGS, ENDLESS, code=2, within=30)
        assert log.count("another run is already writing to") == 1
        assert socket.gethostname() in log
        first.wait_for_updates(before + 5)
    fault_report(
        18, "two runs of one model_name at the same time", "the second refused with host, process and start time"
    )


def test_the_lock_of_a_run_that_was_killed_is_taken_over(tmp_path, fault_report):
    with RunningJob(tmp_path, *FLAGS, ENDLESS) as first:
        first.wait_for_updates(2)
        for pid in first.processes():
            os.kill(pid, signal.SIGKILL)
    steps = checkpoint_steps(tmp_path)[-1] + 64
    log = run_to_end(tmp_path, *FLAGS, f"--env_steps={steps}")
    assert "took over the lock of process" in log
    assert "resuming CartPole-v1" in log
    assert scratch_left(tmp_path) == []
    fault_report(18, "kill -9 of everything, same command again", "stale lock taken over with a note, resumed")


def test_a_foreign_lock_needs_a_flag(tmp_path, fault_report):
    with RunningJob(tmp_path, *FLAGS, ENDLESS) as first:
        first.wait_for_updates(2)
        for pid in first.processes():
            os.kill(pid, signal.SIGKILL)
    for record in tmp_path.rglob(".CartPole-v1.lock.json"):
        text = record.read_text().replace(socket.gethostname(), "another-host")
        boot = next(line for line in text.splitlines() if "boot_id" in line)
        record.write_text(text.replace(boot, '"boot_id": "elsewhere",'))
    steps = checkpoint_steps(tmp_path)[-1] + 64
    refused = ppo(tmp_path, *FLAGS, f"--env_steps={steps}")
    assert refused.returncode == 2
    assert "another-host" in refused.stderr and "--take_over_lock" in refused.stderr
    assert ppo(tmp_path, *FLAGS, f"--env_steps={steps}", "--take_over_lock").returncode == 0
    fault_report(18, "a lock of another host", "exit code 2 until --take_over_lock")


def test_what_is_in_the_way_of_checkpoints_and_logs_is_named_once_and_stops_no_save(tmp_path, fault_report):
    checkpoints, logs, outside = (
        tmp_path / "checkpoints/CartPole-v1",
        tmp_path / "runs/CartPole-v1",
        tmp_path / "outside",
    )
    for folder in (checkpoints, logs, outside):
        folder.mkdir(parents=True)
    (checkpoints / ".step_000000000000.tmp").write_text("stray")
    (checkpoints / "step_000000000064.damaged").write_text("stray")
    (logs / ".config.json.tmp").mkdir()
    (logs / "episodes.csv").symlink_to(outside / "episodes.csv")
    job = ppo(tmp_path, *FLAGS, "--env_steps=640")
    assert job.returncode == 0, job.stderr
    assert checkpoint_steps(tmp_path) == [384, 448, 512, 576, 640]
    for name in (".step_000000000000.tmp", "step_000000000064.damaged", "episodes.csv"):
        assert [name in line for line in job.stdout.splitlines() if "WARNING" in line].count(True) == 1, job.stdout
    assert len(csv_rows(tmp_path, "progress.csv")) == 10
    assert (logs / "config.json").is_file()
    assert list(outside.iterdir()) == []
    fault_report(17, "files, links and folders in the way of checkpoints and logs", "named once, all saved")


@pytest.mark.parametrize("mode", ["play", "record"])
@pytest.mark.slow
def test_playing_without_a_checkpoint_under_four_ranks_says_so_once(mode, tmp_path, fault_report):
    # No agent for this world is shipped.
    log = run_to_end(tmp_path, "--env_name=Taxi-v4", f"--mode={mode}", ranks=4, code=2, within=40)
    assert log.count("there is no agent") == 1
    assert "Traceback" not in log
    fault_report(21, f"--mode={mode} without a checkpoint, -np 4", "exit code 2, one message")


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_when_playing_under_four_ranks(tmp_path, fault_report):
    assert ppo(tmp_path, *FLAGS, "--env_steps=128").returncode == 0
    (tmp_path / "checkpoints/CartPole-v1/step_000000000128/model.safetensors").write_bytes(b"")
    flags = ["--env_name=CartPole-v1", "--mode=play", "--checkpoint=latest", "--episodes=1"]
    log = run_to_end(tmp_path, *flags, ranks=4, within=60)
    assert log.count("skipped a damaged checkpoint") == 1
    assert "trained for 64 steps" in log
    assert log.count("game 1: return") == 1
    fault_report(21, "--mode=play with a damaged latest checkpoint, -np 4", "named, the one before played, once")
