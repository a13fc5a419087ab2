"""Under a real Slurm: ranks find each other or refuse, and a job resumes after signals, requeues and preemption."""

import os
import signal
import sys
import time

import pytest

from tests.faults import slurm_rig
from tests.faults.running import checkpoint_steps, csv_rows, hashes, scratch_left
from tests.jobs import CARTPOLE, PONG

pytestmark = pytest.mark.slow

LAST = 64 * 300
# Long enough for two disturbances; saves only at the beginning, when asked to stop, and at the end.
DISTURBED = [*CARTPOLE, f"--env_steps={LAST}", "--checkpoint_interval=100000"]
ENDLESS = [*CARTPOLE, "--env_steps=100000000", "--checkpoint_interval=100000"]
SAVED_AND_LEFT = "the same command resumes from here"


@pytest.fixture(scope="module")
def slurm():
    reason = slurm_rig.reason_to_skip()
    if reason:
        pytest.skip(reason)
    with slurm_rig.Slurm() as running:
        if not running.has_pmix():
            pytest.skip("needs a Slurm with PMIx (apt-get install libpmix-dev)")
        yield running


def srun(slurm, folder, *flags, options=("-N", "1", "-n", "2", "--mpi=pmix")):
    return slurm.run("srun", *options, sys.executable, "-m", "ppo", *flags, folder=folder)


