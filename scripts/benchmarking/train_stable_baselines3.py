"""Train Stable-Baselines3's PPO on Pong with one of two sets of settings, until stopped.

Run by the benchmark in a virtual environment of its own. Arguments: the settings, `cleanrl` (those of our preset) or
`published` (rl-baselines3-zoo's for Atari games, hyperparams/ppo.yml); `DummyVecEnv` or `SubprocVecEnv`; and the CSV
file that gets a row after every update.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

ENV_STEPS = 10_000_000


def linear(start: float) -> Callable[[float], float]:
    """Return a schedule that falls from `start` to 0 with the share of the training that remains."""
    return lambda remaining: start * remaining


SHARED = {
    "n_steps": 128,
    "batch_size": 256,
    "n_epochs": 4,
    "learning_rate": linear(2.5e-4),
    "ent_coef": 0.01,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
}
SETTINGS = {
    "cleanrl": {**SHARED, "clip_range": 0.1, "clip_range_vf": 0.1},
    "published": {**SHARED, "clip_range": linear(0.1)},
}
NUM_ENVS = 8


class Progress(BaseCallback):  # type: ignore[misc]  # the library is not installed here
    """Appends the number of steps to a CSV file at the end of each update."""

    def __init__(self, path: Path) -> None:
        """Begin the file."""
        super().__init__()
        self._path = path
        path.write_text("env_steps\n")

    def _on_rollout_start(self) -> None:
        if self.num_timesteps == 0:  # no update has been done before the first rollout
            return
        with self._path.open("a") as file:
            file.write(f"{self.num_timesteps}\n")

    def _on_step(self) -> bool:
        return True


def main() -> None:
    """Train."""
    settings, vec_env, progress_path = sys.argv[1:]
    # The prefix makes every process that builds an environment import ale_py, which knows the games.
    envs = make_atari_env(
        "ale_py:PongNoFrameskip-v4",
        n_envs=NUM_ENVS,
        seed=0,
        vec_env_cls={"DummyVecEnv": DummyVecEnv, "SubprocVecEnv": SubprocVecEnv}[vec_env],
    )
    model = PPO("CnnPolicy", VecFrameStack(envs, n_stack=4), seed=0, device="cpu", **SETTINGS[settings])
    model.learn(ENV_STEPS, callback=Progress(Path(progress_path)))


if __name__ == "__main__":
    main()
