"""Agents in Python: loading, acting, their worlds, evaluation and export."""

import json
import math
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import ppo
from ppo.agents import SHIPPED_FOLDER
from ppo.api.agent import TrainedAgent
from ppo.settings import Refusal
from tests.forgery import edit_manifest
from tests.jobs import CARTPOLE
from tests.jobs import ppo as run_ppo

CONTINUOUS = "MountainCarContinuous-v0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short run whose values are in units of their own."""
    folder = tmp_path_factory.mktemp("trained")
    flags = ("--value_normalization", "--discount=1", "--env_steps=256", "--checkpoint_interval=2")
    assert run_ppo(folder, *CARTPOLE, *flags).returncode == 0
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, where modules are found too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_world_without_an_agent_of_your_own_has_the_shipped_one(here: Path) -> None:
    agent = ppo.load("CartPole-v1")
    assert agent.env_steps == json.loads((SHIPPED_FOLDER / "CartPole-v1/card.json").read_text())["env_steps"]
    assert "using the shipped one" in agent.saved.notes[0]
    assert repr(agent) == f"<CartPole-v1, trained for {agent.env_steps:,} steps>"


@pytest.mark.parametrize("where", ["name", "run", "checkpoint"])
def test_an_agent_is_found_by_its_name_its_run_or_one_of_its_checkpoints(where: str, trained: Path, here: Path) -> None:
    checkpoints = trained / "checkpoints"
    if where == "name":
        agent = ppo.load("CartPole-v1", checkpoint_dir=checkpoints, checkpoint="latest")
    else:
        run = checkpoints / "CartPole-v1"
        agent = ppo.load(run, checkpoint=256) if where == "run" else ppo.load(run / "step_000000000256")
    assert (agent.name, agent.env_name, agent.env_steps) == ("CartPole-v1", "CartPole-v1", 256)


def test_the_shipped_agent_can_be_loaded_beside_one_of_your_own(trained: Path) -> None:
    agent = ppo.load("CartPole-v1", checkpoint_dir=trained / "checkpoints", checkpoint="shipped")
    assert agent.env_steps > 256


def test_an_agent_that_does_not_exist_is_refused_with_those_that_do(trained: Path) -> None:
    with pytest.raises(Refusal, match=r"there is no agent 'nobody'.*--env_name=CartPole-v1"):
        ppo.load("nobody", checkpoint_dir=trained / "checkpoints")


def test_a_damaged_agent_is_refused(tmp_path: Path) -> None:
    shutil.copytree(SHIPPED_FOLDER / "CartPole-v1", tmp_path / "agent")
    (tmp_path / "agent/model.safetensors").write_bytes(b"nothing")
    with pytest.raises(Refusal, match="is damaged"):
        ppo.load(tmp_path / "agent")


@pytest.mark.parametrize("setting", ["network", "policy", "env_name"])
def test_a_name_in_a_checkpoint_imports_no_code(setting: str, here: Path) -> None:
    (here / "evil_code.py").write_text("raise SystemExit('it was imported')\n")
    shutil.copytree(SHIPPED_FOLDER / "CartPole-v1", here / "agent")
    section = "run" if setting == "env_name" else "model"

    def forge(data):  # type: ignore[no-untyped-def]
        data["config"][section][setting] = "evil_code:Thing"
        if setting == "env_name":
            data.update(env_name="evil_code:Thing", family="gymnasium")

    edit_manifest(here / "agent", forge)
    with pytest.raises(Refusal, match=f"if you trust them, add --{setting}=evil_code:Thing"):
        ppo.load(here / "agent")
    assert "evil_code" not in sys.modules
    with pytest.raises((Refusal, SystemExit), match="it was imported"):
        ppo.load(here / "agent", **{setting: "evil_code:Thing"})


def test_an_agent_of_categories_says_its_probabilities_and_that_of_its_choice(here: Path) -> None:
    agent = ppo.load("CartPole-v1")
    choice = agent.act([0.0, 0.0, 0.1, 0.0])
    assert agent.action_space.contains(choice.action)
    assert choice.probabilities is not None and choice.probabilities.shape == (2,)
    assert math.isclose(choice.probabilities.sum(), 1.0, rel_tol=1e-6)
    assert math.isclose(choice.density, choice.probabilities[choice.action], rel_tol=1e-5)
    assert ppo.load("CartPole-v1", act="mode").act([0.0, 0.0, 0.1, 0.0]).action == choice.probabilities.argmax()


def test_an_agent_of_continuous_actions_says_the_density_of_its_choice(here: Path) -> None:
    agent = ppo.load(CONTINUOUS)
    choice = agent.act(np.zeros(2, np.float32))
    assert choice.probabilities is None
    assert agent.action_space.contains(choice.action)
    # It plays its mean, where a normal density is 1 / (deviation sqrt(2 pi)).
    (log_deviation,) = agent.saved.model_tensors["model/policy_head.log_deviations"].tolist()
    assert math.isclose(choice.density, math.exp(-log_deviation) / math.sqrt(2.0 * math.pi), rel_tol=1e-5)


