"""Named settings, data only: each entry changes defaults of `config.py` and flags change them further."""

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The fastest settings found so far that never collapsed; docs/learning.md has the runs behind them.
    "atari": {
        "model_size": "small",
        "num_envs": 16,
        "rollout_steps": 128,
        "minibatch_size": 256,
        "num_epochs": 3,
        "learning_rate": 3e-4,
        "learning_rate_schedule": "kl_adaptive",
        "learning_rate_max": 1e-3,
        "clip_range": 0.2,
        "value_coefficient": 1.0,
        "value_normalization": True,
        "pixel_normalization": True,
        "max_gradient_norm": 1.0,
        "checkpoint_interval": 25,
    },
    # Schulman et al. 2017 (arXiv:1707.06347), table 5. The paper's value loss is the whole squared error.
    "paper": {
        "model_size": "small",
        "num_envs": 8,
        "rollout_steps": 128,
        "minibatch_size": 256,
        "num_epochs": 3,
        "learning_rate": 2.5e-4,
        "learning_rate_schedule": "linear",
        "clip_range": 0.1,
        "clip_range_schedule": "linear",
        "value_coefficient": 2.0,
        "max_gradient_norm": None,
        "checkpoint_interval": 40,
    },
    # The numbers of CleanRL's ppo_atari.py (github.com/vwxyzjn/cleanrl).
    "cleanrl": {
        "model_size": "large",
        "num_envs": 8,
        "rollout_steps": 128,
        "minibatch_size": 256,
        "num_epochs": 4,
        "learning_rate": 2.5e-4,
        "learning_rate_schedule": "linear",
        "clip_range": 0.1,
        "value_coefficient": 0.5,
        "value_clip_range": 0.1,
        "advantage_normalization": "minibatch",
        "max_gradient_norm": 0.5,
        "checkpoint_interval": 20,
    },
    # Vector observations: CartPole, Acrobot, MountainCar and their like.
    "classic": {
        "env_steps": 120_000,
        "model_size": "small",
        "num_envs": 16,
        "rollout_steps": 64,
        "minibatch_size": 256,
        "num_epochs": 8,
        "learning_rate": 1e-3,
        "learning_rate_schedule": "linear",
        "clip_range": 0.2,
        "gae_lambda": 0.9,
        "entropy_coefficient": 0.0,
        "value_normalization": True,
        "max_gradient_norm": 0.5,
        "checkpoint_interval": 200,
    },
}


def default_preset(env_name: str) -> str:
    """Return the preset of an environment's family."""
    return "atari" if "NoFrameskip" in env_name or env_name.startswith("ALE/") else "classic"
