"""How a preset adapts to another number of environments."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import pytest

from ppo.command_line import parse_command_line
from ppo.config import Config, PPOSettings
from ppo.families import family_of
from ppo.presets import PRESETS, for_environments, is_tuned_for, preset_of
from ppo.settings import Refusal


@functools.cache
def parse(*arguments: str) -> PPOSettings:
    return parse_command_line(arguments, speak=False).ppo


def ppo_settings(preset: Mapping[str, Any]) -> PPOSettings:
    """Return the part of a preset that is the learning rule."""
    own = {field.name for field in dataclasses.fields(PPOSettings)}
    return PPOSettings(**{key: value for key, value in preset.items() if key in own})


def gradient_steps(ppo: PPOSettings) -> int:
    return ppo.num_epochs * ppo.num_envs * ppo.rollout_steps // ppo.minibatch_size


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("factor", [2, 3, 64])
def test_more_environments_give_valid_settings_with_as_many_gradient_steps(name: str, factor: int) -> None:
    base = parse(f"--preset={name}")
    scaled = parse(f"--preset={name}", f"--num_envs={factor * base.num_envs}")
    assert scaled.num_envs == factor * base.num_envs
    assert gradient_steps(scaled) == gradient_steps(base)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("factor", [2, 8])
def test_fewer_environments_play_longer_and_the_batch_stays(name: str, factor: int) -> None:
    base = parse(f"--preset={name}")
    fewer = parse(f"--preset={name}", f"--num_envs={base.num_envs // factor}")
    longer = {"num_envs": base.num_envs // factor, "rollout_steps": factor * base.rollout_steps}
    assert fewer == dataclasses.replace(base, **longer)


def test_fewer_environments_that_do_not_divide_the_batch_make_a_smaller_one() -> None:
    fewer = parse("--preset=atari", "--num_envs=24")
    assert (fewer.rollout_steps, fewer.minibatch_size) == (128, 384)  # 3,072 of 4,096 steps
    assert gradient_steps(fewer) == gradient_steps(parse("--preset=atari"))
    assert fewer.gae_lambda_late_steps == round(1_000_000 * math.sqrt(0.75))
    assert parse("--preset=cleanrl", "--num_envs=3").learning_rate == 2.5e-4


@pytest.mark.parametrize("name", PRESETS)
def test_every_number_of_environments_gives_valid_settings(name: str) -> None:
    for num_envs in [*range(1, 70), 100, 1000, 4096]:
        changed = for_environments(PRESETS[name], num_envs)
        Config(ppo=ppo_settings({**changed, "num_envs": num_envs})).validate()


@pytest.mark.parametrize("name", PRESETS)
def test_as_many_environments_as_the_preset_has_change_nothing(name: str) -> None:
    base = ppo_settings(PRESETS[name])
    assert parse(f"--preset={name}") == parse(f"--preset={name}", f"--num_envs={base.num_envs}") == base


def test_the_rollout_is_halved_until_the_batch_has_at_most_16384_steps() -> None:
    assert [parse(f"--num_envs={n}").rollout_steps for n in (64, 128, 256, 512)] == [64, 64, 64, 32]
    assert all(n * parse(f"--num_envs={n}").rollout_steps <= 16_384 for n in (16, 100, 128, 256, 512, 1024))
    assert parse("--num_envs=4096").rollout_steps == 8  # a step of every environment in each of 8 minibatches


def test_a_fixed_rate_grows_with_the_square_root_of_the_batch_to_at_most_a_thousandth() -> None:
    assert parse("--preset=cleanrl", "--num_envs=32").learning_rate == pytest.approx(2.5e-4 * math.sqrt(4.0))
    assert parse("--preset=cleanrl", "--num_envs=1024").learning_rate == 1e-3
    # Beyond 16,384 steps the batch does not grow any more, and so the rate does not.
    assert parse("--preset=paper", "--num_envs=128").learning_rate == pytest.approx(1e-3)
    assert parse("--preset=classic", "--num_envs=64").learning_rate == PRESETS["classic"]["learning_rate"]


def test_a_rate_that_is_steered_by_the_kl_is_left_alone() -> None:
    scaled = parse("--preset=atari", "--num_envs=128")
    assert (scaled.learning_rate, scaled.learning_rate_max) == (3e-4, 1e-3)


def test_the_steps_after_which_lambda_falls_grow_with_the_square_root_of_the_batch() -> None:
    base = parse("--preset=atari").gae_lambda_late_steps
    assert parse("--preset=atari", "--num_envs=256").gae_lambda_late_steps == 2 * base
    assert parse("--preset=atari", "--num_envs=128").gae_lambda_late_steps == round(math.sqrt(2.0) * base)
    assert parse("--preset=atari", "--num_envs=128", "--gae_lambda_late_steps=1000").gae_lambda_late_steps == 1000


def test_settings_of_the_user_are_not_scaled() -> None:
    scaled = parse("--num_envs=128", "--rollout_steps=32", "--learning_rate=1e-4")
    assert (scaled.rollout_steps, scaled.minibatch_size, scaled.learning_rate) == (32, 512, 1e-4)
    assert parse("--num_envs=128", "--minibatch_size=1024").minibatch_size == 1024
    fewer = parse("--num_envs=8", "--rollout_steps=64")
    assert (fewer.rollout_steps, fewer.minibatch_size) == (64, 64)
    with pytest.raises(Refusal, match="num_envs must be between 1 and 4096"):
        parse("--num_envs=100000")
    with pytest.raises(Refusal, match="many"):
        parse("--num_envs=many")


@pytest.mark.parametrize(("rollout_steps", "minibatch_size"), [(100, 80), (7, 8), (97, 8), (96, 96)])
def test_a_rollout_of_any_length_is_divided(rollout_steps: int, minibatch_size: int) -> None:
    ppo = parse("--num_envs=8", f"--rollout_steps={rollout_steps}")
    assert (ppo.rollout_steps, ppo.minibatch_size) == (rollout_steps, minibatch_size)


def test_an_agent_is_played_as_it_was_saved_whatever_the_preset_of_its_world_says() -> None:
    assert PRESETS["Acrobot"]["act"] == "mode"
    acts = [
        parse_command_line(["--env_name=Acrobot-v1", *flags], speak=False).playback.act
        for flags in ([], ["--mode=evaluate"], ["--mode=play", "--act=sample"])
    ]
    assert acts == ["mode", "saved", "sample"]


@pytest.mark.parametrize(
    ("preset", "env_name", "tuned"),
    [
        ("atari", "MsPacmanNoFrameskip-v4", True),
        ("paper", "MsPacmanNoFrameskip-v4", True),
        ("classic", "MsPacmanNoFrameskip-v4", False),
        ("car-racing", "CarRacing-v3", True),
        ("atari", "CarRacing-v3", False),
        ("BipedalWalker", "BipedalWalker-v3", True),
        ("continuous", "BipedalWalkerHardcore-v3", False),
        ("CartPole", "CartPole-v1", True),
        ("classic", "CartPole-v1", False),
        ("CartPole", "Acrobot-v1", False),
        ("classic", "Taxi-v3", False),
        ("continuous", "Pusher-v5", False),
    ],
)
def test_a_preset_is_tuned_for_a_world_that_has_its_own(preset: str, env_name: str, tuned: bool) -> None:
    assert is_tuned_for(preset, env_name, family_of(env_name)) == tuned


def test_a_preset_is_not_tuned_for_the_world_that_an_argument_makes() -> None:
    discrete, hardcore = '{"continuous": false}', '{"hardcore": true}'
    assert not is_tuned_for("car-racing", "CarRacing-v3", family_of("CarRacing-v3"), discrete)
    assert is_tuned_for("car-racing-discrete", "CarRacing-v3", family_of("CarRacing-v3"), discrete)
    assert not is_tuned_for("BipedalWalker", "BipedalWalker-v3", family_of("BipedalWalker-v3"), hardcore)


@pytest.mark.parametrize(
    ("env_name", "env_kwargs", "preset"),
    [
        ("CarRacing-v3", '{"continuous": false, "domain_randomize": true}', "car-racing-discrete"),
        ("CarRacing-v3", '{"continuous": true}', "car-racing"),
        ("LunarLander-v3", '{"continuous": true, "gravity": -5.0}', "LunarLanderContinuous"),
        ("LunarLander-v3", '{"gravity": -5.0}', "LunarLander"),
        ("BipedalWalker-v3", '{"hardcore": true}', "continuous"),
        ("Acrobot-v1", '{"continuous": true}', "Acrobot"),
    ],
)
def test_an_argument_that_changes_the_actions_chooses_the_preset(env_name: str, env_kwargs: str, preset: str) -> None:
    config = parse_command_line([f"--env_name={env_name}", f"--env_kwargs={env_kwargs}"], speak=False)
    assert config.run.preset == preset


def test_no_hostile_argument_comes_past_the_choice_of_a_preset() -> None:
    for text in ("[" * 100_000, '{"continuous": [' * 1000, "{", "3", '{"continuous": {}}'):
        assert preset_of("CarRacing-v3", family_of("CarRacing-v3"), text) == "car-racing"
