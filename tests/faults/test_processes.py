"""Faults in jobs whose ranks step their games in processes."""

import ctypes
import os
import signal
import time

import pytest

from tests.faults.running import ENDLESS, RunningJob, checkpoint_steps, command_of, csv_rows
from tests.jobs import PONG

PTRACE_ATTACH, PTRACE_DETACH, WALL = 16, 17, 0x40000000
NAME = "PongNoFrameskip-v4"
FLAGS = [
    *(flag for flag in PONG if "env_engine" not in flag),
    "--env_engine=processes",
    "--checkpoint_interval=10",
    ENDLESS,
]


def workers(job):
    return [pid for pid in job.processes() if b"ppo.envs.worker" in command_of(pid)]


def test_a_job_with_processes_is_signalled_to_save_and_leave(tmp_path, fault_report):
    with RunningJob(tmp_path, *FLAGS, program="ppo") as job:
        job.wait_for_updates(3, name=NAME)
        assert len(workers(job)) >= 2
        for pid in workers(job):
            os.kill(pid, signal.SIGUSR1)  # as a scheduler does that signals every process of a step
        os.kill(job.process.pid, signal.SIGUSR1)
        code, seconds = job.end(within=30, since=time.time())
        assert code == 75, job.log
    assert checkpoint_steps(tmp_path, NAME)[-1] == 64 * len(csv_rows(tmp_path, "progress.csv", NAME))
    fault_report(2, "SIGUSR1 to mpirun and all processes that step games", f"saved, exit code 75 after {seconds:.1f} s")


def test_processes_end_with_a_rank_that_is_killed_and_with_the_others(tmp_path, fault_report):
    with RunningJob(tmp_path, *FLAGS, program="ppo") as job:
        job.wait_for_updates(3, name=NAME)
        os.kill(job.rank(1), signal.SIGKILL)
        code, seconds = job.end(within=10, since=time.time())
        assert code != 0
    fault_report(1, "kill -9 of a rank with processes that step its games", f"nothing left after {seconds:.1f} s")


def test_a_process_that_is_stopped_ends_the_job_by_the_watchdog_and_does_not_outlive_it(tmp_path, fault_report):
    with RunningJob(tmp_path, *FLAGS, "--watchdog_seconds=4", program="ppo") as job:
        job.wait_for_updates(3, name=NAME)
        os.kill(workers(job)[0], signal.SIGSTOP)
        code, seconds = job.end(within=4 + 6, since=time.time())
        assert code != 0
        assert "no progress for 4 s: rank " in job.log
    fault_report(14, "SIGSTOP of a process that steps games", f"ended after {seconds:.1f} s, its rank named")


@pytest.mark.slow
def test_a_debugger_on_a_process_that_steps_games_holds_the_watchdog_off(tmp_path, fault_report):
    with RunningJob(tmp_path, *FLAGS, "--watchdog_seconds=4", program="ppo") as job:
        job.wait_for_updates(3, name=NAME)
        traced = workers(job)[-1]
        trace = ctypes.CDLL(None, use_errno=True).ptrace
        if trace(PTRACE_ATTACH, traced, None, None):
            pytest.skip(f"no debugger may attach here: {os.strerror(ctypes.get_errno())}")
        os.waitpid(traced, os.WUNTRACED | WALL)
        time.sleep(12)
        updates = len(csv_rows(tmp_path, "progress.csv", NAME))
        trace(PTRACE_DETACH, traced, None, None)
        job.wait_for_updates(updates + 3, name=NAME)
        os.kill(job.process.pid, signal.SIGUSR1)
        assert job.end(within=30, since=time.time())[0] == 75, job.log
    fault_report(14, "a debugger holds a process that steps games for 12 s", "waited for, went on")
