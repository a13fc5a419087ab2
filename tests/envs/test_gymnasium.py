"""Any Gymnasium id as a block: seeds by address, SAME_STEP ends, spaces of all kinds, states that are replayed."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, Sequence, Space, Text, Tuple
from gymnasium.spaces.utils import flatten
from numpy.typing import NDArray

from ppo.config import Refusal
from ppo.envs import action_log
from ppo.envs.arrays import StepArrays
from ppo.envs.box2d import Box2DEnvironments
from ppo.envs.gymnasium import WORLD, GymnasiumEnvironments
from ppo.envs.mujoco import MujocoEnvironments
from ppo.envs.own_worlds import register_own_worlds
from ppo.families import GymnasiumSettings
from ppo.random_streams import Purpose, derived_seed

CART_POLE = "CartPole-v1"
register_own_worlds()


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Register an environment for the length of a test; return its id."""

    def register_one(entry_point: Any, env_id: str = "Registered-v0", **settings: Any) -> str:
        monkeypatch.setitem(gymnasium.registry, env_id, None)
        del gymnasium.registry[env_id]
        gymnasium.register(env_id, entry_point, **settings)
        return env_id

    return register_one


def cart_poles(indices: range, seed: int = 0) -> GymnasiumEnvironments:
    return GymnasiumEnvironments(CART_POLE, indices=indices, seed=seed)


def batches(envs: GymnasiumEnvironments, steps: int) -> list[NDArray[Any]]:
    """Return random actions for every step of a block."""
    envs.single_action_space.seed(0)
    return [
        np.array([envs.single_action_space.sample() for _ in range(envs.num_envs)], envs.single_action_space.dtype)
        for _ in range(steps)
    ]


def balancing_actions(observations: NDArray[np.float32]) -> NDArray[np.int64]:
    """Push towards the side the pole falls to: keeps CartPole up for all of its 500 steps."""
    _, _, angle, angular_velocity = observations.T
    return (angle + angular_velocity > 0).astype(np.int64)


def first_end(envs: GymnasiumEnvironments) -> int:
    """Push to one side until the pole of the only environment falls; return the number of steps."""
    envs.reset()
    for step in range(1, 50):
        if envs.step(np.array([1]))[2][0]:
            return step
    raise AssertionError("the pole did not fall")


# ---------------------------------------------------------------------------------------------------------- episodes


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


@pytest.mark.parametrize("env_name", [CART_POLE, "Pendulum-v1", "Taxi-v4", "ppo/ReachingDot-v0"])
def test_steps_are_those_of_the_gymnasium_environment_with_the_episode_s_seed(env_name: str) -> None:
    envs, env = GymnasiumEnvironments(env_name, indices=range(7, 8), seed=5), gymnasium.make(env_name)
    envs.reset()
    env.reset(seed=derived_seed(5, Purpose.EPISODE_SEEDS, 7, 0))
    for actions in batches(envs, 8):
        observations, rewards, *_ = envs.step(actions)
        expected, reward, *_ = env.step(actions[0])
        np.testing.assert_array_equal(observations[0], np.float32(flatten(env.observation_space, expected)))
        assert rewards[0] == reward
    env.close()


def test_at_an_end_final_obs_shows_the_fallen_pole_and_the_observation_a_new_one() -> None:
    envs = cart_poles(range(1))
    first_end(envs)
    fallen, upright = envs.arrays.final_obs[0], envs.observations[0]
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
    assert envs.arrays.episode_return[0] == envs.arrays.episode_length[0] == length


def test_the_time_limit_truncates_and_does_not_terminate() -> None:
    envs = cart_poles(range(2))
    observations, _ = envs.reset()
    for step in range(1, 501):
        observations, _, terminated, truncated, info = envs.step(balancing_actions(observations))
        assert not terminated.any()
        assert truncated.all() == (step == 500)
    assert info["episode_length"].tolist() == [500, 500]


def test_an_episode_that_terminates_at_its_time_limit_is_not_truncated() -> None:
    length = first_end(cart_poles(range(1)))
    envs = GymnasiumEnvironments(CART_POLE, indices=range(1), seed=0, env_kwargs={"max_episode_steps": length})
    first_end(envs)
    assert (envs.arrays.terminated[0], envs.arrays.truncated[0]) == (True, False)


def test_no_life_is_ever_lost() -> None:
    envs = cart_poles(range(1))
    first_end(envs)
    assert not envs.arrays.life_lost.any()


def test_results_are_left_in_the_arrays_that_are_given() -> None:
    arrays = StepArrays.empty(4, (4,), np.float32)
    envs = GymnasiumEnvironments(CART_POLE, indices=range(2), seed=0, arrays=arrays[1:3])
    envs.reset()
    envs.step(np.array([0, 1]))
    assert arrays.rewards.tolist() == [0.0, 1.0, 1.0, 0.0]
    assert arrays.observations.any(axis=1).tolist() == [False, True, True, False]


