"""A command line means one run: by its name, and by the settings it shares with the run's checkpoints."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ppo import presets
from ppo.command_line import explicit_settings, parse_command_line
from ppo.config import Config, default_model_name
from ppo.identity import find_run, named_settings, settle
from ppo.outputs.checkpoint import write_checkpoint
from ppo.outputs.manifest import Counters
from ppo.settings import Refusal
from tests.jobs import CARTPOLE, PONG, ppo, rows

POLE, SEVERAL_SEEDS = "--env_name=CartPole-v1", ["CartPole-v1", "CartPole-v1-seed1"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@functools.cache
def parsed(*flags: str) -> Config:
    return parse_command_line(flags)


def settled(flags: Sequence[str]) -> tuple[Config, list[str]]:
    return settle(parsed(*flags), explicit_settings(flags))


def saved_by(flags: Sequence[str], *, knows_names: bool = True, **changes: Any) -> None:
    """Write a checkpoint as a run of this command line would; with changes, as one of another version would."""
    config = find_run(parsed(*flags)).replace_settings(changes)
    named = named_settings(config, explicit_settings(flags)) if knows_names else None
    counters = Counters(1, 64, 1.0, 0, ())
    write_checkpoint(config.checkpoint_folder, config, counters, {"model/w": torch.zeros(1)}, None, named=named)


# ------------------------------------------------------------------------------------------------------------- the name


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ([POLE], "CartPole-v1"),
        ([POLE, "--rng_seed=0"], "CartPole-v1"),
        ([POLE, "--rng_seed=7"], "CartPole-v1-seed7"),
        ([POLE, "--rng_seed=7", "--gae_lambda=0.5", "--num_envs=4"], "CartPole-v1-seed7"),
        ([POLE, "--rng_seed=7", "--model_name=mine"], "mine"),
        (["--env_name=ALE/Pong-v5", "--rng_seed=1"], "ALE-Pong-v5-seed1"),
    ],
)
def test_the_default_name_is_of_the_world_and_the_seed_alone(flags: list[str], name: str) -> None:
    assert parsed(*flags).model_name == find_run(parsed(*flags)).model_name == name


def test_a_long_name_keeps_its_seed() -> None:
    name = default_model_name("x" * 100, 2**63 - 1)
    assert len(name) == 100
    assert name.endswith(f"-seed{2**63 - 1}")


def test_a_run_of_a_seed_in_the_folder_of_the_world_is_resumed_there() -> None:
    saved_by([POLE, "--rng_seed=3", "--model_name=CartPole-v1"])
    assert find_run(parsed(POLE, "--rng_seed=3")).model_name == "CartPole-v1"
    assert find_run(parsed(POLE, "--rng_seed=4")).model_name == "CartPole-v1-seed4"
    with pytest.raises(Refusal, match=r"rng_seed 3 -> 0.*--model_name or --fresh"):
        settled([POLE])


def test_the_second_seed_trains_beside_the_first_and_each_is_resumed() -> None:
    here = Path()
    for env_steps in (64, 128):
        for flags, name in zip(([], ["--rng_seed=1"]), SEVERAL_SEEDS, strict=True):
            job = ppo(here, *CARTPOLE, f"--env_steps={env_steps}", *flags)
            assert job.returncode == 0, job.stderr
            assert ("resuming" in job.stdout) == (env_steps == 128)
            assert len(rows(here / "runs" / name / "progress.csv")) == env_steps // 64
    assert sorted(os.listdir("checkpoints")) == SEVERAL_SEEDS


def played(*flags: str) -> str:
    job = ppo(Path(), "--mode=play", "--episodes=1", POLE, *flags)
    assert job.returncode == 0, job.stderr
    return job.stdout.split(",")[0]


def test_playback_finds_a_run_by_the_rule_of_training_and_else_one_of_another_seed() -> None:
    assert ppo(Path(), *CARTPOLE, "--env_steps=64", "--rng_seed=1").returncode == 0
    assert played("--rng_seed=1") == played() == "CartPole-v1-seed1"
    assert ppo(Path(), *CARTPOLE, "--env_steps=64").returncode == 0
    assert played("--rng_seed=1") == "CartPole-v1-seed1"
    assert played() == played("--rng_seed=2") == "CartPole-v1"


# --------------------------------------------------------------------------------------------------------- the settings


@pytest.mark.parametrize(
    ("before", "now", "differs"),
    [
        ([], ["--gae_lambda=0.5"], "gae_lambda 0.95 -> 0.5"),
        (["--gae_lambda=0.5"], [], "gae_lambda 0.5 -> 0.95"),
        ([], ["--preset=classic"], "gae_lambda 0.95 -> 0.9"),
        ([], ["--num_envs=32"], "num_envs 16 -> 32"),
        ([], ["--hidden_sizes=8"], "hidden_sizes auto -> 8"),
        ([], ["--env_name=Acrobot-v1"], "env_name CartPole-v1 -> Acrobot-v1"),
        ([], ["--rng_seed=1"], "rng_seed 0 -> 1"),
        (["--env_name=PongNoFrameskip-v4"], ["--env_name=PongNoFrameskip-v4", "--frame_stack=2"], "frame_stack 4 -> 2"),
    ],
)
def test_settings_other_than_the_checkpoints_are_refused_with_the_ways_out(
    before: list[str], now: list[str], differs: str
) -> None:
    saved_by([POLE, "--model_name=mine", *before])
    with pytest.raises(Refusal) as refusal:
        settled([POLE, "--model_name=mine", *now])
    for word in (differs, "--model_name", "--fresh", "use the old settings (--"):
        assert word in str(refusal.value)


CAN_CHANGE = {"--gae_lambda=0.5": True, "--preset=classic": True, "--no_episodic_life": True}
CAN_CHANGE |= {"--sticky_actions=0.25": True, "--num_envs=32": False, "--model_size=large": False}
CAN_CHANGE |= {"--no_value_normalization": False, '--env_kwargs={"a": 1}': False}
CAN_CHANGE |= {"--frame_stack=2": False, "--full_action_space": False, "--noop_max=5": True}


@pytest.mark.parametrize("flag", CAN_CHANGE)
def test_settings_are_changed_on_purpose_only_where_weights_mean_the_same(flag: str) -> None:
    is_of_atari = any(name in flag for name in ("episodic_life", "sticky_", "frame_stack", "full_action", "noop_"))
    world = "--env_name=PongNoFrameskip-v4" if is_of_atari else POLE
    saved_by([world])
    with pytest.raises(Refusal) as refusal:
        settled([world, flag])
    assert ("--change_settings" in str(refusal.value)) == CAN_CHANGE[flag]
    if CAN_CHANGE[flag]:
        assert settled([world, flag, "--change_settings"])[0] == parsed(world, flag, "--change_settings")
    else:
        with pytest.raises(Refusal, match="belongs to another run"):
            settled([world, flag, "--change_settings"])


@pytest.mark.parametrize(
    "flags",
    [
        [POLE, "--env_steps=100000"],
        [POLE, "--env_engine=processes", "--device=cpu", "--gradient_wire=bfloat16", "--all_reduce=flat"],
        [POLE, "--watchdog_seconds=60", "--replica_check_interval=1", "--take_over_lock"],
        [POLE, "--checkpoint_interval=1", "--keep_checkpoints=all", "--evaluation_interval=3", "--act=mode"],
    ],
)
def test_length_machine_and_supervision_settings_never_make_another_run(flags: list[str]) -> None:
    saved_by([POLE])
    assert settled(flags) == (parsed(*flags), [])
    longer = [*flags, "--env_steps=200000"]
    assert settled(longer)[0] == parsed(*longer)


@pytest.mark.parametrize(
    "flags", [[], ["--num_envs=32"], ["--preset=classic"], ["--gae_lambda=0.8"], ["--num_envs=2", "--rollout_steps=8"]]
)
def test_the_same_command_is_never_refused(flags: list[str]) -> None:
    saved_by([POLE, *flags])
    assert settled([POLE, *flags]) == (parsed(POLE, *flags), [])


@pytest.mark.parametrize("knows_names", [True, False])
@pytest.mark.parametrize("flags", [[], ["--clip_range=0.3"], ["--preset=CartPole"]])
def test_the_same_command_keeps_the_settings_of_its_run_when_a_preset_has_changed(
    flags: list[str], knows_names: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [POLE, *flags]
    saved_by(command, knows_names=knows_names)
    before = parse_command_line(command)
    changed = {**presets.PRESETS["CartPole"], "learning_rate": 0.5, "model_size": "large"}
    monkeypatch.setitem(presets.PRESETS, "CartPole", changed)  # type: ignore[arg-type]
    config, notes = settle(parse_command_line(command), explicit_settings(command))
    assert config == before
    assert any("learning_rate 0.001 -> 0.5; the run keeps 0.001" in note for note in notes)
    named = [*command, "--learning_rate=0.25"]
    with pytest.raises(Refusal, match=r"learning_rate 0\.001 -> 0\.25"):
        settle(parse_command_line(named), explicit_settings(named))


def test_the_same_command_keeps_its_run_when_the_world_starts_from_a_preset_of_another_name() -> None:
    saved_by([POLE], preset="classic", learning_rate=1e-4)
    config, notes = settled([POLE])
    assert (config.ppo.learning_rate, len(notes)) == (1e-4, 1)
    with pytest.raises(Refusal, match="belongs to another run"):
        settled([POLE, "--preset=classic"])


@pytest.mark.parametrize(
    ("name", "value"), [("network", "os:path"), ("policy", "os:path"), ("env_kwargs", '{"path": "/etc"}')]
)
def test_code_and_arguments_from_outside_are_never_kept_on_the_word_of_a_checkpoint(name: str, value: str) -> None:
    saved_by([POLE], **{name: value})
    with pytest.raises(Refusal, match=f"{name} {value} -> "):
        settled([POLE])


def test_what_is_known_here_is_kept_like_a_number() -> None:
    saved_by([POLE], policy="categorical", env_kwargs='{"sutton_barto_reward": true}')
    assert settled([POLE])[0].model.policy == "categorical"


def test_a_new_run_and_a_fresh_one_have_the_settings_of_their_command_line() -> None:
    assert settled([POLE]) == (parsed(POLE), [])
    saved_by([POLE])
    assert settled([POLE, "--fresh", "--gae_lambda=0.5"])[0].ppo.gae_lambda == 0.5


def test_a_finished_run_is_not_trained_on_with_other_settings_and_nothing_is_touched() -> None:
    assert ppo(Path(), *CARTPOLE, "--env_steps=64").returncode == 0
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    for flags in (["--env_steps=64"], ["--env_steps=128"]):
        job = ppo(Path(), *CARTPOLE, *flags, "--learning_rate=1e-5")
        assert job.returncode == 2
        assert "learning_rate 0.001 -> 1e-05" in job.stderr
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


def test_a_run_goes_on_with_another_protocol_on_purpose_and_then_by_the_same_command() -> None:
    assert ppo(Path(), *PONG, "--env_steps=64").returncode == 0
    changed = [*PONG, "--sticky_actions=0.25", "--change_settings"]
    job = ppo(Path(), *changed, "--env_steps=128")
    assert job.returncode == 0, job.stderr
    assert "changed since the checkpoint: sticky_actions 0.0 -> 0.25" in job.stdout
    again = ppo(Path(), *changed[:-1], "--env_steps=192")
    assert again.returncode == 0, again.stderr
    assert "changed since the checkpoint: sticky_actions" not in again.stdout
