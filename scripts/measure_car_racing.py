"""Measure the frames of CarRacing per second and core, in Gymnasium's world and in ours.

Both play the same episodes with the same actions: ours holds an action for several frames, Gymnasium's receives it that
many times. They alternate by episode. Seconds are processor time, resets included. Needs the box2d extra.
"""

import time
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import tyro
from numpy.typing import NDArray

from ppo.envs.car_racing import Drive
from ppo.envs.making import make_environment
from ppo.families import CarRacingSettings


@dataclass(frozen=True)
class Options:
    """Flags of this script."""

    episodes: int = 5
    """Episodes to measure, after one to warm up."""
    frames: int = 1000
    """Frames per episode, unless the car leaves the field."""
    action_repeat: int = 8
    """Frames for which an action is held."""


def main() -> None:
    """Measure and print."""
    options = tyro.cli(Options, description=__doc__)
    theirs, ours, frames = measure(options)
    print(f"frames per second and core, {options.episodes} episodes, {frames:,.0f} frames:")
    print(f"Gymnasium's world {theirs:,.0f}, ours {ours:,.0f}: {ours / theirs:.1f} times as many")


def measure(options: Options) -> tuple[float, float, float]:
    """Return the frames per processor second of Gymnasium's world and of ours, and the frames of Gymnasium's."""
    settings = CarRacingSettings(action_repeat=options.action_repeat, give_up_frames=None)
    stock = gymnasium.make("CarRacing-v3", disable_env_checker=True)
    ours = Drive(make_environment("CarRacing-v3", {}), settings)
    counts, seconds = np.zeros(2), np.zeros(2)
    for episode in range(options.episodes + 1):
        actions = wandering(options.frames // options.action_repeat, episode)
        each = [
            play(stock, episode, actions.repeat(options.action_repeat, axis=0)),
            play(ours, episode, actions),
        ]
        if episode > 0:
            counts += (each[0][0], each[1][0] * options.action_repeat)
            seconds += (each[0][1], each[1][1])
    of_stock, of_ours = (counts / seconds).tolist()
    return of_stock, of_ours, float(counts[0])


def wandering(decisions: int, seed: int) -> NDArray[np.float32]:
    """Return actions that steer left and right alternately, so that the car is now on the road and now beside it."""
    random = np.random.default_rng(seed)
    steering = np.where(np.arange(decisions) // 20 % 2, 0.3, -0.3) + random.normal(0.0, 0.1, decisions)
    actions = [steering, random.uniform(0.0, 0.2, decisions), random.uniform(0.0, 0.05, decisions)]
    return np.stack(actions, axis=1).astype(np.float32)


def play(env: gymnasium.Env[Any, Any], seed: int, actions: NDArray[np.float32]) -> tuple[int, float]:
    """Play an episode; return its steps and processor seconds."""
    start, steps = time.process_time(), 0
    env.reset(seed=seed)
    for action in actions:
        terminated, truncated = env.step(action)[2:4]
        steps += 1
        if terminated or truncated:
            break
    return steps, time.process_time() - start


if __name__ == "__main__":
    main()
