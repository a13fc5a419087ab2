"""Vector-observation worlds: seeds by address, SAME_STEP ends, time limits and states that are replayed."""

from collections.abc import Callable, Iterator

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from ppo.config import Refusal, WorldSettings
from ppo.envs import check_environment, make_envs
from ppo.envs.control import ControlEnvironments

CART_POLE = "CartPole-v1"


def cart_poles(indices: range, seed: int = 0) -> ControlEnvironments:
    return ControlEnvironments(CART_POLE, indices=indices, seed=seed)


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


def first_end(envs: ControlEnvironments) -> int:
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
        CART_POLE, WorldSettings(), indices=range(2), seed=0, on_frame=lambda frame: shapes.append(frame.shape)
    )
    envs.reset()
    envs.step(np.array([0, 0]))
    envs.close()
    assert shapes == [(400, 600, 3)]


# ------------------------------------------------------------------------------------------------------------ states


@pytest.mark.parametrize("env_name", [CART_POLE, "Acrobot-v1", "MountainCar-v0"])
def test_a_fresh_block_goes_on_from_a_state_bit_for_bit(env_name: str) -> None:
    def make() -> ControlEnvironments:
        return ControlEnvironments(env_name, indices=range(2, 4), seed=5)

    original, fresh = make(), make()
    original.reset()
    actions = np.random.default_rng(0).integers(0, original.single_action_space.n, (260, 2))
    for step in range(130):
        original.step(actions[step])
    fresh.set_states(original.get_states())
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


State = dict[str, NDArray[np.int64]]
MALFORMED: dict[str, Callable[[State], list[State]]] = {
    "with a part missing": lambda state: [{"episode": state["episode"]}],
    "with a part too many": lambda state: [{**state, "more": np.zeros(1, np.int64)}],
    "without an episode": lambda state: [{**state, "episode": np.empty(0, np.int64)}],
    "with an action there is not": lambda state: [{**state, "actions": np.array([0, 2])}],
    "that goes on past the end": lambda state: [{**state, "actions": np.ones(60, np.int64)}],
    "missing": lambda state: [],
    "for more environments": lambda state: [state, state],
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_state_is_refused(kind: str) -> None:
    envs = cart_poles(range(1))
    envs.reset()
    with pytest.raises(ValueError, match=r"state|saved episode"):
        envs.set_states(MALFORMED[kind](envs.get_states()[0]))


# ------------------------------------------------------------------------------------------------------------- names


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
        check_environment(pictures)


def test_continuous_actions_are_refused() -> None:
    with pytest.raises(Refusal, match=r"discrete actions.*try CartPole-v1"):
        check_environment("Pendulum-v1")


def test_an_unknown_world_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(Refusal, match="did you mean 'CartPole-v1'"):
        check_environment("CartPol-v1")


@pytest.fixture
def broken() -> Iterator[str]:
    """The id of a registered environment whose package is not installed."""
    gymnasium.register("Broken-v0", entry_point="no_such_package:Env")
    yield "Broken-v0"
    del gymnasium.registry["Broken-v0"]


def test_a_world_whose_package_is_missing_is_refused_saying_which(broken: str) -> None:
    with pytest.raises(Refusal, match=r"cannot be made here.*no_such_package"):
        check_environment(broken)


@pytest.mark.parametrize("setting", ["sticky_actions", "full_action_space", "noop_max", "frame_stack"])
def test_settings_that_only_atari_has_are_refused(setting: str) -> None:
    with pytest.raises(Refusal, match=setting):
        check_environment(CART_POLE, {setting, "env_name"})


def test_a_world_that_is_served_is_accepted() -> None:
    check_environment(CART_POLE)
