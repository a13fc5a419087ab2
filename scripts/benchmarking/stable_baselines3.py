"""Stable-Baselines3's PPO, run on the same cores and library versions from its own virtual environment.

It runs with the number of threads and the kind of vector environment that are fastest on this machine. It is timed like
the program, but writes neither logs nor checkpoints.
"""

import itertools
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ppo.config import Config
from ppo.settings import Refusal
from scripts.benchmarking.jobs import ROOT, Job
from scripts.benchmarking.plan import SHARE_OF_TIME_FOR_A_TRIAL, Settings
from scripts.benchmarking.programs import Follower, watch

_PYTHON = ROOT / ".venv-stable-baselines3" / "bin" / "python"
_SET_UP = Path(__file__).with_name("set_up_stable_baselines3")
_TRAIN = Path(__file__).with_name("train_stable_baselines3.py")
_VERSIONED = ("stable_baselines3", "torch", "numpy", "gymnasium", "ale-py", "opencv-python-headless", "Box2D", "mujoco")


@dataclass(frozen=True)
class Way:
    """A way to run Stable-Baselines3."""

    vec_env: str
    threads: str
    """`default`, or the value of OMP_NUM_THREADS."""

    def __str__(self) -> str:
        """Return the way's name in reports."""
        return f"{self.vec_env}, {self.threads} thread{'' if self.threads == '1' else 's'}"


WAYS = tuple(itertools.starmap(Way, itertools.product(("DummyVecEnv", "SubprocVecEnv"), ("default", "1"))))


def set_up() -> None:
    """Create the virtual environment on first use.

    Raises:
        Refusal: it cannot be created here.
    """
    if subprocess.run([_SET_UP, sys.executable], check=False).returncode != 0:
        raise Refusal("stable_baselines3 could not be installed (see above); add --no-stable_baselines3 to go without")


def versions() -> dict[str, str]:
    """Return the versions of Stable-Baselines3 and of the libraries that matter for its speed."""
    listing = subprocess.run(
        [_PYTHON, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
    ).stdout
    found = {package["name"]: package["version"] for package in json.loads(listing)}
    return {name: found[name] for name in _VERSIONED}


def settings_like(config: Config) -> str:
    """Return, as JSON, settings that make Stable-Baselines3 train a small world like the program.

    Features that it lacks, such as value normalisation, are left out.
    """
    model, ppo = config.model, config.ppo
    assert model.trunk in ("auto", "separate") and not ppo.clip_rewards and ppo.reward_scale == 1.0
    assert ppo.learning_rate_schedule in ("linear", "constant")
    normalization = {
        "norm_obs": model.observation_normalization,
        "norm_reward": ppo.reward_normalization,
        "clip_obs": model.observation_clip or math.inf,
        "clip_reward": ppo.reward_clip or math.inf,
        "gamma": ppo.discount,
    }
    is_normalized = model.observation_normalization or ppo.reward_normalization
    return json.dumps(
        {
            "env_name": config.run.env_name,
            "num_envs": ppo.num_envs,
            "widths": model.widths,
            "activation": model.activation,
            "normalization": normalization if is_normalized else None,
            "log_std_init": model.log_deviation_init,
            "learning_rate": ppo.learning_rate,
            "learning_rate_schedule": ppo.learning_rate_schedule,
            "ppo": {
                "n_steps": ppo.rollout_steps,
                "batch_size": ppo.minibatch_size,
                "n_epochs": ppo.num_epochs,
                "gamma": ppo.discount,
                "gae_lambda": ppo.gae_lambda,
                "clip_range": ppo.clip_range,
                "ent_coef": ppo.entropy_coefficient,
                "vf_coef": ppo.value_coefficient / 2,  # Stable-Baselines3 does not halve the squared error
                "max_grad_norm": ppo.max_gradient_norm or math.inf,
            },
        }
    )


def find_fastest_way(settings: Settings, training: str = "published") -> dict[Way, float]:
    """Return the steps per second of every way to run Stable-Baselines3, fastest first.

    Args:
        settings: how long to measure.
        training: see `measure`.

    Raises:
        JobError: the training ended by itself.
    """
    rates = {way: measure(training, way, settings, share=SHARE_OF_TIME_FOR_A_TRIAL) for way in WAYS}
    return dict(sorted(rates.items(), key=lambda pair: -pair[1]))


def measure(training: str, way: Way, settings: Settings, *, share: float = 1.0) -> float:
    """Return the steps per second of Stable-Baselines3 on the cores of this process.

    Args:
        training: the settings to train with: for Atari a SettingsName, otherwise the JSON of `settings_like`.
        way: how to run it.
        settings: how long to warm up and to measure.
        share: the share of that time to take.

    Raises:
        JobError: the training ended by itself.
    """
    threads = {} if way.threads == "default" else {"OMP_NUM_THREADS": way.threads}
    warm_up_seconds, seconds = settings.warm_up_seconds * share, settings.seconds * share
    with tempfile.TemporaryDirectory() as name:
        progress = Path(name) / "progress.csv"
        # Isolated (-I), because this module has the library's name and lies in the script's folder.
        command = [str(_PYTHON), "-I", str(_TRAIN), training, way.vec_env, str(progress)]
        with Job(command, Path(name), **threads) as job:
            window = watch(job, Follower(progress), warm_up_seconds, lambda _, elapsed: elapsed >= seconds)
    return window.steps_per_second
