"""A rank that fails, hangs, drifts or was started wrongly ends the job, and one message says which and why."""

import os
import re
import shutil
import signal
import sys
import time

import pytest

from tests.faults.running import (
    ENDLESS,
    MPIRUN,
    ROOT,
    STEADY,
    RunningJob,
    checkpoint_steps,
    csv_rows,
    hashes,
    run_to_end,
    scratch_left,
)
from tests.jobs import CARTPOLE, PONG, mpirun, separately

ENDED = "ending the job"
SLOW = pytest.mark.slow


def prefix_of(text):
    """Return the program's own lines of a log."""
    return [line for line in text.splitlines() if line.startswith("ppo: ")]


@pytest.mark.parametrize(
    ("kind", "point", "says"),
    [
        ("raise", "collect", "rank 1 of 2 on .* failed in update 3, collecting, .*the emulator is on fire"),
        pytest.param(
            "exit0", "learn", r"rank 1 of 2 on .* failed in update 3, learning, .*SystemExit\(0\)", marks=SLOW
        ),
        pytest.param("exit3", "collect", r"rank 1 of 2 on .* failed .*SystemExit\(3\)", marks=SLOW),
        ("os_exit0", "collect", "(process rank 1 |@1,1])"),
        pytest.param("segv", "learn", "process rank 1 .*signal 11", marks=SLOW),
        ("kill", "learn", "process rank 1 .*signal 9"),
        pytest.param("thread", "collect", "rank 1 of 2 on .* failed .*the helper thread is on fire", marks=SLOW),
        pytest.param("wrong_shape", "collect", "rank 1 of 2 on .* failed in update 3, collecting", marks=SLOW),
    ],
)
def test_a_rank_that_fails_ends_the_job_within_ten_seconds_and_is_named(kind, point, says, tmp_path, fault_report):
    with RunningJob(tmp_path, fault=f"{point}:1:3:{kind}") as job:
        code, _ = job.end_after_fault(within=10)
        assert code != 0
        assert re.search(says, job.log, re.DOTALL), job.log
    assert scratch_left(tmp_path) == []
    assert checkpoint_steps(tmp_path) == [0]
    scenario = {"raise": 13, "wrong_shape": 13, "kill": 1}.get(kind, 19)
    fault_report(scenario, f"rank 1: {kind} in {point}", f"exit code {code}, rank named, nobody left")


def test_rank_0_killed_in_the_middle_of_an_update_ends_the_job(tmp_path, fault_report):
    with RunningJob(tmp_path, fault="learn:0:3:kill") as job:
        code, seconds = job.end_after_fault(within=10)
        assert code != 0
    fault_report(1, "kill -9 of rank 0 between backward and all-reduce", f"exit code {code} after {seconds:.1f} s")


@SLOW
def test_a_failure_among_four_ranks_ends_all_of_them(tmp_path, fault_report):
    with RunningJob(tmp_path, ranks=4, fault="collect:2:2:raise") as job:
        code, seconds = job.end_after_fault(within=10)
        assert code != 0
        assert "rank 2 of 4" in job.log
    fault_report(13, "exception on rank 2 of 4", f"exit code {code} after {seconds:.1f} s")


def test_a_failing_environment_is_named_with_game_seed_and_update(tmp_path, fault_report):
    with RunningJob(tmp_path, *PONG, ENDLESS, "--rng_seed=7", fault="collect:1:1:raise") as job:
        code, _ = job.end_after_fault(within=10)
        (line,) = [line for line in prefix_of(job.log) if ENDED in line]
        for word in ("rank 1 of 2", "update 1", "PongNoFrameskip-v4", "rng_seed 7"):
            assert word in line
    fault_report(13, "exception in a Pong environment of rank 1", f"exit code {code}; game, seed and update named")


def test_a_stopped_rank_is_named_with_its_host_and_last_phase_and_the_others_print_their_stacks(tmp_path, fault_report):
    with RunningJob(tmp_path, *CARTPOLE, ENDLESS, "--watchdog_seconds=4") as job:
        job.wait_for_updates(40)
        os.kill(job.rank(1), signal.SIGSTOP)
        code, seconds = job.end(within=4 + 5, since=time.time())
        assert code != 0
        assert "stack of rank 0 of 2" in job.log
        assert any(call in job.log for call in ("in barrier", "in sum_in_place", "in gather"))
        said = re.findall(
            r"no progress for 4 s: rank 1 on \S+ has been silent for \d+ s, last heard in update \d+, \w+", job.log
        )
        assert len(said) == 1, job.log
    fault_report(14, "SIGSTOP of rank 1, --watchdog_seconds=4", f"ended after {seconds:.1f} s: {said[0]}")


