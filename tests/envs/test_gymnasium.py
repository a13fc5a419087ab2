"""Vector-observation worlds: seeds by address, SAME_STEP ends, time limits and states that are replayed."""

from collections.abc import Callable, Iterator

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from ppo.command_line import parse_command_line
from ppo.envs import check_environment, make_envs
from ppo.envs.gymnasium import GymnasiumEnvironments
from ppo.families import GymnasiumSettings
from ppo.settings import Refusal

CART_POLE = "CartPole-v1"


def cart_poles(indices: range, seed: int = 0) -> GymnasiumEnvironments:
    return GymnasiumEnvironments(CART_POLE, indices=indices, seed=seed)


def balancing_actions(observations: NDArray[np.float32]) -> NDArray[np.int64]:
    """Push towards the side the pole falls to: keeps CartPole up for all of its 500 steps."""
    _, _, angle, angular_velocity = observations.T
    return (angle + angular_velocity > 0).astype(np.int64)


def test_an_environment_is_the_same_whatever_block_it_is_in() -> None:
    whole, alone = cart_poles(range(4)), cart_poles(range(3, 4))
    whole.reset()
    alone.reset()
    ends = 0
    for actions in np.random.default_rng(0).integers(0, 2, (100, 4)):
        whole.step(actions)
        ends += int(alone.step(actions[3:])[2][0])
        np.testing.assert_array_equal(whole.observations[3], alone.observations[0])
    assert ends > 1


def test_environments_and_episodes_begin_differently() -> None:
    envs = cart_poles(range(3))
    firsts = [tuple(row) for _ in range(3) for row in envs.reset()[0].tolist()]
    assert len(set(firsts)) == 9


def test_the_seed_changes_how_episodes_begin() -> None:
    assert not np.array_equal(cart_poles(range(1), seed=0).reset()[0], cart_poles(range(1), seed=1).reset()[0])


def test_steps_are_those_of_the_gymnasium_environment() -> None:
    envs, env = cart_poles(range(1)), gymnasium.make(CART_POLE)
    envs.reset()
    env.reset()
    env.unwrapped.state = envs.observations[0].astype(np.float64)
    for action in (0, 1, 1, 0, 1):
        observations, rewards, *_ = envs.step(np.array([action]))
        expected, reward, *_ = env.step(action)
        np.testing.assert_allclose(observations[0], expected, rtol=1e-5)
        assert rewards[0] == reward
    env.close()


def first_end(envs: GymnasiumEnvironments) -> int:
    """Push to one side until the pole of the only environment falls; return the number of steps."""
    envs.reset()
    for step in range(1, 50):
        if envs.step(np.array([1]))[2][0]:
            return step
    raise AssertionError("the pole did not fall")


def test_at_an_end_final_obs_shows_the_fallen_pole_and_the_observation_a_new_one() -> None:
    envs = cart_poles(range(1))
    first_end(envs)
    fallen, upright = envs._info["final_obs"][0], envs.observations[0]
    assert abs(fallen[2]) > 0.209 > 0.05 >= abs(upright[2])


def test_the_observation_after_an_end_is_what_the_next_reset_would_have_given() -> None:
    ended, reset = cart_poles(range(1)), cart_poles(range(1))
    first_end(ended)
    reset.reset()
    reset.reset()
    np.testing.assert_array_equal(ended.observations, reset.observations)


def test_return_and_length_are_those_of_the_episode_that_ended() -> None:
    envs = cart_poles(range(1))
    length = first_end(envs)
    assert envs._info["episode_return"][0] == envs._info["episode_length"][0] == length


def test_the_time_limit_truncates_and_does_not_terminate() -> None:
    envs = cart_poles(range(2))
    observations, _ = envs.reset()
    for step in range(1, 501):
        observations, _, terminated, truncated, info = envs.step(balancing_actions(observations))
        assert not terminated.any()
        assert truncated.all() == (step == 500)
    assert info["episode_length"].tolist() == [500, 500]


def test_nothing_ever_loses_a_life() -> None:
    envs = cart_poles(range(1))
    first_end(envs)
    assert not envs._info["life_lost"].any()


def test_a_frame_listener_receives_pictures_of_the_first_environment() -> None:
    shapes: list[tuple[int, ...]] = []
    envs = make_envs(
        CART_POLE, GymnasiumSettings(), indices=range(2), seed=0, on_frame=lambda frame: shapes.append(frame.shape)
    )
    envs.reset()
    envs.step(np.array([0, 0]))
    envs.close()
    assert shapes == [(400, 600, 3)]


