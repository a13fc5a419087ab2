"""Stable-Baselines3's PPO, run on the same cores and library versions from a virtual environment of its own.

It has the threads and the kind of vector environment with which it is fastest on this machine. It is timed like the
program, but is asked to write neither logs nor checkpoints.
"""

import itertools
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ppo.settings import Refusal
from scripts.benchmarking.jobs import ROOT, Job
from scripts.benchmarking.plan import Settings, SettingsName
from scripts.benchmarking.programs import Follower, watch

_PYTHON = ROOT / ".venv-stable-baselines3" / "bin" / "python"
_SET_UP = Path(__file__).with_name("set_up_stable_baselines3")
_TRAIN = Path(__file__).with_name("train_stable_baselines3.py")
_VERSIONED = ("stable_baselines3", "torch", "numpy", "gymnasium", "ale-py", "opencv-python-headless")
_SHARE_OF_TIME_FOR_A_TRIAL = 0.5


@dataclass(frozen=True)
class Way:
    """A way to run it."""

    vec_env: str
    threads: str
    """`default`, or what OMP_NUM_THREADS is set to."""

    def __str__(self) -> str:
        """Return what a report calls it."""
        return f"{self.vec_env}, {self.threads} thread{'' if self.threads == '1' else 's'}"


WAYS = tuple(itertools.starmap(Way, itertools.product(("DummyVecEnv", "SubprocVecEnv"), ("default", "1"))))


def set_up() -> None:
    """Make its virtual environment on first use.

    Raises:
        Refusal: it cannot be made here.
    """
    if subprocess.run([_SET_UP, sys.executable], check=False).returncode != 0:
        raise Refusal("stable_baselines3 could not be installed (see above); add --no-stable_baselines3 to go without")


def versions() -> dict[str, str]:
    """Return the versions of it and of the libraries that matter for its speed."""
    listing = subprocess.run(
        [_PYTHON, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True
    ).stdout
    found = {package["name"]: package["version"] for package in json.loads(listing)}
    return {name: found[name] for name in _VERSIONED}


def find_fastest_way(settings: Settings) -> dict[Way, float]:
    """Return the steps per second of every way to run it with its own settings, the fastest first.

    Raises:
        JobError: it ended by itself.
    """
    rates = {way: measure("published", way, settings, share=_SHARE_OF_TIME_FOR_A_TRIAL) for way in WAYS}
    return dict(sorted(rates.items(), key=lambda pair: -pair[1]))


def measure(settings_name: SettingsName, way: Way, settings: Settings, *, share: float = 1.0) -> float:
    """Return its steps per second on the cores of this process.

    Args:
        settings_name: which settings it trains with.
        way: how it runs.
        settings: how long to warm up and to measure.
        share: the share of that time to take.

    Raises:
        JobError: it ended by itself.
    """
    threads = {} if way.threads == "default" else {"OMP_NUM_THREADS": way.threads}
    warm_up_seconds, seconds = settings.warm_up_seconds * share, settings.seconds * share
    with tempfile.TemporaryDirectory() as name:
        progress = Path(name) / "progress.csv"
        command = [str(_PYTHON), str(_TRAIN), settings_name, way.vec_env, str(progress)]
        with Job(command, Path(name), **threads) as job:
            window = watch(job, Follower(progress), warm_up_seconds, lambda _, elapsed: elapsed >= seconds)
    return window.steps_per_second
