"""Measure the cost that a block adds to a step of bare environments; see `small_worlds.py`.

    python -m scripts.benchmarking.block_cost block_cost.json 1.5 CartPole-v1

The arguments are the file to write, the seconds of processor time for each loop, and the id of the world.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ppo.command_line import parse_command_line
from ppo.envs import make_envs
from scripts.benchmarking.small_worlds import NUM_ENVS

_STEPS = 50
_FEWEST_TURNS = 3


def measure(env_name: str, seconds: float) -> dict[str, float]:
    """Return microseconds per environment step of the bare environments and of our block: the best of several turns.

    Both receive the same random actions, take turns, and begin a new episode when one ends.
    """
    config = parse_command_line([f"--env_name={env_name}"])
    block = make_envs(env_name, config.world, indices=range(NUM_ENVS), seed=0)
    block.reset()
    actions = _random_actions(block.single_action_space)
    bare = [gymnasium.make(env_name, disable_env_checker=True) for _ in range(NUM_ENVS)]
    for seed, env in enumerate(bare):
        env.reset(seed=seed)
    # Actions are converted beforehand, as in the fastest possible loop.
    prepared = [row.tolist() if row.ndim == 1 else list(row) for row in actions]

    def step_bare() -> None:
        for row in prepared:
            for env, action in zip(bare, row, strict=True):
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()

    def step_block() -> None:
        for row in actions:
            block.step(row)

    loops: dict[str, Callable[[], None]] = {"bare": step_bare, "block": step_block}
    spent: dict[str, list[float]] = {name: [] for name in loops}
    while len(spent["bare"]) < _FEWEST_TURNS or sum(spent["bare"]) < seconds:
        for name, loop in loops.items():
            started = time.process_time()
            loop()
            spent[name].append(time.process_time() - started)
    return {name: 1e6 * min(turns) / (_STEPS * NUM_ENVS) for name, turns in spent.items()}


def _random_actions(space: gymnasium.Space[Any]) -> NDArray[Any]:
    """Return actions for successive steps, (steps, N, *action_shape)."""
    space.seed(0)
    return np.array([[space.sample() for _ in range(NUM_ENVS)] for _ in range(_STEPS)])


def main(arguments: Sequence[str]) -> None:
    """Measure and write the result to the file named first."""
    output, seconds, env_name = arguments
    Path(output).write_text(json.dumps(measure(env_name, float(seconds))))


if __name__ == "__main__":
    main(sys.argv[1:])
