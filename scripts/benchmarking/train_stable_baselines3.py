"""Train Stable-Baselines3's PPO until stopped, on Pong or on a world with vector observations.

Run by the benchmark in its own virtual environment. Arguments: the settings, which are for Pong `cleanrl` (those of our
preset) or `published` (rl-baselines3-zoo's for Atari games, hyperparams/ppo.yml), for vector observations the JSON of
`settings_like`; `DummyVecEnv` or `SubprocVecEnv`; and the CSV file that gets a row after every update.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize
from torch import nn

ENV_STEPS = 1_000_000_000


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
        """Create the file with its header."""
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


def pong(settings: str, vec_env: type) -> PPO:
    """Return a learner for Pong with the settings of this name."""
    # The prefix makes every process that builds an environment import ale_py, which registers the games.
    envs = make_atari_env("ale_py:PongNoFrameskip-v4", n_envs=NUM_ENVS, seed=0, vec_env_cls=vec_env)
    return PPO("CnnPolicy", VecFrameStack(envs, n_stack=4), seed=0, device="cpu", **SETTINGS[settings])


def world_of_vectors(settings: dict[str, Any], vec_env: type) -> PPO:
    """Return a learner for vector observations with one MLP each for policy and values."""
    envs = make_vec_env(
        settings["env_name"],
        n_envs=settings["num_envs"],
        seed=0,
        vec_env_cls=vec_env,
        # By default data for rendering is computed too, which makes LunarLander several times slower.
        env_kwargs={"render_mode": None},
    )
    if settings["normalization"]:
        envs = VecNormalize(envs, **settings["normalization"])
    rate = settings["learning_rate"]
    widths, activation = settings["widths"], {"tanh": nn.Tanh, "relu": nn.ReLU}[settings["activation"]]
    return PPO(
        "MlpPolicy",
        envs,
        seed=0,
        device="cpu",
        learning_rate=linear(rate) if settings["learning_rate_schedule"] == "linear" else rate,
        policy_kwargs={
            "net_arch": {"pi": widths, "vf": widths},
            "activation_fn": activation,
            "log_std_init": settings["log_std_init"],
        },
        **settings["ppo"],
    )


def main() -> None:
    """Train."""
    settings, vec_env_name, progress_path = sys.argv[1:]
    vec_env = {"DummyVecEnv": DummyVecEnv, "SubprocVecEnv": SubprocVecEnv}[vec_env_name]
    model = pong(settings, vec_env) if settings in SETTINGS else world_of_vectors(json.loads(settings), vec_env)
    model.learn(ENV_STEPS, callback=Progress(Path(progress_path)))


if __name__ == "__main__":
    main()
