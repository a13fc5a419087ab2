"""Training from Python: a job of its own, followed through its files."""

import os
import sys
from pathlib import Path

import pytest

import ppo
from ppo.api.job import Row, TrainingJob, _Log
from ppo.config import Config
from ppo.settings import Refusal
from tests.jobs import MPI_ENVIRONMENT, rows

SMALL = {"num_envs": 4, "rollout_steps": 16, "minibatch_size": 32, "num_epochs": 2, "device": "cpu"}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, value in MPI_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_a_job_reports_each_update_once_resumes_and_saves_when_it_is_stopped(here: Path) -> None:
    updates: list[Row] = []
    job = ppo.train("CartPole-v1", ranks=1, on_update=updates.append, env_steps=256, **SMALL)
    assert job.wait(60) == 0
    assert not job.is_running
    assert [row["env_steps"] for row in updates] == [64.0, 128.0, 192.0, 256.0]
    written = rows(here / "runs/CartPole-v1/progress.csv")
    assert [{k: "" if v is None else v for k, v in row.items()} for row in updates] == [
        {k: float(v) if v else "" for k, v in row.items()} for row in written
    ]
    assert "done: CartPole-v1 at 256 steps" in job.output

    later: list[Row] = []

    def stop_at_the_third(row: Row) -> bool:
        later.append(row)
        return len(later) < 3

    job = ppo.train("CartPole-v1", ranks=1, on_update=stop_at_the_third, env_steps=100_000_000, **SMALL)
    assert job.wait(60) == 75
    assert [row["update"] for row in later] == list(range(5, 5 + len(later)))
    newest = sorted(job.checkpoint_folder.glob("step_*"))[-1]
    assert ppo.load(newest).env_steps == later[-1]["env_steps"]


def test_a_wrong_setting_is_refused_before_anything_starts(here: Path) -> None:
    with pytest.raises(Refusal, match="here it is --env_steps"):
        ppo.train("CartPole-v1", total_timesteps=1000)
    with pytest.raises(Refusal, match="mode must not be set for train, got 'play'"):
        ppo.train("CartPole-v1", mode="play")
    with pytest.raises(Refusal, match="seeds must not be set for train"):
        ppo.train("CartPole-v1", seeds="1-3")
    assert list(here.iterdir()) == []


def job_of(program: str) -> TrainingJob:
    """Start a program in the place of a training."""
    return TrainingJob([sys.executable, "-c", f"import os, sys, time\n{program}"], Config())


def test_what_a_job_refuses_is_refused_here() -> None:
    job = job_of("print('ppo: num_envs must be at least 1', file=sys.stderr); sys.exit(2)")
    with pytest.raises(Refusal, match=r"^num_envs must be at least 1$"):
        job.wait(60)


def test_a_job_that_fails_says_what_it_said_last() -> None:
    job = job_of("print('rank 1 has failed', flush=True); os.kill(os.getpid(), 9)")
    with pytest.raises(RuntimeError, match=r"exit code -9; its last output:\nrank 1 has failed$"):
        job.wait(60)


def test_a_job_that_is_stopped_before_it_listens_has_left() -> None:
    assert job_of("time.sleep(60)").stop() == 75


def test_a_wait_that_is_too_short_leaves_the_job_alone() -> None:
    job = job_of("time.sleep(60)")
    with pytest.raises(TimeoutError):
        job.wait(0.0)
    assert job.is_running
    job.stop()


def test_a_ctrl_c_here_is_not_one_for_the_job() -> None:
    job = job_of("time.sleep(60)")
    assert os.getpgid(job._process.pid) != os.getpgid(0)
    job.stop()


HEADER = b"update,loss\n"


def test_rows_are_reported_once_they_are_whole(here: Path) -> None:
    path = here / "progress.csv"
    log = _Log(path)
    assert list(log.new_rows()) == []
    path.write_bytes(HEADER + b"1,0.5\n2,0.")
    assert list(log.new_rows()) == [{"update": 1.0, "loss": 0.5}]
    path.write_bytes(HEADER + b"1,0.5\n2,0.25\n3,\n")
    assert list(log.new_rows()) == [{"update": 2.0, "loss": 0.25}, {"update": 3.0, "loss": None}]
    assert list(log.new_rows()) == []


@pytest.mark.parametrize("looks_between", [True, False])
def test_a_log_that_is_cut_back_reports_what_follows_the_cut(looks_between: bool, here: Path) -> None:
    path = here / "progress.csv"
    path.write_bytes(HEADER + b"1,0.5\n2,0.25\n3,0.125\n")
    log = _Log(path)
    if looks_between:
        path.write_bytes(HEADER + b"1,0.5\n")
        assert list(log.new_rows()) == []
    path.write_bytes(HEADER + b"1,0.5\n2,0.26\n3,0.126\n4,0.1\n")
    assert [row["loss"] for row in log.new_rows()] == [0.26, 0.126, 0.1]


def test_a_new_log_in_the_place_of_an_old_one_is_reported_from_its_first_row(here: Path) -> None:
    path = here / "progress.csv"
    path.write_bytes(HEADER + b"1,0.5\n2,0.25\n")
    log = _Log(path)
    path.write_bytes(HEADER + b"1,0.75\n")
    assert list(log.new_rows()) == [{"update": 1.0, "loss": 0.75}]
