"""Cart-pole with a continuous force: equal to Gymnasium's CartPole if the force is one of its two."""

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.utils.env_checker import check_env

from ppo.envs.continuous_cartpole import ContinuousCartPole
from ppo.envs.own_worlds import register_own_worlds

register_own_worlds()
ENV_NAME = "ppo/ContinuousCartPole-v0"


def action(force: float) -> np.ndarray:
    return np.array([force], np.float32)


# As Gymnasium's CartPole: nothing bounds the velocities.
@pytest.mark.filterwarnings("ignore:.*A Box observation space m..imum value is -?infinity")
def test_it_keeps_gymnasium_s_rules() -> None:
    check_env(gymnasium.make(ENV_NAME).unwrapped)


@pytest.mark.parametrize("seed", range(5))
def test_with_the_greatest_forces_it_is_the_cart_pole_of_gymnasium(seed: int) -> None:
    ours, theirs = ContinuousCartPole(), CartPoleEnv()
    theirs.force_mag = 30.0
    np.testing.assert_array_equal(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0])
    for push in np.random.default_rng(seed).integers(0, 2, 100).tolist():
        observation, reward, terminated, truncated, _ = ours.step(action(2.0 * push - 1.0))
        expected, *rest = theirs.step(push)
        np.testing.assert_allclose(observation, expected, rtol=1e-6)
        assert [reward, terminated, truncated] == rest[:3]
        if terminated:
            return
    raise AssertionError("the pole did not fall")


def test_half_the_force_is_half_the_push() -> None:
    env = ContinuousCartPole()
    velocities = []
    for force in (0.0, 0.5, 1.0):
        env.reset(seed=0)
        velocities.append(float(env.step(action(force))[0][1]))
    assert velocities[1] - velocities[0] == pytest.approx(velocities[2] - velocities[1], rel=1e-5)


@pytest.mark.parametrize("force", [1.0, -1.0])
def test_forces_beyond_the_greatest_are_the_greatest(force: float) -> None:
    env = ContinuousCartPole()
    env.reset(seed=0)
    expected = env.step(action(force))[0]
    env.reset(seed=0)
    np.testing.assert_array_equal(env.step(action(7 * force))[0], expected)


def test_an_episode_is_cut_after_500_steps() -> None:
    env = gymnasium.make(ENV_NAME)
    (x, velocity, angle, turning), _ = env.reset(seed=0)
    for step in range(1, 501):
        force = 0.1 * x + 0.2 * velocity + 3.0 * angle + 0.5 * turning
        (x, velocity, angle, turning), _, terminated, truncated, _ = env.step(action(force))
        assert not terminated
        assert truncated == (step == 500)


def test_the_pole_is_drawn_to_the_side_that_it_leans_to() -> None:
    env = ContinuousCartPole(render_mode="rgb_array")
    env.reset(seed=0)
    for angle in (-0.2, 0.2):
        env._state = (0.0, 0.0, angle, 0.0)
        columns = np.flatnonzero((env.render()[150:200] < 255).any(axis=(0, 2)))
        assert columns.size > 0
        assert np.sign(columns.mean() - 300) == np.sign(angle)