@SLOW
def test_a_stopped_rank_0_is_named_by_another(tmp_path, fault_report):
    with RunningJob(tmp_path, *CARTPOLE, ENDLESS, "--watchdog_seconds=4") as job:
        job.wait_for_updates(40)
        os.kill(job.rank(0), signal.SIGSTOP)
        code, seconds = job.end(within=4 + 6, since=time.time())
        assert code != 0
        assert len(re.findall(r"rank 0 on \S+ is silent", job.log)) == 1, job.log
        assert "stack of rank 1 of 2" in job.log
    fault_report(14, "SIGSTOP of rank 0", f"ended after {seconds:.1f} s, rank 1 named it")


@pytest.mark.parametrize("kind", ["spin", pytest.param("hold", marks=SLOW)])
def test_a_rank_stuck_in_a_loop_is_named_with_the_place(kind, tmp_path, fault_report):
    with RunningJob(tmp_path, *CARTPOLE, ENDLESS, "--watchdog_seconds=4", fault=f"collect:1:3:{kind}") as job:
        code, seconds = job.end_after_fault(within=4 + 6)
        assert code != 0
        # While the GIL is held not even a heartbeat is sent.
        said = "rank 1 on .* is stuck in update 3, collecting" if kind == "spin" else "rank 1 on .* has been silent for"
        assert len(re.findall(said, job.log)) == 1, job.log
    fault_report(14, f"rank 1 loops for ever ({kind})", f"ended after {seconds:.1f} s, rank and phase named")


@pytest.mark.parametrize("kind", ["spin", pytest.param("hold", marks=SLOW)])
def test_a_run_without_mpi_that_is_stuck_ends_itself(kind, tmp_path, fault_report):
    with RunningJob(tmp_path, *CARTPOLE, ENDLESS, "--watchdog_seconds=3", ranks=0, fault=f"collect:0:3:{kind}") as job:
        code, seconds = job.end_after_fault(within=3 + (6 if kind == "spin" else 30))
        assert code != 0
        assert "faulty.py" in job.log, "the stack shows the place"
    fault_report(14, f"a single rank loops for ever ({kind})", f"exit code {code} after {seconds:.1f} s, stack printed")


@SLOW
def test_a_run_stopped_by_sigstop_continues_after_sigcont(tmp_path, fault_report):
    with RunningJob(tmp_path, *CARTPOLE, ENDLESS, "--watchdog_seconds=3") as job:
        job.wait_for_updates(20)
        ranks = [job.rank(0), job.rank(1)]
        for pid in ranks:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(6)
        for pid in ranks:
            os.kill(pid, signal.SIGCONT)
        updates = len(csv_rows(tmp_path, "progress.csv"))
        job.wait_for_updates(updates + 200)
    fault_report(14, "all ranks stopped for twice the watchdog's time, then continued", "went on")


def test_a_slow_rank_is_named_and_the_job_finishes(tmp_path, fault_report):
    flags = [*CARTPOLE, "--env_steps=512"]
    log = run_to_end(tmp_path, *flags, fault="learn:1:2:sleep:0.15")
    (line,) = [line for line in log.splitlines() if "is slow and the others wait" in line]
    assert "rank 1 on" in line
    fault_report(14, "rank 1 sleeps 0.6 s an update", "finished, warned: " + line.removeprefix("WARNING: ")[:90])


@pytest.mark.parametrize("kind", ["spin", pytest.param("none", marks=SLOW)])
def test_no_rank_outlives_a_launcher_that_was_killed(kind, tmp_path, fault_report):
    """Ranks that are in no MPI call notice too."""
    with RunningJob(tmp_path, *CARTPOLE, ENDLESS, fault=f"collect:1:40:{kind}") as job:
        job.wait_for_updates(38)
        time.sleep(0.5)
        killed = time.time()
        os.kill(job.process.pid, signal.SIGKILL)
        job.process.wait()
        while job.processes() and time.time() < killed + 30:
            time.sleep(0.05)
        assert job.processes() == [], job.log
    seconds = time.time() - killed
    fault_report(
        1,
        "kill -9 of mpirun" + (" while rank 1 makes no MPI call" if kind == "spin" else ""),
        f"no rank left after {seconds:.1f} s",
    )


@pytest.mark.parametrize("kind", ["nan", pytest.param("infinite_reward", marks=SLOW)])
def test_a_result_that_is_not_finite_stops_all_ranks_at_once_and_is_never_saved(kind, tmp_path, fault_report):
    point = "learn" if kind == "nan" else "collect"
    flags = [*CARTPOLE, ENDLESS, "--checkpoint_interval=1"]
    with RunningJob(tmp_path, *flags, fault=f"{point}:1:3:{kind}") as job:
        code, _ = job.end_after_fault(within=10)
        assert code == 70, job.log
        (line,) = prefix_of(job.log)
        assert "update 3 is not finite" in line
        assert "Traceback" not in job.log
    assert checkpoint_steps(tmp_path)[-1] == 128
    assert len(csv_rows(tmp_path, "progress.csv")) == 2
    fault_report(
        12, f"{kind} on rank 1 in update 3", f"exit code {code}, one message, the checkpoint of update 2 stands"
    )


