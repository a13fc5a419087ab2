"""Which engine steps the games of a rank, and which promises hold for a run with it."""

import numpy as np
import pytest
import torch

from ppo.config import MachineSettings
from ppo.envs import LEAN, Engine, choose_engine, make_envs
from ppo.envs.atari.block import AtariEnvironments
from ppo.envs.atari.vector import AtariVectorEnvironments
from ppo.envs.processes import ProcessEnvironments
from ppo.families import AtariSettings
from tests.jobs import CARTPOLE, mpirun, ppo, rows, weights
from tests.jobs import PONG as SMALL

PONG = "PongNoFrameskip-v4"


@pytest.mark.parametrize(
    ("wish", "cores", "expected"),
    [
        ("auto", [1], LEAN),
        ("auto", [8], Engine("processes", 8)),
        ("auto", [4, 4], Engine("processes", 4)),
        # One rank with one core makes it lean for all: ranks of one job are not of two kinds.
        ("auto", [4, 1], LEAN),
        ("auto", [3, 3], LEAN),
        ("lean", [8], LEAN),
        ("processes", [1], Engine("processes", 1)),
        ("processes", [3, 1], Engine("processes", 3)),
        ("vector", [1], Engine("vector", 1)),
        ("vector", [3, 1], Engine("vector", 3)),
    ],
)
def test_auto_takes_processes_where_every_rank_has_several_cores(wish, cores, expected) -> None:
    assert choose_engine(PONG, MachineSettings(env_engine=wish), cores, rank=0) == expected


@pytest.mark.parametrize("name", ["processes", "vector"])
def test_every_rank_has_as_many_threads_or_processes_as_cores(name) -> None:
    assert choose_engine(PONG, MachineSettings(env_engine=name), [8, 4], rank=1) == Engine(name, 4)


@pytest.mark.parametrize(
    ("before", "name"),
    [(None, "processes"), ("processes", "processes"), ("vector", "processes"), ("lean", "lean")],
)
def test_auto_does_not_take_exact_resume_from_a_run_that_has_it(before, name) -> None:
    assert choose_engine(PONG, MachineSettings(), [8], rank=0, before=before).name == name
    assert choose_engine(PONG, MachineSettings(env_engine="vector"), [8], rank=0, before=before).name == "vector"


def test_worlds_whose_steps_take_no_time_have_one_thread_and_slow_ones_all_cores() -> None:
    assert choose_engine("CartPole-v1", MachineSettings(), [8], rank=0) == LEAN
    assert choose_engine("HalfCheetah-v5", MachineSettings(), [8], rank=0) == Engine("processes", 8)


def test_games_are_made_by_the_engine_that_is_asked_for_and_by_the_exact_one_otherwise() -> None:
    kinds = [
        type(make_envs(PONG, AtariSettings(), indices=range(1), seed=0, **engine))
        for engine in ({}, {"engine": LEAN}, {"engine": Engine("processes", 1)}, {"engine": Engine("vector", 1)})
    ]
    assert kinds == [AtariEnvironments, AtariEnvironments, ProcessEnvironments, AtariVectorEnvironments]


def assert_ok(job):
    assert job.returncode == 0, job.stdout + job.stderr


