"""The world of the dot that must reach a target."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from ppo.envs.own_worlds import register_own_worlds
from ppo.envs.reaching_dot import ReachingDot

register_own_worlds()
ENV_NAME = "ppo/ReachingDot-v0"


def placed(dot: tuple[float, float], target: tuple[float, float]) -> ReachingDot:
    env = ReachingDot(render_mode="rgb_array")
    env.reset(seed=0)
    (env._x, env._y), (env._target_x, env._target_y) = dot, target
    return env


def move(x: float, y: float) -> np.ndarray:
    return np.array([x, y], np.float32)


def test_it_keeps_gymnasium_s_rules() -> None:
    check_env(gymnasium.make(ENV_NAME).unwrapped)


def test_a_step_is_worth_minus_the_distance_in_units_of_32() -> None:
    observation, reward, terminated, truncated, _ = placed((0.0, 0.0), (5.0, 4.0)).step(move(1.0, 1.0))
    assert reward == -5.0 / 32.0
    assert not terminated and not truncated
    np.testing.assert_array_equal(observation, np.float32([1 / 32, 1 / 32, 4 / 32, 3 / 32]))


@pytest.mark.parametrize(
    "dot, target, reward",
    [((0.0, 0.0), (2.9, 0.0), 100.0), ((31.5, 0.0), (0.0, 0.0), -100.0), ((31.5, 0.0), (32.4, 0.0), -100.0)],
)
def test_it_ends_within_2_of_the_target_or_outside_of_the_field(dot, target, reward: float) -> None:
    _, got, terminated, truncated, _ = placed(dot, target).step(move(1.0, 0.0))
    assert (got, terminated, truncated) == (reward, True, False)


def test_just_out_of_reach_it_continues() -> None:
    assert not placed((0.0, 0.0), (3.0, 0.0)).step(move(1.0, 0.0))[2]


def test_longer_moves_are_cut_to_1_along_each_axis() -> None:
    env = placed((0.0, 0.0), (20.0, 20.0))
    env.step(move(9.0, -3.0))
    assert (env._x, env._y) == (1.0, -1.0)


@pytest.mark.parametrize("seed", range(20))
def test_going_straight_to_the_target_always_reaches_it_in_time(seed: int) -> None:
    env = gymnasium.make(ENV_NAME)
    observation, _ = env.reset(seed=seed)
    for _ in range(100):
        observation, reward, terminated, truncated, _ = env.step(np.clip(32 * observation[2:], -1, 1))
        if terminated or truncated:
            break
    assert reward == 100.0


def test_an_episode_is_cut_after_100_steps() -> None:
    env = gymnasium.make(ENV_NAME)
    env.reset(seed=0)
    for step in range(1, 101):
        assert env.step(move(0.0, 0.0))[3] == (step == 100)


def test_the_dot_is_drawn_black_and_the_target_red_with_the_y_axis_upwards() -> None:
    frame = placed((-16.0, 16.0), (16.0, -16.0)).render()
    assert frame.shape == (256, 256, 3)
    assert frame[64, 64].tolist() == [0, 0, 0]
    assert frame[192, 192].tolist() == [220, 40, 40]
    assert frame[64, 192].tolist() == [255, 255, 255]