def test_values_are_in_the_units_of_rewards(trained: Path) -> None:
    agent = ppo.load(trained / "checkpoints/CartPole-v1")
    count, mean, squares = agent.saved.model_tensors["value_normalizer/moments"].tolist()
    assert mean > 5.0  # returns of a game of CartPole, each step of which is worth 1
    with torch.no_grad():
        normalised = float(agent._model(torch.zeros(1, 4)).values)
    expected = normalised * math.sqrt(squares / count) + mean
    assert math.isclose(agent.act(np.zeros(4)).value, expected, rel_tol=1e-5)


def test_an_observation_of_another_shape_is_refused(here: Path) -> None:
    with pytest.raises(Refusal, match=r"observation must have shape \(4,\), got \(1, 4\)"):
        ppo.load("CartPole-v1").act(np.zeros((1, 4)))


def played(agent: TrainedAgent, seed: int) -> tuple[float, int]:
    """Return the return and the length of a game."""
    env = agent.make_env(seed=seed)
    observation, _ = env.reset()
    total, steps, is_over = 0.0, 0, False
    while not is_over:
        observation, reward, terminated, truncated, _ = env.step(agent.act(observation).action)
        total, steps, is_over = total + reward, steps + 1, terminated or truncated
    env.close()
    return total, steps


def test_an_agent_wins_its_game(here: Path) -> None:
    agent = ppo.load("CartPole-v1", act="mode")
    assert played(agent, seed=1) == (500.0, 500)


def test_a_game_by_hand_is_that_of_an_evaluation_with_the_same_seed(trained: Path) -> None:
    for seed in (0, 7):
        agent = ppo.load(trained / "checkpoints/CartPole-v1", rng_seed=seed)
        result = ppo.evaluate(agent, 1, rng_seed=seed)
        assert played(agent, seed) == (result["return_mean"], result["episode_length_mean"])


def test_a_network_of_your_own_is_loaded_where_it_is_named(here: Path) -> None:
    (here / "own_network.py").write_text(
        "from torch import nn\n"
        "class Wide(nn.Sequential):\n"
        "    num_features = 96\n"
        "    def __init__(self, shape, settings):\n"
        "        super().__init__(nn.Linear(shape[0], 96), nn.Tanh())\n"
    )
    assert run_ppo(here, *CARTPOLE, "--network=own_network:Wide", "--env_steps=64").returncode == 0
    with pytest.raises(Refusal, match="needs code"):
        ppo.load("CartPole-v1")
    agent = ppo.load("CartPole-v1", network="own_network:Wide")
    assert agent.action_space.contains(agent.act(np.zeros(4)).action)


def test_the_world_of_an_agent_keeps_gymnasiums_contract_and_its_seeds(here: Path) -> None:
    env = ppo.load("CartPole-v1").make_env(draw=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of CartPole's own bounds
        check_env(env, skip_render_check=True)
    first, _ = env.reset(seed=5)
    again, _ = env.reset()
    assert not np.array_equal(first, again)
    assert np.array_equal(env.reset(seed=5)[0], first)
    env.step(0)
    picture = env.render()
    assert picture is not None and picture.shape[2] == 3
    env.close()


def test_the_last_observation_is_of_the_game_that_ended(here: Path) -> None:
    env = ppo.load("CartPole-v1").make_env()
    env.reset()
    terminated = False
    while not terminated:
        observation, _, terminated, _, _ = env.step(0)
    assert abs(observation[2]) > 0.2  # the pole has fallen
    assert abs(env.reset()[0][2]) < 0.05


def test_an_evaluation_is_that_of_the_command_line(trained: Path) -> None:
    flags = ["--env_name=CartPole-v1", "--mode=evaluate", "--episodes=5", "--rng_seed=3"]
    expected = json.loads(run_ppo(trained, *flags).stdout.splitlines()[-1])
    assert ppo.evaluate(trained / "checkpoints/CartPole-v1", 5, rng_seed=3) == expected


@pytest.mark.parametrize("name", ["CartPole-v1", CONTINUOUS, "PongNoFrameskip-v4"])
def test_an_exported_agent_acts_as_the_agent_does(name: str, here: Path) -> None:
    agent = ppo.load(name, act="mode")
    agent.export(here / "agent.pt")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".torch.jit.load. is deprecated", DeprecationWarning)
        exported = torch.jit.load(here / "agent.pt")
    observations = np.stack([agent.observation_space.sample() for _ in range(5)])
    actions, values = exported(torch.from_numpy(observations))
    choices = [agent.act(observation) for observation in observations]
    expected = np.stack([choice.action for choice in choices])
    assert actions.numpy().dtype == expected.dtype
    np.testing.assert_allclose(actions.numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values.numpy(), [choice.value for choice in choices], rtol=1e-4, atol=1e-5)


def test_evaluate_hands_what_it_does_not_use_itself_to_load(trained: Path) -> None:
    checkpoint = trained / "checkpoints/CartPole-v1"
    assert ppo.evaluate(checkpoint, 2, rng_seed=3, act="mode")["act"] == "mode"
    with pytest.raises(Refusal, match="act must not be set for an agent that is already loaded; pass it to load"):
        ppo.evaluate(ppo.load(checkpoint), 2, act="mode")
    with pytest.raises(Refusal, match="gae_lamda"):
        ppo.evaluate(checkpoint, 2, gae_lamda=0.5)