def test_the_vector_engine_repeats_a_run_bit_for_bit_and_continues_with_new_games_which_it_says_once(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    flags = [*SMALL, "--env_engine=vector", "--sticky_actions=0.25", "--max_frames=100"]
    for folder in (first, second):
        folder.mkdir()
        assert_ok(ppo(folder, *flags, "--env_steps=192"))
    for file_name in ("model.safetensors", "training.safetensors"):
        saved = [folder / f"checkpoints/{PONG}/step_000000000192" / file_name for folder in (first, second)]
        assert saved[0].read_bytes() == saved[1].read_bytes()
    resumed = ppo(first, *flags, "--env_steps=256")
    assert_ok(resumed)
    assert f"resuming {PONG} at 192 steps" in resumed.stdout
    assert resumed.stdout.count("env_engine: vector") == resumed.stdout.count("resumes with new games") == 1
    assert resumed.stdout.count("WARNING") == resumed.stdout.count("all environments could not be restored") == 1
    steps = [int(row["env_steps"]) for row in rows(first / "runs" / PONG / "progress.csv")]
    assert steps == [64, 128, 192, 256]


def test_a_run_with_processes_is_stopped_and_continues_bit_for_bit(tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    flags = [*SMALL, "--env_engine=processes", "--sticky_actions=0.25", "--max_frames=150"]
    for folder, steps in ((whole, [192]), (resumed, [128, 192])):
        folder.mkdir()
        for end in steps:
            job = ppo(folder, *flags, f"--env_steps={end}")
            assert_ok(job)
            assert job.stdout.count("env_engine: processes, ") == 1 and "WARNING" not in job.stdout
    for file_name in ("model.safetensors", "training.safetensors"):
        saved = [folder / f"checkpoints/{PONG}/step_000000000192" / file_name for folder in (whole, resumed)]
        assert saved[0].read_bytes() == saved[1].read_bytes()


@pytest.mark.parametrize("engine", ["processes", "vector"])
def test_the_engines_take_the_same_updates_on_two_ranks_as_on_one(engine, tmp_path):
    # Two threads round differently than one, and a unit near 0 can be on in one run only: no large steps.
    flags = [*SMALL, f"--env_engine={engine}", "--env_steps=192", "--learning_rate=1e-4"]
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder, ranks in ((alone, 0), (together, 2)):
        folder.mkdir()
        job = ppo(folder, *flags, ranks=ranks)
        assert_ok(job)
        assert job.stdout.count(f"env_engine: {engine}") == 1
    for key, expected in weights(alone, PONG, 192).items():
        tolerance = 1e-4 if "moments" in key else 0.0
        np.testing.assert_allclose(weights(together, PONG, 192)[key], expected, rtol=tolerance, atol=1e-5, err_msg=key)


@pytest.mark.parametrize(("before", "after"), [("lean", "vector"), ("vector", "lean")])
def test_a_checkpoint_of_one_engine_continues_with_the_other_from_the_same_weights(before, after, tmp_path):
    assert_ok(ppo(tmp_path, *SMALL, f"--env_engine={before}", "--env_steps=64"))
    no_more = ["--learning_rate=1e-12", "--change_settings"]
    changed = ppo(tmp_path, *SMALL, f"--env_engine={after}", "--env_steps=128", *no_more)
    assert_ok(changed)
    assert changed.stdout.count("but all environments could not be restored and began a new episode") == 1
    saved, now = weights(tmp_path, PONG, 64), weights(tmp_path, PONG, 128)
    for key in ("model/policy_head.weight", "model/value_head.weight"):
        np.testing.assert_allclose(now[key], saved[key], rtol=0, atol=1e-9, err_msg=key)


@pytest.mark.parametrize(
    ("wish", "cores", "engine", "count"),
    [
        ("auto", 2, "lean", "1 thread"),
        ("auto", 4, "processes", "4 processes"),
        ("lean", 4, "lean", "1 thread"),
        ("processes", 1, "processes", "1 process"),
        ("vector", 1, "vector", "1 thread"),
        ("vector", 3, "vector", "3 threads"),
    ],
)
def test_a_run_says_once_which_engine_it_uses_and_has_as_many_threads(
    wish, cores, engine, count, tmp_path, monkeypatch
):
    monkeypatch.setattr("ppo.machine.cores_here", lambda: frozenset(map(str, range(cores))))
    job = ppo(tmp_path, *SMALL, f"--env_engine={wish}", "--env_steps=64")
    assert_ok(job)
    assert job.stdout.count(f"env_engine: {engine}, {count};") == job.stdout.count("env_engine: ") == 1
    assert torch.get_num_threads() == int(count.split()[0])


@pytest.mark.parametrize(
    ("engine", "compiled", "notices"),
    [("lean", False, 1), ("lean", True, 0), ("vector", False, 0)],
)
def test_a_run_says_that_a_compiler_would_make_it_faster(engine, compiled, notices, tmp_path, monkeypatch):
    monkeypatch.setattr("ppo.envs.atari.screens.IS_COMPILED", compiled)
    job = ppo(tmp_path, *SMALL, f"--env_engine={engine}", "--env_steps=64")
    assert_ok(job)
    assert job.stdout.count("screens are shrunk by OpenCV") == notices


def test_a_world_without_screens_reports_nothing_about_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr("ppo.envs.atari.screens.IS_COMPILED", False)
    monkeypatch.setattr("ppo.algorithm.pixels.IS_COMPILED", False)
    job = ppo(tmp_path, *CARTPOLE, "--env_steps=64")
    assert_ok(job)
    assert "pip install" not in job.stdout


def test_a_run_begun_with_one_core_a_rank_continues_exactly_where_a_rank_has_more(tmp_path, monkeypatch):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    flags = [flag for flag in SMALL if "env_engine" not in flag]
    for folder in (whole, resumed):
        folder.mkdir()
    monkeypatch.setattr("ppo.machine.cores_here", lambda: frozenset("0"))
    assert_ok(ppo(whole, *flags, "--env_steps=192"))
    assert_ok(ppo(resumed, *flags, "--env_steps=128"))
    monkeypatch.setattr("ppo.machine.cores_here", lambda: frozenset("01234567"))
    job = ppo(resumed, *flags, "--env_steps=192")
    assert_ok(job)
    assert "env_engine: lean" in job.stdout and "WARNING" not in job.stdout
    step = f"checkpoints/{PONG}/step_000000000192/training.safetensors"
    assert (whole / step).read_bytes() == (resumed / step).read_bytes()


def test_an_exact_run_of_one_engine_continues_with_the_games_of_another_and_names_what_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("ppo.machine.cores_here", lambda: frozenset("01"))
    assert_ok(ppo(tmp_path, *SMALL, "--env_engine=lean", "--env_steps=64"))
    job = ppo(tmp_path, *SMALL, "--env_engine=processes", "--env_steps=128")
    assert_ok(job)
    assert "env_engine: processes" in job.stdout and "WARNING" not in job.stdout
    assert "saved with lean, resumes with processes: not bit-identical" in job.stdout
    assert "not bit-identical to an uninterrupted run, because these changed: threads 1 -> 2" in job.stdout
    again = ppo(tmp_path, *SMALL, "--env_engine=processes", "--env_steps=192")
    assert_ok(again)
    assert "resuming" in again.stdout and "not bit-identical" not in again.stdout


def test_a_run_says_that_minibatches_would_be_faster_with_a_compiler_and_that_rounding_changed(tmp_path, monkeypatch):
    assert_ok(ppo(tmp_path, *SMALL, "--env_steps=64"))
    for name, value in (("_pixels", None), ("IS_COMPILED", False)):
        monkeypatch.setattr(f"ppo.algorithm.pixels.{name}", value)
    job = ppo(tmp_path, *SMALL, "--env_steps=128")
    assert_ok(job)
    assert job.stdout.count("minibatches are gathered by PyTorch: for faster code, reinstall") == 1
    assert "because these changed: compiled True -> False" in job.stdout


def test_a_process_that_dies_ends_the_run_which_says_so_and_keeps_its_checkpoint(tmp_path):
    assert_ok(ppo(tmp_path, *SMALL, "--env_engine=processes", "--env_steps=64"))
    program = (
        "import os, signal, sys\n"
        "from ppo.__main__ import main\n"
        "from ppo.collectives.mpi import launched_rank\n"
        "from ppo.envs.processes import ProcessEnvironments as Environments\n"
        "plain = Environments.send\n"
        "def send(self, group, actions):\n"
        "    if launched_rank() == 1: os.kill(self._processes[0]._process.pid, signal.SIGKILL)\n"
        "    plain(self, group, actions)\n"
        "Environments.send = send\n"
        f"sys.exit(main({[*SMALL, '--env_engine=processes', '--env_steps=256']!r}))\n"
    )
    job = mpirun(2, ["-c", program], tmp_path, timeout=60)
    assert job.returncode not in (0, 75)
    assert "rank 1 of 2" in job.stderr
    assert "that steps environments 2, 3 has ended (exit code -9)" in job.stderr
    assert (tmp_path / f"checkpoints/{PONG}/step_000000000064").is_dir()
