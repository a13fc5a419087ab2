"""Runs resumed in the middle of episodes, in a world of each family, compared with a run without a stop."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from ppo.collectives import share
from ppo.envs import make_envs
from ppo.families import family_of
from tests.faults.running import STEADY, csv_rows, hashes
from tests.jobs import ON_PROCESSORS, ppo

WORLDS = {
    "PongNoFrameskip-v4": ["--sticky_actions=0.25"],
    "Pendulum-v1": ["--policy=beta"],
    "BipedalWalker-v3": ["--preset=continuous"],
    "HalfCheetah-v5": [],
    "Taxi-v4": [],
}
PACKAGES = {"BipedalWalker-v3": "Box2D", "HalfCheetah-v5": "mujoco"}
SIZES = ["--num_envs=4", "--rollout_steps=16", "--minibatch_size=32", "--num_epochs=2", "--checkpoint_interval=100"]
STATISTICS = [
    *("--observation_normalization", "--pixel_normalization", "--reward_normalization", "--value_normalization"),
    "--recompute_advantages",
]
STEPS = 64
"""Of an update."""


@pytest.fixture(params=WORLDS)
def env_name(request):
    if request.param in PACKAGES:
        pytest.importorskip(PACKAGES[request.param])
    return request.param


def train(folder, env_name, updates, *flags, ranks=0):
    """Train or resume in a folder up to a number of updates; return the output."""
    folder.mkdir(exist_ok=True)
    flags = [f"--env_name={env_name}", *SIZES, *STEADY, *STATISTICS, *WORLDS[env_name], ON_PROCESSORS, *flags]
    job = ppo(folder, *flags, f"--env_steps={updates * STEPS}", ranks=ranks)
    assert job.returncode == 0, job.stdout + job.stderr
    return job.stdout


def saved(folder, env_name, updates):
    """Return all tensors of a checkpoint."""
    step = folder / "checkpoints" / env_name / f"step_{updates * STEPS:012d}"
    return load_file(step / "model.safetensors") | load_file(step / "training.safetensors")


def assert_the_same_runs(first, second, env_name, updates):
    assert hashes(first, updates * STEPS, env_name) == hashes(second, updates * STEPS, env_name)
    for file in ("progress.csv", "episodes.csv"):
        assert csv_rows(first, file, env_name) == csv_rows(second, file, env_name)


def test_resuming_gives_the_same_weights_states_and_logs_as_never_stopping(env_name, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(whole, env_name, 4, "--env_engine=lean")
    for updates in (1, 3, 4):
        log = train(stopped, env_name, updates, "--env_engine=lean")
        assert "WARNING" not in log
        state = saved(stopped, env_name, updates)
        lengths = [len(state[f"environment/{index}/actions"]) for index in range(4)]
        assert all(lengths), f"an episode ends with update {updates}: try other flags for {env_name}"
        assert updates == 1 or state["learner/return_moments"][0] > 0
    assert_the_same_runs(stopped, whole, env_name, 4)


def test_a_run_that_is_stopped_once_its_statistics_are_initialised_continues_exactly(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(whole, "Pendulum-v1", 2)
    train(stopped, "Pendulum-v1", 1)
    state = saved(stopped, "Pendulum-v1", 1)
    assert state["learner/gradient_steps"] == 0
    assert (state["model/inputs.moments"][0] == STEPS).all()
    train(stopped, "Pendulum-v1", 2)
    assert saved(stopped, "Pendulum-v1", 2)["learner/gradient_steps"] == 4
    assert_the_same_runs(stopped, whole, "Pendulum-v1", 2)


def test_a_run_whose_environments_are_in_other_processes_resumes_exactly(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(whole, "Taxi-v4", 2, "--env_engine=processes")
    train(stopped, "Taxi-v4", 1, "--env_engine=processes")
    assert "WARNING" not in train(stopped, "Taxi-v4", 2, "--env_engine=processes")
    assert_the_same_runs(stopped, whole, "Taxi-v4", 2)


@pytest.mark.parametrize("ranks", [1, 3])
def test_environments_of_two_ranks_continue_in_blocks_of_other_sizes(env_name, ranks):
    world = family_of(env_name).settings()

    def blocks_of(number):
        return [make_envs(env_name, world, indices=share(4, rank, number), seed=3) for rank in range(number)]

    before, after = blocks_of(2), blocks_of(ranks)
    space = before[0].single_action_space
    space.seed(0)
    actions = np.array([[space.sample() for _ in range(4)] for _ in range(40)], space.dtype)

    def step(blocks, batch):
        ends = np.cumsum([block.num_envs for block in blocks])[:-1]
        results = [block.step(own) for block, own in zip(blocks, np.split(batch, ends), strict=True)]
        return [np.concatenate([result[part] for result in results]) for part in range(4)]

    for block in before:
        block.reset()
    for batch in actions[:20]:
        step(before, batch)
    states = [state for block in before for state in block.get_states()]
    for rank, block in enumerate(after):
        assert block.set_states([states[index] for index in share(4, rank, ranks)]) == []
    for batch in actions[20:]:
        for got, expected in zip(step(after, batch), step(before, batch), strict=True):
            np.testing.assert_array_equal(got, expected)
    for block in (*before, *after):
        block.close()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_run_of_two_ranks_continues_with_another_number_without_a_new_episode(env_name, ranks, tmp_path):
    train(tmp_path, env_name, 2, ranks=2)
    log = train(tmp_path, env_name, 3, ranks=ranks)
    assert f"saved by 2 ranks, resumes with {ranks}" in log
    assert "WARNING" not in log
