import json
import math
import runpy
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from ppo.command_line import parse_command_line
from ppo.presets import PRESETS
from ppo.settings import Refusal
from scripts.benchmarking import stable_baselines3
from scripts.benchmarking.jobs import ROOT
from scripts.benchmarking.plan import Settings
from scripts.benchmarking.stable_baselines3 import WAYS, Way

SCRIPT = ROOT / "scripts/benchmarking/train_stable_baselines3.py"


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Run the script with stand-ins for the library; return the calls."""

    def run(settings_name):
        asked = {}

        def module(name, **members):
            fake = ModuleType(name)
            vars(fake).update(members)
            monkeypatch.setitem(sys.modules, name, fake)

        def make_model(policy, envs, **settings):
            asked.update(settings, policy=policy)
            return SimpleNamespace(learn=lambda steps, callback: None)

        def make_envs(name, n_envs, seed, vec_env_cls, env_kwargs=None):
            asked.update(name=name, n_envs=n_envs, vec_env=vec_env_cls, env_kwargs=env_kwargs)

        def normalized(envs, **settings):
            asked.update(normalization=settings)

        module("stable_baselines3", PPO=make_model)
        module("stable_baselines3.common")
        module("stable_baselines3.common.callbacks", BaseCallback=object)
        module("stable_baselines3.common.env_util", make_atari_env=make_envs, make_vec_env=make_envs)
        vec_envs = {"DummyVecEnv": "dummy", "SubprocVecEnv": "subprocesses", "VecNormalize": normalized}
        module("stable_baselines3.common.vec_env", VecFrameStack=lambda envs, n_stack: n_stack, **vec_envs)
        monkeypatch.setattr(sys, "argv", ["script", settings_name, "SubprocVecEnv", str(tmp_path / "progress.csv")])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return asked

    return run


def test_the_published_settings_are_those_of_the_zoo(trained):
    asked = trained("published")
    names = ("policy", "n_envs", "n_steps", "n_epochs", "batch_size", "ent_coef", "vf_coef")
    assert [asked[name] for name in names] == ["CnnPolicy", 8, 128, 4, 256, 0.01, 0.5]
    for name, start in (("learning_rate", 2.5e-4), ("clip_range", 0.1)):
        assert [asked[name](remaining) for remaining in (1.0, 0.5, 0.0)] == [start, start / 2, 0.0]
    assert "clip_range_vf" not in asked
    assert asked["vec_env"] == "subprocesses"


def test_the_other_settings_are_those_of_our_preset(trained):
    asked, ours = trained("cleanrl"), PRESETS["cleanrl"]
    for theirs, name in {
        "n_envs": "num_envs",
        "n_steps": "rollout_steps",
        "batch_size": "minibatch_size",
        "n_epochs": "num_epochs",
        "clip_range": "clip_range",
        "clip_range_vf": "value_clip_range",
        "vf_coef": "value_coefficient",
        "max_grad_norm": "max_gradient_norm",
    }.items():
        assert asked[theirs] == ours[name]
    assert asked["learning_rate"](1.0) == ours["learning_rate"]


@pytest.mark.parametrize("env_name", ["CartPole-v1", "HalfCheetah-v5"])
def test_a_small_world_is_learnt_with_our_network_sizes_and_normalization(trained, env_name):
    config = parse_command_line([f"--env_name={env_name}", "--minibatch_size=256", "--hidden_sizes=32,48"])
    asked, ours = trained(stable_baselines3.settings_like(config)), config.ppo
    assert (asked["policy"], asked["name"], asked["vec_env"]) == ("MlpPolicy", env_name, "subprocesses")
    network = asked["policy_kwargs"]
    assert network["net_arch"] == {"pi": [32, 48], "vf": [32, 48]}
    assert network["activation_fn"] is (torch.nn.ReLU if env_name == "HalfCheetah-v5" else torch.nn.Tanh)
    assert network["log_std_init"] == config.model.log_deviation_init
    for theirs, name in {
        "n_envs": "num_envs",
        "n_steps": "rollout_steps",
        "batch_size": "minibatch_size",
        "n_epochs": "num_epochs",
        "gamma": "discount",
        "gae_lambda": "gae_lambda",
        "clip_range": "clip_range",
        "ent_coef": "entropy_coefficient",
        "max_grad_norm": "max_gradient_norm",
    }.items():
        assert asked[theirs] == getattr(ours, name)
    assert 2.0 * asked["vf_coef"] == ours.value_coefficient
    if ours.learning_rate_schedule == "constant":
        assert asked["learning_rate"] == ours.learning_rate
    else:
        assert [asked["learning_rate"](remaining) for remaining in (1.0, 0.0)] == [ours.learning_rate, 0.0]
    # LunarLander would compute data that is only for rendering.
    assert asked["env_kwargs"] == {"render_mode": None}
    normalization = {
        "norm_obs": True,
        "norm_reward": True,
        "clip_obs": 10.0,
        "clip_reward": 10.0,
        "gamma": ours.discount,
    }
    assert asked.get("normalization") == (normalization if env_name == "HalfCheetah-v5" else None)


def test_an_unbounded_dimension_stays_unbounded():
    flags = ["--env_name=HalfCheetah-v5", "--observation_clip=None", "--max_gradient_norm=None", "--reward_clip=None"]
    settings = json.loads(stable_baselines3.settings_like(parse_command_line(flags)))
    assert settings["normalization"]["clip_obs"] == settings["normalization"]["clip_reward"] == math.inf
    assert settings["ppo"]["max_grad_norm"] == math.inf


PROGRAM = """
import os, sys, time
try:
    import stable_baselines3