@pytest.fixture(scope="module")
def undisturbed(slurm, tmp_path_factory):
    """The folder of a run of two ranks that was left alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = srun(slurm, folder, *DISTURBED)
    assert job.returncode == 0, job.stderr
    return folder


def assert_equal_runs(folder, other, steps=LAST, name="CartPole-v1"):
    assert hashes(folder, steps, name) == hashes(other, steps, name)
    for file in ("progress.csv", "episodes.csv"):
        assert csv_rows(folder, file, name) == csv_rows(other, file, name)
    assert scratch_left(folder) == []


def test_srun_with_pmix_makes_one_world_of_its_tasks(slurm, undisturbed, fault_report):
    config = (undisturbed / "runs/CartPole-v1/config.json").read_text()
    assert '"ranks": 2' in config
    fault_report(15, "srun -n 2 --mpi=pmix", "one job of 2 ranks")


def test_two_slurm_nodes_give_the_weights_of_one(slurm, tmp_path, fault_report):
    steps = 64 * 20
    for nodes in ("1", "2"):
        folder = tmp_path / nodes
        folder.mkdir()
        job = srun(slurm, folder, *CARTPOLE, f"--env_steps={steps}", options=("-N", nodes, "-n", "2", "--mpi=pmix"))
        assert job.returncode == 0, job.stderr
    assert_equal_runs(tmp_path / "2", tmp_path / "1", steps)
    fault_report(10, "srun -N 2 -n 2 --mpi=pmix against -N 1", "same sha256 of weights and training state")


@pytest.mark.parametrize("kind", ["none", "pmi2"])
def test_tasks_that_do_not_see_each_other_are_refused_once(kind, slurm, tmp_path, fault_report):
    started = time.monotonic()
    job = srun(slurm, tmp_path, *CARTPOLE, options=("-N", "1", "-n", "2", f"--mpi={kind}"))
    seconds = time.monotonic() - started
    assert job.returncode == 2, job.stderr
    (message,) = [line for line in job.stderr.splitlines() if line.startswith("ppo: ")]
    assert "srun --mpi=pmix" in message
    assert "Traceback" not in job.stderr
    assert list(tmp_path.iterdir()) == []
    fault_report(15, f"srun -n 2 --mpi={kind}", f"exit code 2 after {seconds:.1f} s, one message, nothing made")


@pytest.mark.parametrize(
    ("command", "ranks"),
    [
        ("python -m ppo", 1),
        ("mpirun -np 2 python -m ppo", 2),
        ("srun --mpi=pmix python -m ppo", 2),
        ("srun -n 1 --mpi=none python -m ppo", 1),
    ],
)
def test_in_a_batch_script_there_are_as_many_ranks_as_were_started(command, ranks, slurm, tmp_path, fault_report):
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\nexec {command} {' '.join(CARTPOLE)} --env_steps=128\n")
    job = slurm.submit(tmp_path, options=["--output=ppo-%j.log"], script=script)
    assert job.wait_for("COMPLETED", "FAILED") == "COMPLETED", job.log
    assert f'"ranks": {ranks}' in (tmp_path / "runs/CartPole-v1/config.json").read_text()
    fault_report(15, f"sbatch -n 2, {command}", f"ranks: {ranks}")


def test_a_job_signalled_and_requeued_twice_ends_as_if_it_had_never_been(slurm, undisturbed, tmp_path, fault_report):
    job = slurm.submit(tmp_path, *DISTURBED)
    for restart, update in ((1, 20), (2, 100)):
        job.wait_for_update(update)
        # First as the time limit does it, through the batch shell; then to the ranks themselves.
        job.signal("USR1", *(["--batch"] if restart == 1 else []))
        job.wait_for_restart(restart)
    job.wait_for("COMPLETED")
    assert job.log.count("resuming CartPole-v1 at") == 2, job.log
    assert job.log.count(SAVED_AND_LEFT) == 2
    assert all(f"restart {n}, 2 ranks" in job.log for n in range(3))
    assert_equal_runs(tmp_path, undisturbed)
    fault_report(2, "SIGUSR1 twice under sbatch, requeued each time", "same sha256 and logs as the undisturbed job")


def test_scontrol_requeue_in_the_middle_of_a_fresh_run_saves_and_resumes(slurm, undisturbed, tmp_path, fault_report):
    job = slurm.submit(tmp_path, *DISTURBED, "--fresh")
    job.wait_for_update(30)
    assert slurm.run("scontrol", "requeue", job.number).returncode == 0
    job.wait_for_restart(1)
    job.wait_for("COMPLETED")
    assert job.log.count(SAVED_AND_LEFT) == job.log.count("resuming CartPole-v1 at") == 1, job.log
    assert_equal_runs(tmp_path, undisturbed)
    fault_report(
        3, "scontrol requeue (SIGTERM to all) of a job started with --fresh", "saved in time; same sha256 and logs"
    )


def test_a_job_with_mpirun_is_requeued_and_resumed_too(slurm, undisturbed, tmp_path, fault_report):
    job = slurm.submit(tmp_path, *DISTURBED, LAUNCHER="mpirun")
    job.wait_for_update(30)
    job.signal("USR1", "--batch")
    job.wait_for_restart(1)
    job.wait_for("COMPLETED")
    assert job.log.count(SAVED_AND_LEFT) == job.log.count("resuming CartPole-v1 at") == 1, job.log
    assert_equal_runs(tmp_path, undisturbed)
    fault_report(2, "SIGUSR1 with LAUNCHER=mpirun, requeued", "same sha256 and logs as under srun")


def test_mpirun_spreads_its_ranks_over_the_nodes_of_the_job(slurm, tmp_path, fault_report):
    job = slurm.submit(tmp_path, *ENDLESS, options=["--nodes=2", "--ntasks-per-node=1"], LAUNCHER="mpirun")
    job.wait_for_update(2)
    nodes = {node for pid in slurm.ranks_of(job) for node in slurm_rig.NODES if slurm_rig.runs_on(pid, node)}
    assert nodes == set(slurm_rig.NODES)
    slurm.run("scancel", job.number)
    job.wait_for("CANCELLED")
    slurm.wait_until_no_rank_is_left(job)
    fault_report(3, "scancel with LAUNCHER=mpirun on two nodes", "one rank on each node; nobody left")


def test_a_job_signalled_before_it_listens_is_requeued_too(slurm, tmp_path, fault_report):
    job = slurm.submit(tmp_path, *ENDLESS)
    job.wait_until(lambda: len(slurm.ranks_of(job)) == 2)
    job.signal("USR1")
    job.wait_for_restart(1)
    job.wait_for_update(2)
    slurm.run("scancel", job.number)
    job.wait_for("CANCELLED")
    fault_report(2, "SIGUSR1 as soon as the ranks exist", "requeued, trains")


def test_a_small_game_of_pong_continues_over_a_requeue(slurm, tmp_path, fault_report):
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    whole.mkdir()
    disturbed.mkdir()
    name, steps = "PongNoFrameskip-v4", 64 * 30
    flags = [*PONG, f"--env_steps={steps}", "--checkpoint_interval=100000"]
    job = srun(slurm, whole, *flags)
    assert job.returncode == 0, job.stderr
    job = slurm.submit(disturbed, *flags)
    job.wait_for_update(5, name)
    job.signal("USR1", "--batch")
    job.wait_for_restart(1)
    job.wait_for("COMPLETED")
    assert job.log.count(f"resuming {name} at") == 1, job.log
    assert_equal_runs(disturbed, whole, steps, name)
    fault_report(2, "Pong on 2 ranks, SIGUSR1, requeued", "same sha256 and logs as the undisturbed job")


def test_the_time_limit_saves_and_requeues(slurm, tmp_path, fault_report):
    """Slurm looks every half minute: a warning due after 60 s comes after 30 to 60 s."""
    started = time.monotonic()
    job = slurm.submit(tmp_path, *ENDLESS, options=["--time=2", "--signal=B:USR1@60"])
    job.wait_for_update(5)
    job.wait_until(lambda: job["Restarts"] == "1")
    seconds = time.monotonic() - started
    slurm.run("scancel", job.number)
    assert job.log.count(SAVED_AND_LEFT) == 1, job.log
    assert len(checkpoint_steps(tmp_path)) == 2
    assert seconds < 120
    fault_report(
        2,
        "a time limit of two minutes, warning one minute before",
        f"saved and requeued {seconds:.0f} s after the submission",
    )


def test_a_job_preempted_by_a_more_urgent_one_saves_makes_room_and_comes_back(slurm, tmp_path, fault_report):
    job = slurm.submit(tmp_path, *ENDLESS, options=["--nodes=2", "--exclusive"])
    job.wait_for_update(30)
    started = time.monotonic()
    urgent = slurm.run("srun", "--partition=high", "--nodes=2", "--exclusive", "true")
    seconds = time.monotonic() - started
    assert urgent.returncode == 0, urgent.stderr
    assert job.log.count(SAVED_AND_LEFT) == 1, job.log
    job.wait_for_restart(1)
    job.wait_until(lambda: "resuming CartPole-v1 at" in job.log)
    slurm.run("scancel", job.number)
    job.wait_for("CANCELLED")
    fault_report(3, "preempted by a job of a higher partition", f"saved, made room after {seconds:.0f} s, resumed")


def test_a_cancelled_job_saves_stays_away_and_can_be_resumed(slurm, undisturbed, tmp_path, fault_report):
    job = slurm.submit(tmp_path, *DISTURBED)
    job.wait_for_update(30)
    slurm.run("scancel", job.number)
    job.wait_for("CANCELLED")
    assert job["Restarts"] == "0"
    assert job.log.count(SAVED_AND_LEFT) == 1, job.log
    slurm.wait_until_no_rank_is_left(job)
    assert scratch_left(tmp_path) == []
    again = slurm.submit(tmp_path, *DISTURBED)
    again.wait_for("COMPLETED")
    assert_equal_runs(tmp_path, undisturbed)
    fault_report(3, "scancel (SIGTERM to all)", "saved, not requeued; submitted again: same sha256 and logs")


def test_a_rank_that_is_killed_fails_the_job(slurm, tmp_path, fault_report):
    job = slurm.submit(tmp_path, *ENDLESS)
    job.wait_for_update(10)
    killed = time.monotonic()
    os.kill(slurm.ranks_of(job)[0], signal.SIGKILL)
    job.wait_for("FAILED")
    seconds = time.monotonic() - killed
    slurm.wait_until_no_rank_is_left(job)
    assert job["Restarts"] == "0"
    fault_report(1, "kill -9 of a rank under srun", f"the job FAILED after {seconds:.1f} s, nobody left")


def test_a_job_whose_node_died_is_requeued_and_continues(slurm, undisturbed, tmp_path, fault_report):
    flags = [flag for flag in DISTURBED if "interval" not in flag]
    job = slurm.submit(tmp_path, *flags, "--checkpoint_interval=10")
    job.wait_for_update(35)
    node = job["BatchHost"]
    slurm.kill_node(node)
    try:
        job.wait_for_restart(1)
        job.wait_for("COMPLETED")
    finally:
        slurm.start_node(node)
    assert job.log.count("resuming CartPole-v1 at") == 1, job.log
    assert_equal_runs(tmp_path, undisturbed)
    fault_report(
        18, "kill -9 of all processes of a node, slurmd included", "requeued and resumed; same sha256 and logs"
    )


def test_a_refused_setting_fails_the_job_at_once(slurm, tmp_path, fault_report):
    job = slurm.submit(tmp_path, "--minibatch_size=100")
    job.wait_for("FAILED")
    assert (job["ExitCode"], job["Restarts"]) == ("2:0", "0"), job.log
    assert job.log.count("ppo: minibatch_size must be") == 1
    fault_report(15, "sbatch with a refused setting", "FAILED with exit code 2, one message")
