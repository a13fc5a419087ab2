"""Box2D worlds: an episode depends on its seed and actions alone, whatever was played before."""

import numpy as np
import pytest

pytest.importorskip("Box2D")

from ppo.envs.box2d import Box2DEnvironments
from ppo.envs.making import Environment


def play(envs: Box2DEnvironments, env: Environment, seed: int, steps: int) -> list[bytes]:
    """Play an episode with actions that are a function of the seed; return its observations."""
    envs.before_reset(env)
    shown = [env.reset(seed=seed)[0].tobytes()]
    for action in np.random.default_rng(seed).uniform(-1, 1, (steps, 4)).astype(np.float32):
        observation, reward, terminated, _, _ = env.step(action)
        shown.append(observation.tobytes() + np.float64(reward).tobytes())
        if terminated:
            break
    return shown


# With Box2D 2.3.10 Gymnasium alone does not repeat the episode of seed 28.
@pytest.mark.parametrize("seed", [0, 28])
def test_an_episode_is_the_same_in_an_environment_that_was_played_before(seed: int) -> None:
    envs = Box2DEnvironments("BipedalWalker-v3", indices=range(2), seed=0)
    fresh, used = envs._envs
    play(envs, used, seed=1000 + seed, steps=20)
    assert play(envs, fresh, seed, 150) == play(envs, used, seed, 150)
    envs.close()


@pytest.mark.parametrize("env_name", ["BipedalWalker-v3", "LunarLander-v3"])
def test_every_episode_has_a_world_of_its_own_with_the_same_gravity(env_name: str) -> None:
    envs = Box2DEnvironments(env_name, indices=range(1), seed=0)
    envs.reset()
    first = envs._envs[0].unwrapped.world
    envs.reset()
    second = envs._envs[0].unwrapped.world
    assert first is not second
    assert first.gravity == second.gravity
    envs.close()
