"""Named settings: each entry changes defaults of `config.py`, and flags change them further.

Another number of environments than a preset was made for changes some of its other numbers, by the rule of
`for_environments`.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from ppo.families import Family, constructor_arguments

_LARGEST_BATCH = 16_384
_LARGEST_RATE = 1e-3

# Vector observations: CartPole, Acrobot, MountainCar and their like.
_CLASSIC: Mapping[str, Any] = {
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
}
# Vectors of unknown scale and bounded or unbounded actions: MuJoCo, BipedalWalker and their like. The code-level
# optimisations of Engstrom et al. 2020 (arXiv:2005.12729); worlds below change them.
_CONTINUOUS: Mapping[str, Any] = {
    "env_steps": 1_000_000,
    "model_size": "small",
    "observation_normalization": True,
    "reward_normalization": True,
    "reward_clip": 10.0,
    "num_envs": 16,
    "rollout_steps": 256,
    "minibatch_size": 256,
    "num_epochs": 10,
    "learning_rate": 3e-4,
    "learning_rate_schedule": "linear",
    "clip_range": 0.2,
    "gae_lambda": 0.95,
    "entropy_coefficient": 0.0,
    "value_coefficient": 0.5,
    "max_gradient_norm": 0.5,
    "checkpoint_interval": 25,
}
# Advantages anew before each epoch, on a scale of their own, as Tianshou trains MuJoCo (github.com/thu-ml/tianshou).
_WALKING: Mapping[str, Any] = {
    **_CONTINUOUS,
    "num_envs": 8,
    "learning_rate": 6e-4,
    "value_coefficient": 0.25,
    "value_clip_range": 0.2,
    "advantage_normalization": "none",
    "recompute_advantages": True,
}
_WALKING_WIDE: Mapping[str, Any] = {**_WALKING, "hidden_sizes": "128,128", "learning_rate": 5e-4}
_LANDER: Mapping[str, Any] = {
    **_CLASSIC,
    "reward_normalization": True,
    "num_envs": 32,
    "rollout_steps": 256,
    "minibatch_size": 512,
    "num_epochs": 6,
    "learning_rate": 5e-4,
    "discount": 0.999,
    "gae_lambda": 0.98,
    "checkpoint_interval": 50,
}
_CAR_RACING: Mapping[str, Any] = {
    "env_name": "CarRacing-v3",
    "env_steps": 1_000_000,
    "action_repeat": 4,
    "network": "coordconv",
    "head_units": 100,
    "num_envs": 16,
    "rollout_steps": 128,
    "minibatch_size": 256,
    "num_epochs": 5,
    "learning_rate_schedule": "kl_adaptive",
    "kl_target": 0.01,
    "clip_range": 0.2,
    "discount": 0.99,
    "gae_lambda": 0.95,
    "reward_normalization": True,
    "value_loss": "smooth_l1",
    "value_coefficient": 0.5,
    "max_gradient_norm": 0.5,
    "checkpoint_interval": 25,
}
_COORDCONV_PPO: Mapping[str, Any] = {
    "env_name": "CarRacing-v3",
    "env_steps": 250_000,
    "action_repeat": 8,
    "policy": "beta",
    "head_units": 100,
    "num_envs": 8,
    "rollout_steps": 256,
    "minibatch_size": 64,
    "num_epochs": 10,
    "learning_rate": 1e-3,
    "learning_rate_schedule": "constant",
    "clip_range": 0.1,
    "discount": 0.99,
    "gae_lambda": 0.0,
    "entropy_coefficient": 0.0,
    "value_loss": "smooth_l1",
    "value_coefficient": 2.0,
    "advantage_normalization": "none",
    "max_gradient_norm": None,
    "adam_epsilon": 1e-8,
    "checkpoint_interval": 10,
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # The fastest settings found so far that never collapsed; docs/learning.md has the runs behind them.
    "atari": {
        "clip_rewards": True,
        "model_size": "small",
        "num_envs": 64,
        "rollout_steps": 64,
        "minibatch_size": 512,
        "num_epochs": 3,
        "learning_rate": 3e-4,
        "learning_rate_schedule": "kl_adaptive",
        "learning_rate_max": 1e-3,
        "clip_range": 0.2,
        "gae_lambda": 0.95,
        # Pong needs long returns to assign credit before values are learnt; Breakout needs shorter ones later.
        "gae_lambda_late": 0.9,
        "gae_lambda_late_steps": 1_000_000,
        "value_coefficient": 1.0,
        "value_normalization": True,
        "pixel_normalization": True,
        "max_gradient_norm": 1.0,
        "checkpoint_interval": 12,
    },
    # Schulman et al. 2017 (arXiv:1707.06347), table 5. The paper's value loss is the whole squared error.
    "paper": {
        "clip_rewards": True,
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
        "clip_rewards": True,
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
    # The defaults of the program that this one answers to first (lucaslingle/ppo1 and pytorch_ppo_atari), whose sizes
    # are per rank; here they are those of its 8 ranks. Its value loss is the whole squared error.
    "ppo1": {
        "clip_rewards": True,
        "model_size": "large",
        "env_steps": 11_000_000,
        "num_envs": 8,
        "rollout_steps": 256,
        "minibatch_size": 512,
        "num_epochs": 3,
        "learning_rate": 1e-3,
        "learning_rate_schedule": "linear",
        "clip_range": 0.2,
        "clip_range_schedule": "linear",
        "gae_lambda": 0.95,
        "entropy_coefficient": 0.01,
        "value_coefficient": 2.0,
        "max_gradient_norm": None,
        "checkpoint_interval": 10,
    },
    # With a brake that begins at half of its range the car hardly moves. A rate that falls linearly made 899 by the
    # mean; one that follows the KL, in another run, 820 after 650,000 steps.
    "car-racing": {
        **_CAR_RACING,
        "policy": "beta",
        "action_start": "0.5,0.5,0.1",
        "learning_rate": 4e-4,
        "learning_rate_schedule": "linear",
        "entropy_coefficient": 0.0,
    },
    "car-racing-discrete": {
        **_CAR_RACING,
        "env_kwargs": '{"continuous": false}',
        "policy": "categorical",
        "learning_rate": 7e-4,
        "entropy_coefficient": 0.01,
    },
    # The numbers of github.com/dgandiaga/CoordConvPPO, whose 2,000 steps of one environment are 2,048 of eight here.
    "coordconv-000": {**_COORDCONV_PPO, "network": "coordconv", "picture": "maximum"},
    "convnet-000": {**_COORDCONV_PPO, "network": "convnet", "picture": "full"},
    "classic": _CLASSIC,
    "continuous": _CONTINUOUS,
    # Worlds with settings of their own, each found by training in it with other seeds than those of docs/scores.md. A
    # world's preset has its name without the version.
    # A cart that drifts off leaves the track after hundreds of steps: longer returns than usual see it coming.
    "CartPole": {
        **_CLASSIC,
        "env_steps": 100_000,
        "rollout_steps": 32,
        "num_epochs": 10,
        "discount": 0.995,
        "gae_lambda": 0.95,
    },
    # Before a game first ends by itself there is nothing to learn from. Advantages scaled up all the same drive the
    # policy to where it explores no more: one seed of three got there. With half of this rate, one or two games of 100
    # went on for hundreds of steps.
    "Acrobot": {
        **_CLASSIC,
        "env_steps": 500_000,
        "learning_rate": 2e-3,
        "advantage_normalization": "none",
        "observation_normalization": True,
        "reward_normalization": True,
        "rollout_steps": 256,
        "gae_lambda": 0.95,
        "act": "mode",
        "checkpoint_interval": 50,
    },
    # The goal is hardly ever met by chance: what is learnt of the velocity in the meantime leads to it, while the
    # entropy bonus keeps the actions apart.
    "MountainCar": {
        **_CLASSIC,
        "env_steps": 1_000_000,
        "observation_normalization": True,
        "reward_normalization": True,
        "rollout_steps": 128,
        "num_epochs": 4,
        "discount": 0.999,
        "gae_lambda": 0.98,
        "entropy_coefficient": 0.02,
        "act": "mode",
        "checkpoint_interval": 50,
    },
    # Nearly undiscounted, with noise that is strong enough to leave the valley by itself.
    "MountainCarContinuous": {
        **_CONTINUOUS,
        "env_steps": 300_000,
        "rollout_steps": 128,
        "discount": 0.9999,
        "gae_lambda": 0.9,
        "log_deviation_init": 1.0,
        "learning_rate": 1e-3,
    },
    # All rewards are negative and of one size: advantages need no scale of their own.
    "Pendulum": {
        **_CONTINUOUS,
        "env_steps": 500_000,
        "rollout_steps": 128,
        "num_epochs": 20,
        "discount": 0.97,
        "learning_rate": 5e-4,
        "advantage_normalization": "none",
    },
    # The numbers of RL-Zoo, with a larger batch and rate: small steps, and noise that is small from the start.
    "HalfCheetah": {
        **_CONTINUOUS,
        "hidden_sizes": "256,256",
        "activation": "relu",
        "log_deviation_init": -2.0,
        "num_envs": 8,
        "num_epochs": 20,
        "learning_rate": 1e-4,
        "learning_rate_schedule": "constant",
        "clip_range": 0.1,
        "discount": 0.98,
        "gae_lambda": 0.92,
        "entropy_coefficient": 0.0004,
    },
    "Hopper": _WALKING,
    # In Walker2d these made 3,821 to 5,254, and Hopper's 2,676 in a single run.
    "Walker2d": _WALKING_WIDE,
    "Ant": _WALKING_WIDE,
    # With seed 101 the KL of Walker2d's own settings was three times as large after 380,000 steps.
    "Humanoid": {
        **_WALKING_WIDE,
        "env_steps": 3_000_000,
        "num_envs": 16,
        "minibatch_size": 512,
        "learning_rate": 3e-4,
    },
    # Longer returns: 9,359, and all of 100 games to their end, against 9,007 with Hopper's own settings.
    "InvertedDoublePendulum": {
        **_WALKING,
        "num_envs": 16,
        "minibatch_size": 512,
        "learning_rate": 8.5e-4,
        "discount": 0.995,
    },
    # Hopper's settings made -4.2 by the mean after 1M steps with seed 101.
    "Reacher": {**_WALKING, "env_steps": 3_000_000},
    "InvertedPendulum": {**_CONTINUOUS, "env_steps": 500_000},
    # Made 311 by the mean with seed 101; docs/scores.md has other settings, which made 291.
    "BipedalWalker": {**_CONTINUOUS, "env_steps": 5_000_000, "rollout_steps": 1024, "hidden_sizes": "128,128"},
    # Nearly undiscounted: the way forward leads through strokes that cost speed first.
    "Swimmer": {
        **_CONTINUOUS,
        "num_envs": 8,
        "rollout_steps": 512,
        "learning_rate": 6e-4,
        "discount": 0.9999,
        "gae_lambda": 0.98,
    },
    "ContinuousCartPole": {**_CONTINUOUS, "env_steps": 200_000, "rollout_steps": 128, "learning_rate": 1e-3},
    "ReachingDot": {**_CONTINUOUS, "env_steps": 200_000, "rollout_steps": 128, "learning_rate": 1e-3},
    "LunarLander": {**_LANDER, "env_steps": 5_000_000, "entropy_coefficient": 0.01},
    # Its samples land more often than the mean does.
    "LunarLanderContinuous": {**_LANDER, "env_steps": 3_000_000, "act": "sample"},
}


# Worlds that an argument of their constructor turns into others, with other actions.
_BY_ARGUMENT = {
    ("BipedalWalker", "hardcore", True): "continuous",
    ("CarRacing", "continuous", False): "car-racing-discrete",
    ("LunarLander", "continuous", True): "LunarLanderContinuous",
}


def preset_of(env_name: str, family: Family, env_kwargs: str = "{}") -> str:
    """Return the name of the preset that a world starts from: its own, or its family's.

    Args:
        env_name: the world's id.
        family: of the world.
        env_kwargs: the constructor's arguments as JSON; no object counts as none.
    """
    named = re.fullmatch(r"(?:ppo/)?(\w+)-v\d+", env_name)
    if not named:
        return family.preset
    for argument, value in (constructor_arguments(env_kwargs) or {}).items():
        if isinstance(value, bool) and (named[1], argument, value) in _BY_ARGUMENT:
            return _BY_ARGUMENT[named[1], argument, value]
    return named[1] if named[1] in PRESETS else family.preset


def is_tuned_for(preset: str, env_name: str, family: Family, env_kwargs: str = "{}") -> bool:
    """Whether a preset was found by training in this world, or for all worlds of its family."""
    own = preset_of(env_name, family, env_kwargs)
    is_the_familys = preset in family.tuned_presets and own == preset_of(env_name, family)
    return is_the_familys or preset == own != family.preset


def for_environments(preset: Mapping[str, Any], num_envs: int, rollout_steps: int | None = None) -> Mapping[str, Any]:
    """Return a preset with what another number of environments changes in it, so that they learn as much from a step.

    As many gradient steps an update as before, or some more where the rollout cannot be divided so: minibatches grow
    and shrink with the batch. Fewer environments play longer: the rollout is doubled while the batch is not larger for
    it than before. More environments make a larger batch, of at most 16,384 steps, the rollout being halved until it
    is (more parallel environments serve better than longer rollouts, Mayor et al. 2025, arXiv:2506.03404).

    The learning rate grows with the square root of the batch, to at most 1e-3 (Adam's gradient noise falls so), and
    never falls; a rate that is steered by the KL finds its own value. The steps until lambda falls go with the same
    root: with a larger batch it takes more of them, but fewer updates, until values can be trusted.

    Args:
        preset: one of PRESETS.
        num_envs: environments of the job; as many as the preset has change nothing.
        rollout_steps: the user's explicit value; kept.
    """
    if num_envs == preset["num_envs"]:
        return preset
    batch = preset["num_envs"] * preset["rollout_steps"]
    num_minibatches = batch // preset["minibatch_size"]
    steps = rollout_steps or preset["rollout_steps"]
    if not rollout_steps:
        while 2 * num_envs * steps <= batch:
            steps *= 2
        # Every environment has a step in every minibatch.
        while num_envs * steps > _LARGEST_BATCH and steps % (2 * num_minibatches) == 0:
            steps //= 2
    growth = num_envs * steps / batch
    in_a_minibatch = next(n for n in range(max(1, steps // num_minibatches), 0, -1) if steps % n == 0)
    changed = {"rollout_steps": steps, "minibatch_size": num_envs * in_a_minibatch}
    if "gae_lambda_late_steps" in preset:
        changed["gae_lambda_late_steps"] = max(1, round(preset["gae_lambda_late_steps"] * math.sqrt(growth)))
    if preset["learning_rate_schedule"] != "kl_adaptive":
        rate = preset["learning_rate"]
        changed["learning_rate"] = max(rate, min(_LARGEST_RATE, rate * math.sqrt(growth)))
    return {**preset, **changed}