except ModuleNotFoundError:
    pass
settings, vec_env, progress = sys.argv[1:]
open({said!r}, "a").write(f"{{settings}} {{vec_env}} {{os.environ.get('OMP_NUM_THREADS')}}\\n")
with open(progress, "w") as file:
    for update in range(1000):
        print(1000 * update if update else "env_steps", file=file, flush=True)
        time.sleep(0.01)
"""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A program that takes a hundredth of a second for 1,000 steps, and the file in which it notes its arguments."""
    said, program = tmp_path / "said", tmp_path / "train.py"
    # Like our module of this name, it is beside the script and must not be imported as the library.
    (tmp_path / "stable_baselines3.py").write_text("raise AssertionError")
    program.write_text(PROGRAM.format(said=str(said)))
    monkeypatch.setattr(stable_baselines3, "_PYTHON", sys.executable)
    monkeypatch.setattr(stable_baselines3, "_TRAIN", program)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    return said


def test_it_is_run_with_its_settings_and_threads_and_timed_by_its_rows(stand_in):
    settings = Settings(seconds=0.3, warm_up_seconds=0.1)
    speeds = [
        stable_baselines3.measure("cleanrl", Way("DummyVecEnv", threads), settings) for threads in ("default", "1")
    ]
    assert all(10_000 < speed <= 105_000 for speed in speeds)
    assert stand_in.read_text().splitlines() == ["cleanrl DummyVecEnv None", "cleanrl DummyVecEnv 1"]


def test_the_fastest_way_comes_first(monkeypatch):
    rates = dict(zip(WAYS, [250.0, 180.0, 260.0, 170.0], strict=True))
    monkeypatch.setattr(stable_baselines3, "measure", lambda settings_name, way, settings, share: rates[way])
    found = stable_baselines3.find_fastest_way(Settings())
    assert list(map(str, found))[:2] == ["SubprocVecEnv, default threads", "DummyVecEnv, default threads"]
    assert str(next(reversed(found))) == "SubprocVecEnv, 1 thread"


def test_an_installation_that_fails_is_refused(monkeypatch, tmp_path):
    script = tmp_path / "set_up"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(stable_baselines3, "_SET_UP", script)
    with pytest.raises(Refusal, match=r"could not be installed.*--no-stable_baselines3"):
        stable_baselines3.set_up()