def test_keyword_arguments_reach_the_constructor() -> None:
    envs = GymnasiumEnvironments(
        "FrozenLake-v1", indices=range(1), seed=0, env_kwargs={"map_name": "8x8", "is_slippery": False}
    )
    assert envs.single_observation_space.shape == (64,)


# ------------------------------------------------------------------------------------------------------------ spaces


class Odd(gymnasium.Env[Any, Any]):
    """A world with observations of all kinds at once, which insists on actions of its space and uses them all."""

    parts = Dict(
        {
            "box": Box(-1, 1, (2, 3), np.float64),
            "category": Discrete(3, start=2),
            "categories": MultiDiscrete([2, 3], start=[1, -1]),
            "bits": MultiBinary(4),
            "nested": Tuple((Discrete(2), Dict({"name": Text(5), "picture": Box(0, 255, (2, 2, 3), np.uint8)}))),
        }
    )
    action_spaces = {  # noqa: RUF012
        "categories": Discrete(3, start=3),
        "several": MultiDiscrete([3, 2], start=[1, -5]),
        "bits": MultiBinary(3),
        "matrices": Box(-2, 3, (2, 2), np.float32),
        "doubles": Box(-1, 1, (3,), np.float64),
        "halves": Box(-1, 1, (3,), np.float16),
        "bytes": Box(0, 9, (2,), np.uint8),
        "numbers": Box(0, 1, (), np.float32),
        "unbounded": Box(-np.inf, np.inf, (2,), np.float32),
    }

    def __init__(self, actions: str) -> None:
        self.observation_space, self.action_space = self.parts, self.action_spaces[actions]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.total, self.steps = 0.0, 0
        return self.observation(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        assert type(action) is int or not isinstance(self.action_space, Discrete)
        self.total = 0.5 * self.total + float(np.dot(np.ravel(action), 1 + np.arange(np.size(action))))
        self.steps += 1
        if isinstance(action, np.ndarray) and action.ndim:
            action[...] = 0  # which nobody else may see
        return self.observation(), np.float32(self.total), self.steps == 40, False, {}

    def observation(self):
        number, draw = int(abs(self.total) * 1000), self.np_random.random()
        return {
            "box": np.tanh(self.total * draw + np.arange(6.0).reshape(2, 3)),
            "category": np.int64(2 + number % 3),
            "categories": np.array([1 + number % 2, -1 + number % 3]),
            "bits": np.array([number >> bit & 1 for bit in range(4)], np.int8),
            "nested": (number % 2, {"name": "a", "picture": np.full((2, 2, 3), number % 256, np.uint8)}),
        }


@pytest.mark.parametrize("actions", Odd.action_spaces)
def test_environments_are_sent_actions_of_their_space_and_may_change_them(
    register: Callable[..., str], actions: str
) -> None:
    envs = GymnasiumEnvironments(register(Odd), indices=range(2), seed=0, env_kwargs={"actions": actions})
    envs.reset()
    for batch in batches(envs, 3):
        before = batch.copy()
        envs.step(batch)
        np.testing.assert_array_equal(batch, before)


def test_mixed_observations_become_one_vector_without_the_text(register: Callable[..., str]) -> None:
    world = GymnasiumEnvironments.check(register(Odd), env_kwargs={"actions": "bits"})
    assert world.observation_space.shape == (6 + 3 + 5 + 4 + 2 + 12,)
    assert world.observation_space.dtype == np.float32
    assert world.notes == ("Registered-v0: text in its observations is ignored: nested/1/name",)


def test_a_block_has_the_channel_axis_of_its_settings(register: Callable[..., str]) -> None:
    env_name = register(Pictures)
    settings = GymnasiumSettings(env_kwargs='{"shape": [7, 7, 20]}', channel_axis="last")
    envs = WORLD.make_block(env_name, settings, indices=range(1), seed=0)
    assert WORLD.check(env_name, settings).observation_space.shape == (20, 7, 7) == envs.reset()[0].shape[1:]


class Pictures(gymnasium.Env[NDArray[np.uint8], int]):
    """A world of pictures of one colour each, which is the number of the step."""

    action_space = Discrete(2)

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.observation_space = Box(0, 255, shape, np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(self.observation_space.shape, np.uint8), {}

    def step(self, action):
        self.steps += 1
        return np.full(self.observation_space.shape, self.steps, np.uint8), 0.0, self.steps == 3, False, {}


@pytest.mark.parametrize("shape, shown", [((8, 6, 3), (3, 8, 6)), ((2, 8, 6), (2, 8, 6)), ((8, 6), (1, 8, 6))])
def test_images_stay_images_on_memory_with_the_channels_last(register: Callable[..., str], shape, shown) -> None:
    envs = GymnasiumEnvironments(register(Pictures), indices=range(2), seed=0, env_kwargs={"shape": shape})
    envs.reset()
    assert (envs.observations.shape, envs.observations.dtype) == ((2, *shown), np.uint8)
    assert envs.observations.transpose(0, 2, 3, 1).flags.c_contiguous
    for step in (1, 2, 3):
        envs.step(np.array([0, 1]))
        assert (envs.observations == step % 3).all()
    assert (envs.arrays.final_obs == 3).all()


class Numbers(gymnasium.Env[NDArray[np.float64], int]):
    """A world whose third step returns an observation and a reward of the test's choice."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)
    action_space = Discrete(2)

    def __init__(self, observation: Any = (0.0, 0.0), reward: Any = 0.0, first: Any = (0.0, 0.0)) -> None:
        self.observation, self.reward, self.first = observation, reward, first

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.array(self.first), {}

    def step(self, action):
        self.steps += 1
        if self.steps < 3:
            return np.zeros(2), 0.0, False, False, {}
        if self.observation is None:
            raise ZeroDivisionError("by nothing")
        return np.array(self.observation), self.reward, False, False, {}


@pytest.mark.parametrize(
    "third_step, complaint",
    [
        ({"observation": (np.nan, 0.0)}, r"the observation is not finite: \[nan  0.\]"),
        ({"observation": (0.0, np.inf)}, "the observation is not finite"),
        ({"reward": np.nan}, r"the reward is not within 1e\+30: nan"),
        ({"reward": -1e308}, r"the reward is not within 1e\+30: -1e\+308"),
        ({"reward": None}, "TypeError"),
        ({"observation": (0.0,)}, r"ValueError: the observation has shape \(1,\), its space \(2,\)"),
        ({"observation": None}, r"ZeroDivisionError: by nothing \(.*test_gymnasium.py:\d+\)"),
    ],
)
def test_an_environment_that_fails_is_named_with_what_makes_it_fail_again(
    register: Callable[..., str], third_step: dict[str, Any], complaint: str
) -> None:
    envs = GymnasiumEnvironments(register(Numbers), indices=range(8, 10), seed=3, env_kwargs=third_step)
    envs.reset()
    envs.step(np.zeros(2, np.int64))
    envs.step(np.zeros(2, np.int64))
    seed = derived_seed(3, Purpose.EPISODE_SEEDS, 8, 0)
    where = rf"environment 8 of Registered-v0 failed at step 3 of episode 0, begun by reset\(seed={seed}\): "
    with pytest.raises(RuntimeError, match=where + complaint):
        envs.step(np.zeros(2, np.int64))


@pytest.mark.parametrize("first", [(np.nan, 0.0), (0.0,)])
def test_an_environment_that_begins_badly_is_named(register: Callable[..., str], first: tuple[float, ...]) -> None:
    envs = GymnasiumEnvironments(register(Numbers), indices=range(8, 10), seed=3, env_kwargs={"first": first})
    with pytest.raises(RuntimeError, match="environment 8 of Registered-v0 failed at step 0 of episode 0"):
        envs.reset()


# ------------------------------------------------------------------------------------------------------------ states

CLASSES = {"Box2D": Box2DEnvironments, "mujoco": MujocoEnvironments}
REPLAYED = {
    None: [
        CART_POLE,
        "Acrobot-v1",
        "MountainCar-v0",
        "MountainCarContinuous-v0",
        "Pendulum-v1",
        "Taxi-v4",
        "FrozenLake-v1",
        "CliffWalking-v1",
        "Blackjack-v1",
        "ppo/ContinuousCartPole-v0",
        "ppo/ReachingDot-v0",
    ],
    "Box2D": ["LunarLander-v3", "LunarLanderContinuous-v3", "BipedalWalker-v3", "BipedalWalkerHardcore-v3"],
    "mujoco": [
        "HalfCheetah-v5",
        "Hopper-v5",
        "Walker2d-v5",
        "Ant-v5",
        "Humanoid-v5",
        "InvertedPendulum-v5",
        "InvertedDoublePendulum-v5",
        "Reacher-v5",
        "Swimmer-v5",
        "Pusher-v5",
    ],
    "minigrid": ["minigrid:MiniGrid-Empty-5x5-v0", "minigrid:MiniGrid-Dynamic-Obstacles-5x5-v0"],
}


def goes_on_exactly(make: Callable[[], GymnasiumEnvironments], before: int, after: int = 50) -> None:
    """Assert that a block restored from another's states continues like it."""
    original, fresh = make(), make()
    # Both have played: a restored state must not depend on what came before.
    original.reset()
    fresh.reset()
    actions = batches(original, before + after)
    for batch in actions[after : after + 10]:
        fresh.step(batch)
    for batch in actions[:before]:
        original.step(batch)
    assert fresh.set_states(original.get_states()) == []
    np.testing.assert_array_equal(fresh.observations, original.observations)
    for batch in actions[before:]:
        for expected, got in zip(original.step(batch)[:4], fresh.step(batch)[:4], strict=True):
            np.testing.assert_array_equal(got, expected)
    for expected, got in zip(original.get_states(), fresh.get_states(), strict=True):
        for name in expected:
            np.testing.assert_array_equal(got[name], expected[name])
    original.close()
    fresh.close()


@pytest.mark.parametrize(
    "package, env_name", [(package, name) for package, names in REPLAYED.items() for name in names]
)
def test_another_block_continues_from_a_state_bit_for_bit(package: str | None, env_name: str) -> None:
    if package:
        pytest.importorskip(package)
    block = CLASSES.get(package or "", GymnasiumEnvironments)
    goes_on_exactly(lambda: block(env_name, indices=range(2, 4), seed=5), before=65)


@pytest.mark.parametrize("actions", Odd.action_spaces)
def test_worlds_with_actions_of_any_kind_continue_bit_for_bit(register: Callable[..., str], actions: str) -> None:
    env_name = register(Odd)
    goes_on_exactly(
        lambda: GymnasiumEnvironments(env_name, indices=range(2), seed=0, env_kwargs={"actions": actions}), before=65
    )


def test_worlds_of_images_continue_bit_for_bit(register: Callable[..., str]) -> None:
    env_name = register(Pictures)
    goes_on_exactly(
        lambda: GymnasiumEnvironments(env_name, indices=range(2), seed=0, env_kwargs={"shape": (8, 6, 3)}), before=5
    )


def test_long_episodes_continue_bit_for_bit() -> None:
    goes_on_exactly(
        lambda: GymnasiumEnvironments(
            "MountainCarContinuous-v0", indices=range(2), seed=0, env_kwargs={"max_episode_steps": 5000}
        ),
        before=1100,
    )


def test_a_restored_episode_ends_with_its_whole_return_and_length() -> None:
    original, fresh = cart_poles(range(1)), cart_poles(range(1))
    original.reset()
    for _ in range(5):
        original.step(np.array([1]))
    fresh.set_states(original.get_states())
    steps = 5
    while not fresh.step(np.array([1]))[2][0]:
        steps += 1
    assert fresh.arrays.episode_return[0] == fresh.arrays.episode_length[0] == steps + 1


@pytest.mark.parametrize(
    "actions, dtype",
    [
        ("categories", "int64"),
        ("several", "int64"),
        ("bits", "int64"),
        ("bytes", "int64"),
        ("matrices", "float32"),
        ("halves", "float32"),
        ("doubles", "float64"),
    ],
)
def test_states_hold_only_types_that_a_checkpoint_has(register: Callable[..., str], actions: str, dtype: str) -> None:
    envs = GymnasiumEnvironments(register(Odd), indices=range(1), seed=0, env_kwargs={"actions": actions})
    envs.reset()
    (batch,) = batches(envs, 1)
    envs.step(batch)
    (state,) = envs.get_states()
    assert state["actions"].dtype.name == dtype
    np.testing.assert_array_equal(state["actions"], batch)
    assert {array.dtype.name for array in state.values()} <= {"float32", "float64", "int64", "uint8"}


def test_states_do_not_change_when_the_block_continues() -> None:
    envs = cart_poles(range(1))
    envs.reset()
    envs.step(np.array([1]))
    (state,) = envs.get_states()
    before = {name: array.copy() for name, array in state.items()}
    for _ in range(3):
        envs.step(np.array([0]))
    for name, array in state.items():
        np.testing.assert_array_equal(array, before[name])


def test_episodes_of_any_length_take_bounded_memory_and_begin_a_new_episode_beyond_the_longest_that_is_replayed(
    register: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(action_log, "MAX_SAVED_ACTIONS", 1200)
    env_name = register(Numbers)
    envs = GymnasiumEnvironments(env_name, indices=range(3, 5), seed=0)
    envs.reset()
    actions = np.ones(2, np.int64)
    for _ in range(1200):
        envs.step(actions)
    at_the_limit = envs.get_states()[1]
    assert at_the_limit["actions"].shape == (1200,)
    for _ in range(3):
        envs.step(actions)
    assert envs._log._actions.shape == (2, 1200)
    beyond = envs.get_states()[0]
    assert (beyond["episode_length"].tolist(), beyond["actions"].size) == ([1203], 0)

    fresh = GymnasiumEnvironments(env_name, indices=range(3, 5), seed=0)
    assert fresh.set_states([beyond, at_the_limit]) == [3]
    assert fresh._episodes == [1, 0]
    assert fresh._log.lengths.tolist() == [0, 1200]


def test_signs_of_life_are_given_while_an_episode_is_replayed(register: Callable[..., str]) -> None:
    envs = GymnasiumEnvironments(register(Numbers), indices=range(1), seed=0)
    envs.reset()
    for _ in range(1001):
        envs.step(np.ones(1, np.int64))
    steps: list[int] = []
    envs.on_replay = lambda: steps.append(envs._envs[0].unwrapped.steps)
    envs.set_states(envs.get_states())
    assert steps == [0, 500, 1000]


class Drifting(gymnasium.Env[NDArray[np.float32], int]):
    """A world that is not deterministic: its numbers keep counting over all episodes of the process."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Discrete(2)
    made = 0

    def __init__(self, drifts: str) -> None:
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
def drifting(monkeypatch: pytest.MonkeyPatch, register: Callable[..., str]) -> str:
    """The id of a registered world whose observations, rewards or ends (keyword `drifts`) are not deterministic."""
    monkeypatch.setattr(Drifting, "made", 0)
    return register(Drifting, kwargs={"drifts": "nothing"}, max_episode_steps=50)


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
    assert (envs._episodes, envs._log.lengths.tolist(), envs._returns.tolist()) == ([1], [0], [0.0])
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


def test_actions_that_continue_past_the_end_are_not_exact() -> None:
    state = saved_after_three_steps(CART_POLE)[0]
    envs = GymnasiumEnvironments(CART_POLE, indices=range(4, 5), seed=0)
    too_long = {**state, "actions": np.ones(60, np.int64), "episode_length": np.array([60])}
    assert envs.set_states([too_long]) == [4]
    assert envs._episodes == [1]


State = dict[str, NDArray]
MALFORMED: dict[str, Callable[[State], State]] = {
    "with a part missing": lambda state: {"episode": state["episode"]},
    "with a part too many": lambda state: {**state, "more": np.zeros(1, np.int64)},
    "without an episode": lambda state: {**state, "episode": np.empty(0, np.int64)},
    "with a negative episode": lambda state: {**state, "episode": np.array([-1])},
    "with an episode that there cannot be": lambda state: {**state, "episode": np.array([2**62])},
    "with an episode at the limit": lambda state: {**state, "episode": np.array([2**48])},
    "with an episode of another type": lambda state: {**state, "episode": np.zeros(1)},
    "with a negative length": lambda state: {**state, "episode_length": np.array([-1])},
    "with another length than it has actions": lambda state: {**state, "episode_length": np.array([2])},
    "with a length that there cannot be": lambda state: {**state, "episode_length": np.array([2**62])},
    "with an action there is not": lambda state: {**state, "actions": np.array([0, 2, 0])},
    "with a negative action": lambda state: {**state, "actions": np.array([0, -1, 0])},
    "with actions of another type": lambda state: {**state, "actions": np.zeros(3)},
    "with actions in two dimensions": lambda state: {**state, "actions": np.zeros((1, 3), np.int64)},
    "with an action in none": lambda state: {**state, "actions": np.int64(1)},
    "with more actions than the time limit": lambda state: {
        **state,
        "actions": np.zeros(500, np.int64),
        "episode_length": np.array([500]),
    },
    "beyond all time limits": lambda state: {
        **state,
        "actions": np.zeros(0, np.int64),
        "episode_length": np.array([10**6]),
    },
    "with another world's observation": lambda state: {**state, "observation": np.zeros(3, np.float32)},
    "with an observation of another type": lambda state: {**state, "observation": np.zeros(4)},
    "with an observation that is not finite": lambda state: {**state, "observation": state["observation"] + np.nan},
    "without a return": lambda state: {**state, "episode_return": np.empty(0)},
    "with an infinite return": lambda state: {**state, "episode_return": np.array([np.inf])},
}


def test_from_the_last_episode_that_can_be_saved_a_run_goes_on_to_states_that_can_be_read() -> None:
    states = saved_after_three_steps(CART_POLE)[:1]
    last = [{**states[0], "episode": np.array([2**48 - 1])}]
    envs, other = (GymnasiumEnvironments(CART_POLE, indices=range(4, 5), seed=0) for _ in range(2))
    envs.set_states(last)
    for _ in range(3):
        envs.end_episode(0)
        assert other.set_states(envs.get_states()) == []


def test_a_world_that_fails_when_an_episode_is_played_again_begins_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = GymnasiumEnvironments(CART_POLE, indices=range(4, 5), seed=0)

    def fail(action: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(envs, "_step_one", [fail])
    assert envs.set_states(saved_after_three_steps(CART_POLE)[:1]) == [4]


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_state_is_refused_naming_its_environment_before_any_is_touched(kind: str) -> None:
    envs = cart_poles(range(5, 7))
    state = saved_after_three_steps(CART_POLE)[0]
    with pytest.raises(ValueError, match=r"the saved .* of environment 6"):
        envs.set_states([state, MALFORMED[kind](state)])
    assert envs._episodes == [-1, -1]


@pytest.mark.parametrize(
    "actions, wrong",
    [
        ("categories", [2]),
        ("categories", [6]),
        ("several", [[0, -5]]),
        ("several", [[1, -3]]),
        ("bits", [[0, 1, 2]]),
        ("bits", [[0, -1, 0]]),
        ("bytes", [[0, 10]]),
        ("bytes", [[2**40, 0]]),
        ("matrices", [[[0, 0], [0, 3.5]]]),
        ("matrices", [[[0, 0], [0, np.nan]]]),
        ("doubles", [[0, 0, -1.01]]),
        ("unbounded", [[0, np.inf]]),
        ("unbounded", [[np.nan, 0]]),
    ],
)
def test_saved_actions_that_no_environment_can_be_sent_are_refused(
    register: Callable[..., str], actions: str, wrong: list[Any]
) -> None:
    envs = GymnasiumEnvironments(register(Odd), indices=range(1), seed=0, env_kwargs={"actions": actions})
    envs.reset()
    envs.step(batches(envs, 1)[0])
    (state,) = envs.get_states()
    with pytest.raises(ValueError, match="the saved actions of environment 0 must be"):
        envs.set_states([{**state, "actions": np.array(wrong, state["actions"].dtype)}])


@pytest.mark.parametrize("number", [0, 2])
def test_states_for_another_number_of_environments_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"the number of states must be 1, one per environment, got {number}"):
        cart_poles(range(1)).set_states(saved_after_three_steps(CART_POLE) * number)


# ---------------------------------------------------------------------------------------------------------- pictures


def frames_of(env_name: str, **settings: Any) -> list[NDArray[np.uint8]]:
    """Return what a frame listener receives in one step of two environments."""
    frames: list[NDArray[np.uint8]] = []
    envs = GymnasiumEnvironments(env_name, indices=range(2), seed=0, on_frame=frames.append, **settings)
    envs.reset()
    envs.step(np.zeros((2, *envs.single_action_space.shape), envs.single_action_space.dtype))
    envs.close()
    return frames


@pytest.mark.parametrize("env_name", [CART_POLE, "ppo/ContinuousCartPole-v0"])
def test_a_frame_listener_receives_pictures_of_the_first_environment(env_name: str) -> None:
    assert [frame.shape for frame in frames_of(env_name)] == [(400, 600, 3)]


class Painted(Numbers):
    """A world with the rendering of the test's choice."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, frame: Any, render_mode: str | None = None) -> None:
        super().__init__()
        self.frame, self.render_mode = frame, render_mode

    def render(self):
        if isinstance(self.frame, Exception):
            raise self.frame
        return self.frame


class PaintedInLists(Painted):
    metadata = {"render_modes": ["human", "rgb_array_list"]}  # noqa: RUF012


GREY = np.arange(20, dtype=np.uint8).reshape(4, 5)
COLOURED = np.stack([GREY, GREY + 1, GREY + 2], axis=2)


@pytest.mark.parametrize(
    "frame, rgb",
    [
        (COLOURED, COLOURED),
        (np.dstack([COLOURED, GREY]), COLOURED),
        (GREY, np.dstack([GREY] * 3)),
        (GREY[..., np.newaxis], np.dstack([GREY] * 3)),
    ],
)
def test_a_frame_listener_receives_rgb_whatever_is_drawn(register: Callable[..., str], frame, rgb) -> None:
    (received,) = frames_of(register(Painted), env_kwargs={"frame": frame})
    np.testing.assert_array_equal(received, rgb)


def test_a_frame_listener_may_keep_frames_of_a_world_that_draws_into_the_same_array(
    register: Callable[..., str],
) -> None:
    canvas = COLOURED.copy()
    (received,) = frames_of(register(Painted), env_kwargs={"frame": canvas})
    canvas[:] = 0
    np.testing.assert_array_equal(received, COLOURED)


def test_a_frame_listener_receives_every_frame_of_a_list(register: Callable[..., str]) -> None:
    frames = frames_of(register(PaintedInLists), env_kwargs={"frame": [COLOURED, GREY]})
    np.testing.assert_array_equal(frames, [COLOURED, np.dstack([GREY] * 3)])


@pytest.mark.parametrize(
    "frame, got",
    [
        (None, "NoneType"),
        ("a picture", "str"),
        (COLOURED / 255, r"float64 \(4, 5, 3\)"),
        (np.zeros((4, 5, 2), np.uint8), r"uint8 \(4, 5, 2\)"),
    ],
)
def test_a_render_that_returns_no_picture_is_refused(register: Callable[..., str], frame, got: str) -> None:
    with pytest.raises(Refusal, match=rf"'Registered-v0' cannot be drawn: its render must return uint8 .* got {got}"):
        frames_of(register(Painted), env_kwargs={"frame": frame})


def test_a_render_that_fails_is_refused_with_the_cause(register: Callable[..., str]) -> None:
    with pytest.raises(Refusal, match=r"'Registered-v0' cannot be drawn here: OSError: no screen \(.*\)"):
        frames_of(register(Painted), env_kwargs={"frame": OSError("no screen")})


@pytest.mark.parametrize("modes", [[], ["human", "ansi"]])
def test_a_world_without_pictures_is_refused_before_it_is_played(
    register: Callable[..., str], monkeypatch: pytest.MonkeyPatch, modes: list[str]
) -> None:
    monkeypatch.setattr(Painted, "metadata", {"render_modes": modes})
    with pytest.raises(Refusal, match="'Registered-v0' cannot be drawn: rgb_array must be among its render_modes"):
        frames_of(register(Painted), env_kwargs={"frame": GREY})


def test_a_frame_listener_is_not_called_during_a_replay() -> None:
    frames: list[NDArray[np.uint8]] = []
    envs = GymnasiumEnvironments(CART_POLE, indices=range(4, 5), seed=0, on_frame=frames.append)
    assert envs.set_states(saved_after_three_steps(CART_POLE)) == []
    assert frames == []
    envs.step(np.array([0]))
    envs.close()
    assert len(frames) == 1


@pytest.mark.parametrize("env_name, rate", [(CART_POLE, 50.0), ("FrozenLake-v1", 4.0)])
def test_the_rate_of_frames_is_the_environment_s(env_name: str, rate: float) -> None:
    assert GymnasiumEnvironments(env_name, indices=range(1), seed=0).frames_per_second == rate


@pytest.mark.parametrize("metadata", [{"render_modes": []}, {"render_modes": [], "render_fps": None}])
def test_the_rate_of_frames_is_30_where_the_environment_has_none(
    register: Callable[..., str], monkeypatch: pytest.MonkeyPatch, metadata: dict[str, Any]
) -> None:
    monkeypatch.setattr(Numbers, "metadata", metadata)
    assert GymnasiumEnvironments(register(Numbers), indices=range(1), seed=0).frames_per_second == 30.0


# ------------------------------------------------------------------------------------------------------------- names


def refusal(env_name: str, **env_kwargs: Any) -> str:
    """Return the message of `check`'s refusal of an id."""
    with pytest.raises(Refusal) as caught:
        GymnasiumEnvironments.check(env_name, env_kwargs=env_kwargs)
    return str(caught.value)


@pytest.mark.parametrize("env_name", [CART_POLE, "Pendulum-v1", "Blackjack-v1", "ppo/ReachingDot-v0"])
def test_a_world_that_is_served_is_accepted(env_name: str) -> None:
    assert GymnasiumEnvironments.check(env_name).notes == ()


def test_what_is_known_of_a_world_beforehand_is_what_its_block_has() -> None:
    world, envs = GymnasiumEnvironments.check(CART_POLE), cart_poles(range(1))
    assert (world.observation_space, world.action_space) == (envs.single_observation_space, envs.single_action_space)


def test_an_unknown_world_is_refused_with_the_nearest_known_one() -> None:
    message = refusal("CartPol-v1")
    assert message.startswith("env_name 'CartPol-v1' is not a known environment; did you mean 'CartPole-v1'?")
    assert "written module:id" in message


@pytest.mark.parametrize("env_name", ["no id", "", "phys3d/"])
def test_an_invalid_id_is_refused(env_name: str) -> None:
    assert f"{env_name!r} is not a known environment" in refusal(env_name)


@pytest.mark.parametrize(
    "env_name, complaint",
    [
        ("LunarLander-v2", "has been retired by Gymnasium; the newest version is LunarLander-v3"),
        ("CartPole-v9", "is not registered; the newest version is CartPole-v1"),
        ("CartPole", "is not registered; the newest version is CartPole-v1"),
    ],
)
def test_a_version_that_there_is_not_is_refused_with_the_newest(env_name: str, complaint: str) -> None:
    assert refusal(env_name) == f"env_name {env_name!r} {complaint}"


def test_a_version_that_only_fails_when_it_is_made_is_refused_with_the_newest(register: Callable[..., str]) -> None:
    def make_old() -> None:
        raise ImportError("it has moved")

    register(Numbers, "Moved-v5")
    assert refusal(register(make_old, "Moved-v3")).endswith("; the newest version is Moved-v5")


def test_an_old_version_that_can_be_made_is_accepted_without_a_warning() -> None:
    GymnasiumEnvironments.check("CartPole-v0")


@pytest.mark.parametrize("error", [AttributeError("no board"), ValueError("bad size"), RuntimeError("no licence")])
def test_a_constructor_that_fails_is_refused_with_the_cause_and_its_place(
    register: Callable[..., str], error: Exception
) -> None:
    def make_broken() -> None:
        raise error

    message = refusal(register(make_broken))
    assert message.startswith(f"env_name 'Registered-v0' cannot be made here: {type(error).__name__}: {error} (")
    assert f"{Path(__file__).name}:" in message


def test_arguments_that_a_constructor_does_not_take_are_refused_naming_them() -> None:
    assert "unexpected keyword argument 'wheels'" in refusal(CART_POLE, wheels=4)


@pytest.mark.parametrize("name", ["render_mode", "disable_env_checker"])
def test_arguments_that_are_not_the_user_s_are_refused(name: str) -> None:
    assert refusal(CART_POLE, **{name: None}).startswith(f"env_kwargs must not set {name}")


def test_a_world_whose_package_is_missing_is_refused_with_the_command_that_installs_it(
    register: Callable[..., str],
) -> None:
    message = refusal(register("no_such_package.worlds:Env"))
    assert message.endswith("No module named 'no_such_package'; try pip install no_such_package")


@pytest.mark.parametrize("folder, extra", [("box2d", "box2d"), ("mujoco", "mujoco"), ("toy_text", "toy-text")])
def test_a_world_of_gymnasium_whose_package_is_missing_is_refused_with_the_extra_that_has_it(
    monkeypatch: pytest.MonkeyPatch, register: Callable[..., str], folder: str, extra: str
) -> None:
    class Finder:
        @staticmethod
        def find_spec(name: str, *rest: object) -> None:
            if name.endswith(".missing"):
                raise gymnasium.error.DependencyNotInstalled("it is not installed, run `pip install swig` first")

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    message = refusal(register(f"gymnasium.envs.{folder}.missing:Env"))
    assert message.endswith(f'it is not installed; try pip install "gymnasium[{extra}]"')


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Write a module that can be imported during a test; return its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str) -> str:
        (tmp_path / "worlds_of_a_user.py").write_text(text)
        return "worlds_of_a_user"

    yield write
    sys.modules.pop("worlds_of_a_user", None)
    gymnasium.registry.pop("OfAUser-v0", None)


def test_a_module_that_registers_an_id_is_imported_when_it_stands_before_the_id(module: Callable[[str], str]) -> None:
    name = module(
        "import gymnasium\n"
        "gymnasium.register('OfAUser-v0', 'gymnasium.envs.classic_control.pendulum:PendulumEnv', max_episode_steps=9)\n"
    )
    envs = GymnasiumEnvironments(f"{name}:OfAUser-v0", indices=range(1), seed=0)
    assert envs.reset()[0].shape == (1, 3)


def test_a_module_that_cannot_be_imported_is_refused_with_the_cause_and_its_place(module: Callable[[str], str]) -> None:
    name = module("\nsummand = 1 + ''\n")
    message = refusal(f"{name}:OfAUser-v0")
    assert f"'{name}:OfAUser-v0' names a module that cannot be imported here: TypeError: unsupported" in message
    assert "worlds_of_a_user.py:2" in message
    assert refusal("nowhere:OfAUser-v0").endswith("No module named 'nowhere'; try pip install nowhere")


class Spaces(Numbers):
    """A world with the spaces of the test's choice."""

    def __init__(self, observations: Space = Numbers.observation_space, actions: Space = Numbers.action_space) -> None:
        super().__init__()
        self.observation_space, self.action_space = observations, actions


@pytest.mark.parametrize(
    "spaces, complaint",
    [
        ({"observations": Text(5)}, "observations of Text"),
        ({"observations": Graph(Discrete(2), None)}, "observations of Graph"),
        ({"observations": Sequence(Discrete(2))}, "observations of Sequence"),
        (
            {"actions": Text(5)},
            "the action space must be Discrete, MultiDiscrete, MultiBinary or Box, or a Dict or Tuple of these, "
            "got Text",
        ),
        (
            {"actions": Dict({"a": Text(5)})},
            "the action space must be Discrete, MultiDiscrete, MultiBinary or Box, or a Dict or Tuple of these, got",
        ),
    ],
)
def test_spaces_that_cannot_be_served_are_refused(
    register: Callable[..., str], spaces: dict[str, Space], complaint: str
) -> None:
    assert f"env_name 'Registered-v0' is not supported: {complaint}" in refusal(register(Spaces), **spaces)