def test_replicas_that_drift_apart_stop_the_job_before_the_next_save(tmp_path, fault_report):
    # In shared memory there is one replica, so nothing can drift apart.
    flags = [*CARTPOLE, ENDLESS, "--checkpoint_interval=5", "--all_reduce=flat"]
    with RunningJob(tmp_path, *flags, fault="learn:1:3:perturb") as job:
        code, _ = job.end_after_fault(within=10)
        assert code == 70, job.log
        (line,) = prefix_of(job.log)
        assert re.search(r"rank 1 on \S+ differs from rank 0 on \S+ in model/\S+ \(\w{16} there, \w{16} here\)", line)
        assert "Traceback" not in job.log
    assert checkpoint_steps(tmp_path) == [0]
    fault_report(
        20, "one weight of rank 1 changed by 0.001", "exit code 70 at the next comparison, rank and tensor named"
    )


def multiple(*commands):
    """Run several programs as one job of one rank each."""
    joined = []
    for command in commands:
        joined += [":", "-np", "1", *command]
    return joined[1:]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        pytest.param(
            ["--env_name=CartPole-v0"],
            "rank 1 on .* was started differently from rank 0 .* env_name 'CartPole-v0'",
            marks=SLOW,
        ),
        (
            ["--env_name=CartPole-v99"],
            "rank 1: env_name 'CartPole-v99' is not registered; the newest version is CartPole-v1",
        ),
        (["--learning_rate=0.5"], "learning_rate 0.5 instead of 0.001"),
        pytest.param(["--minibatch_size=7"], "rank 1: minibatch_size must be a multiple of num_envs = 4", marks=SLOW),
        pytest.param(["--model_size=huge"], "rank 1: model_size must be one of", marks=SLOW),
    ],
)
def test_ranks_that_were_started_differently_are_reported_once_and_nothing_is_made(other, says, tmp_path, fault_report):
    one, two = ([sys.executable, "-m", "ppo", *CARTPOLE, *extra] for extra in ([], other))
    started = time.time()
    job = separately([MPIRUN, *multiple(one, two)], tmp_path, timeout=30)
    assert job.returncode == 2
    (line,) = prefix_of(job.stderr)
    assert re.search(says, line), line
    assert list(tmp_path.iterdir()) == []
    fault_report(
        15, f"mpirun -np 1 A : -np 1 A {other[0]}", f"exit code 2 after {time.time() - started:.1f} s, one message"
    )


def test_ranks_with_different_code_are_reported(tmp_path, fault_report):
    shutil.copytree(ROOT / "ppo", tmp_path / "elsewhere/ppo", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "elsewhere/ppo/algorithm/equations.py", "a") as file:
        file.write("\n# another version\n")
    one = [sys.executable, "-m", "ppo", *CARTPOLE]
    two = ["env", f"PYTHONPATH={tmp_path / 'elsewhere'}", *one]
    work = tmp_path / "work"
    work.mkdir()
    job = separately([MPIRUN, *multiple(one, two)], work, timeout=30)
    assert job.returncode == 2
    (line,) = prefix_of(job.stderr)
    assert "version of ppo" in line
    assert list(work.iterdir()) == []
    fault_report(15, "rank 1 runs other code", "exit code 2, one message")


@pytest.mark.parametrize(
    "flag", ["--env_name=ALE/Combat-v5", pytest.param("--env_name=PnogNoFrameskip-v4", marks=SLOW)]
)
def test_a_game_that_cannot_be_loaded_is_refused_once(flag, tmp_path, fault_report):
    job = mpirun(2, ["-m", "ppo", flag], tmp_path, timeout=30)
    assert job.returncode == 2
    assert len(prefix_of(job.stderr)) == 1
    assert list(tmp_path.iterdir()) == []
    fault_report(15, flag, "exit code 2, one message, nothing made")


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=SLOW)])
def test_a_job_killed_in_the_middle_of_a_save_continues_to_the_same_weights(victim, tmp_path, fault_report):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    flags = [*CARTPOLE, *STEADY, "--checkpoint_interval=2", "--env_steps=640"]
    run_to_end(whole, *flags)
    fault = "save:0:4:kill" if victim == 0 else "learn:1:5:kill"
    with RunningJob(killed, *flags, fault=fault) as job:
        code, _ = job.end_after_fault(within=10)
        assert code != 0
    left = scratch_left(killed)
    assert len(left) == (victim == 0), "a killed writer cannot clean up behind itself"
    assert checkpoint_steps(killed)[-1] == (128 if victim == 0 else 256)
    log = run_to_end(killed, *flags)
    assert f"resuming CartPole-v1 at {128 if victim == 0 else 256} steps" in log
    assert scratch_left(killed) == []
    assert hashes(killed, 640) == hashes(whole, 640)
    for file in ("progress.csv", "episodes.csv"):
        assert csv_rows(killed, file) == csv_rows(whole, file)
    fault_report(
        1,
        "kill -9 of "
        + ("rank 0 between the files of a checkpoint" if victim == 0 else "rank 1 in the update after a save"),
        "same sha256 and logs as the run that was never killed",
    )