# ------------------------------------------------------------------------------------------------------------ states


@pytest.mark.parametrize("env_name", [CART_POLE, "Acrobot-v1", "MountainCar-v0"])
def test_a_fresh_block_goes_on_from_a_state_bit_for_bit(env_name: str) -> None:
    def make() -> GymnasiumEnvironments:
        return GymnasiumEnvironments(env_name, indices=range(2, 4), seed=5)

    original, fresh = make(), make()
    original.reset()
    actions = np.random.default_rng(0).integers(0, original.single_action_space.n, (260, 2))
    for step in range(130):
        original.step(actions[step])
    assert fresh.set_states(original.get_states()) == []
    np.testing.assert_array_equal(fresh.observations, original.observations)
    for step in range(130, 260):
        for before, after in zip(original.step(actions[step])[:4], fresh.step(actions[step])[:4], strict=True):
            np.testing.assert_array_equal(after, before)


def test_a_restored_episode_ends_with_its_whole_return_and_length() -> None:
    original, fresh = cart_poles(range(1)), cart_poles(range(1))
    original.reset()
    for _ in range(5):
        original.step(np.array([1]))
    fresh.set_states(original.get_states())
    steps = 5
    while not fresh.step(np.array([1]))[2][0]:
        steps += 1
    assert fresh._info["episode_return"][0] == fresh._info["episode_length"][0] == steps + 1


class Drifting(gymnasium.Env[NDArray[np.float32], int]):
    """A world that no seed makes do the same twice: numbers count on over all episodes of the process."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    made = 0

    def __init__(self, drifts: str, render_mode: str | None = None) -> None:
        self.drifts = drifts

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        Drifting.made += 1
        self.drift, self.steps = Drifting.made, 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        observation = np.array([self.steps + self.drift * (self.drifts == "observation")], np.float32)
        reward = float(self.drift if self.drifts == "reward" else action)
        ends = self.steps == (1 if self.drifts == "end" and self.drift > 1 else 10)
        return observation, reward, ends, False, {}


@pytest.fixture
def drifting(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The id of a registered world whose observations, rewards or ends (keyword `drifts`) are not deterministic."""
    monkeypatch.setattr(Drifting, "made", 0)
    gymnasium.register("Drifting-v0", entry_point=Drifting, kwargs={"drifts": "nothing"}, max_episode_steps=50)
    yield "Drifting-v0"
    del gymnasium.registry["Drifting-v0"]


def saved_after_three_steps(env_name: str) -> list[dict[str, NDArray]]:
    envs = GymnasiumEnvironments(env_name, indices=range(4, 5), seed=0)
    envs.reset()
    for action in (1, 0, 1):
        envs.step(np.array([action]))
    return envs.get_states()


def test_a_registered_world_that_is_deterministic_is_brought_back(drifting: str) -> None:
    envs = GymnasiumEnvironments(drifting, indices=range(4, 5), seed=0)
    assert envs.set_states(saved_after_three_steps(drifting)) == []
    assert (envs._returns[0], envs.observations[0, 0]) == (2.0, 3.0)


@pytest.mark.parametrize("drifts", ["observation", "reward", "end"])
def test_a_world_that_does_not_do_the_same_again_begins_its_next_episode_and_is_reported(
    drifting: str, drifts: str
) -> None:
    gymnasium.registry[drifting].kwargs["drifts"] = drifts
    states = saved_after_three_steps(drifting)
    envs = GymnasiumEnvironments(drifting, indices=range(4, 5), seed=0)
    assert envs.set_states(states) == [4]
    assert (envs._episodes, envs._actions, envs._returns.tolist()) == ([1], [[]], [0.0])
    assert envs.observations[0, 0] == 0.0
    envs.step(np.array([1]))


def test_only_the_environments_that_are_not_exact_are_restarted() -> None:
    original, fresh = cart_poles(range(2, 5)), cart_poles(range(2, 5))
    original.reset()
    original.step(np.array([0, 1, 1]))
    states = original.get_states()
    states[1]["observation"][0] += 1.0
    assert fresh.set_states(states) == [3]
    np.testing.assert_array_equal(fresh.observations[[0, 2]], original.observations[[0, 2]])
    assert fresh._episodes == [0, 1, 0]


def test_actions_that_go_on_past_the_end_are_not_exact() -> None:
    state = saved_after_three_steps(CART_POLE)[0]
    envs = GymnasiumEnvironments(CART_POLE, indices=range(4, 5), seed=0)
    assert envs.set_states([{**state, "actions": np.ones(60, np.int64)}]) == [4]
    assert envs._episodes == [1]


