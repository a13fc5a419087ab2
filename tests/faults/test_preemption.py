"""Signals: all ranks save at one update and leave with a code that a requeue script can test."""

import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

from ppo import launcher as launcher_of_ppo
from tests.faults.running import (
    ENDLESS,
    ROOT,
    STEADY,
    RunningJob,
    checkpoint_steps,
    csv_rows,
    hashes,
    run_to_end,
    scratch_left,
)
from tests.jobs import CARTPOLE, environment, ppo

FLAGS = [*CARTPOLE, *STEADY, "--checkpoint_interval=10"]


def assert_it_continues_like_a_run_without_a_stop(folder, reference):
    """Continue a stopped run for a while and compare it with one that was not stopped."""
    steps = checkpoint_steps(folder)[-1] + 5 * 64
    log = run_to_end(folder, *FLAGS, f"--env_steps={steps}")
    assert f"resuming CartPole-v1 at {steps - 5 * 64} steps" in log
    reference.mkdir()
    run_to_end(reference, *FLAGS, f"--env_steps={steps}")
    assert hashes(folder, steps) == hashes(reference, steps)
    for file in ("progress.csv", "episodes.csv"):
        assert csv_rows(folder, file) == csv_rows(reference, file)


def test_sigusr1_to_mpirun_saves_on_one_update_and_the_same_command_continues_exactly(tmp_path, fault_report):
    work = tmp_path / "work"
    work.mkdir()
    with RunningJob(work, *FLAGS, ENDLESS) as job:
        job.wait_for_updates(12)
        os.kill(job.process.pid, signal.SIGUSR1)
        code, seconds = job.end(within=30, since=time.time())
        assert code == 75, job.log
    assert checkpoint_steps(work)[-1] == 64 * len(csv_rows(work, "progress.csv"))
    assert_it_continues_like_a_run_without_a_stop(work, tmp_path / "reference")
    fault_report(2, "SIGUSR1 to mpirun", f"exit code 75 after {seconds:.1f} s; resumed: same sha256 and logs")


@pytest.mark.parametrize(
    ("number", "targets", "expected"),
    [
        (signal.SIGTERM, "one rank", 75),
        pytest.param(signal.SIGTERM, "all ranks", 75, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, "one rank", 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_ranks_saves_on_one_update(number, targets, expected, tmp_path, fault_report):
    with RunningJob(tmp_path, *FLAGS, ENDLESS) as job:
        job.wait_for_updates(3)
        ranks = [job.rank(1)] if targets == "one rank" else [job.rank(0), job.rank(1)]
        for pid in ranks:
            os.kill(pid, number)
        code, seconds = job.end(within=10, since=time.time())
        assert code == expected, job.log
    assert checkpoint_steps(tmp_path)[-1] == 64 * len(csv_rows(tmp_path, "progress.csv"))
    assert scratch_left(tmp_path) == []
    fault_report(3, f"{number.name} to {targets}", f"saved, exit code {code} after {seconds:.1f} s")


def test_sigterm_to_mpirun_loses_no_more_than_the_interval_and_tears_nothing(tmp_path, fault_report):
    with RunningJob(tmp_path, *FLAGS, ENDLESS) as job:
        job.wait_for_updates(23)
        os.kill(job.process.pid, signal.SIGTERM)
        code, seconds = job.end(within=10, since=time.time())
        assert code != 0
    steps, updates = checkpoint_steps(tmp_path)[-1], len(csv_rows(tmp_path, "progress.csv"))
    assert updates - steps // 64 <= 10
    resumed = ppo(tmp_path, *FLAGS, f"--env_steps={steps + 64}")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resuming CartPole-v1 at {steps} steps" in resumed.stdout
    assert scratch_left(tmp_path) == []
    fault_report(
        3, "SIGTERM to mpirun", f"ended after {seconds:.1f} s; resumed from {steps // 64} of {updates} updates"
    )


def test_a_second_signal_during_the_save_changes_nothing(tmp_path, fault_report):
    with RunningJob(tmp_path, *FLAGS, ENDLESS, fault="save:0:3:sleep:1.5") as job:
        job.wait_until((tmp_path / "fault-at").exists)
        for _ in range(3):
            os.kill(job.process.pid, signal.SIGUSR1)
            time.sleep(0.2)
        code, seconds = job.end(within=20, since=time.time())
        assert code == 75, job.log
        assert job.log.count("stopped; the same command resumes from here") == 1
        assert "WARNING" not in job.log
    assert scratch_left(tmp_path) == []
    fault_report(4, "SIGUSR1 three times during a save", f"saved once, exit code 75 after {seconds:.1f} s")


def test_ctrl_c_twice_during_a_save_without_mpi_changes_nothing(tmp_path, fault_report):
    with RunningJob(tmp_path, *FLAGS, ENDLESS, ranks=0, fault="save:0:3:sleep:1.5") as job:
        job.wait_until((tmp_path / "fault-at").exists)
        for _ in range(2):
            os.kill(job.process.pid, signal.SIGINT)
            time.sleep(0.2)
        code, _ = job.end(within=20, since=time.time())
        assert code == 130, job.log
        assert "Traceback" not in job.log
    assert scratch_left(tmp_path) == []
    fault_report(4, "Ctrl-C twice during a save, one rank", "saved, exit code 130")


# Its terminal becomes the one of the session, which ends with it.
ON_ITS_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.mark.parametrize("launcher", ["none", pytest.param("scripts/train", marks=pytest.mark.slow)])
def test_a_job_whose_terminal_goes_away_saves_and_leaves(launcher, tmp_path, fault_report):
    program = ["-m", "ppo"] if launcher == "none" else [launcher_of_ppo.__file__]
    ours, theirs = os.openpty()
    with os.fdopen(theirs) as terminal:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        job = subprocess.Popen(
            [sys.executable, "-c", ON_ITS_TERMINAL, sys.executable, *program, *FLAGS, ENDLESS],
            cwd=tmp_path,
            env=environment(PYTHONPATH=str(ROOT)),
            **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
            start_new_session=True,
        )
    progress, seen = tmp_path / "runs/CartPole-v1/progress.csv", b""
    while not progress.exists() or len(progress.read_text().splitlines()) < 4:
        seen += os.read(ours, 65_536)
    os.close(ours)
    assert job.wait(timeout=60) == 75, seen.decode(errors="replace")
    assert checkpoint_steps(tmp_path)[-1] == 64 * len(csv_rows(tmp_path, "progress.csv"))
    fault_report(3, f"the terminal of a job goes away, launcher: {launcher}", "saved, exit code 75")