def test_a_frame_listener_is_not_shown_an_episode_that_is_played_again() -> None:
    frames: list[NDArray[np.uint8]] = []
    envs = make_envs(CART_POLE, GymnasiumSettings(), indices=range(4, 5), seed=0, on_frame=frames.append)
    assert envs.set_states(saved_after_three_steps(CART_POLE)) == []
    assert frames == []
    envs.step(np.array([0]))
    envs.close()
    assert len(frames) == 1


State = dict[str, NDArray]
MALFORMED: dict[str, Callable[[State], State]] = {
    "with a part missing": lambda state: {"episode": state["episode"]},
    "with a part too many": lambda state: {**state, "more": np.zeros(1, np.int64)},
    "without an episode": lambda state: {**state, "episode": np.empty(0, np.int64)},
    "with a negative episode": lambda state: {**state, "episode": np.array([-1])},
    "with an episode that there cannot be": lambda state: {**state, "episode": np.array([2**62])},
    "with an action there is not": lambda state: {**state, "actions": np.array([0, 2])},
    "with a negative action": lambda state: {**state, "actions": np.array([-1])},
    "with actions of another type": lambda state: {**state, "actions": np.zeros(3)},
    "with actions in two dimensions": lambda state: {**state, "actions": np.zeros((1, 3), np.int64)},
    "with an action in none": lambda state: {**state, "actions": np.int64(1)},
    "with more actions than the time limit": lambda state: {**state, "actions": np.zeros(500, np.int64)},
    "with another world's observation": lambda state: {**state, "observation": np.zeros(3, np.float32)},
    "with an observation of another type": lambda state: {**state, "observation": np.zeros(4)},
    "without a return": lambda state: {**state, "episode_return": np.empty(0)},
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_state_is_refused_naming_its_environment_before_any_is_touched(kind: str) -> None:
    envs = cart_poles(range(5, 7))
    state = saved_after_three_steps(CART_POLE)[0]
    with pytest.raises(ValueError, match=r"saved .* of environment 6"):
        envs.set_states([state, MALFORMED[kind](state)])
    assert envs._episodes == [-1, -1]


@pytest.mark.parametrize("number", [0, 2])
def test_states_for_another_number_of_environments_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"a state for each of 1 environments, got {number}"):
        cart_poles(range(1)).set_states(saved_after_three_steps(CART_POLE) * number)


# ------------------------------------------------------------------------------------------------------------- names


def check(env_name: str, *flags: str) -> None:
    """Check a command line that names a world."""
    check_environment(parse_command_line([f"--env_name={env_name}", *flags]))


class Pictures(gymnasium.Env[NDArray[np.uint8], int]):
    """A world of pictures."""

    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)


@pytest.fixture
def pictures() -> Iterator[str]:
    """The id of a registered environment with image observations."""
    gymnasium.register("Pictures-v0", entry_point=Pictures)
    yield "Pictures-v0"
    del gymnasium.registry["Pictures-v0"]


def test_image_observations_are_refused(pictures: str) -> None:
    with pytest.raises(Refusal, match=r"vector observations.*try CartPole-v1"):
        check(pictures)


def test_continuous_actions_are_refused() -> None:
    with pytest.raises(Refusal, match=r"discrete actions.*try CartPole-v1"):
        check("Pendulum-v1")


def test_an_unknown_world_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(Refusal, match="did you mean 'CartPole-v1'"):
        check("CartPol-v1")


@pytest.fixture
def broken() -> Iterator[str]:
    """The id of a registered environment whose package is not installed."""
    gymnasium.register("Broken-v0", entry_point="no_such_package:Env")
    yield "Broken-v0"
    del gymnasium.registry["Broken-v0"]


def test_a_world_whose_package_is_missing_is_refused_saying_which(broken: str) -> None:
    with pytest.raises(Refusal, match=r"cannot be made here.*no_such_package"):
        check(broken)


@pytest.mark.parametrize("setting", ["sticky_actions", "full_action_space", "noop_max", "frame_stack"])
def test_settings_that_only_atari_has_are_refused(setting: str) -> None:
    with pytest.raises(Refusal, match=f"{setting} must not be set for CartPole-v1: it applies to Atari games only"):
        check(CART_POLE, f"--{setting}=1")


def test_a_world_that_is_served_is_accepted() -> None:
    check(CART_POLE)


def test_a_network_for_images_is_refused():
    check(CART_POLE, "--model_size=large")
    with pytest.raises(Refusal, match="model_size must be small or large for CartPole-v1, which shows no images"):
        check(CART_POLE, "--model_size=impala")
