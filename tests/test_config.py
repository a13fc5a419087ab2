"""Flags, presets, bounds and the JSON form of the settings."""

import copy
import json
import time
import typing
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppo.command_line import explicit_settings, parse_command_line, setting_types
from ppo.config import MAX_SEED, Config, PPOSettings, RunSettings, default_model_name, differences, section_types
from ppo.families import FAMILIES, AtariSettings, CarRacingSettings, GymnasiumSettings, family_of
from ppo.presets import PRESETS
from ppo.settings import Refusal, did_you_mean, printable

ATARI = family_of("PongNoFrameskip-v4")


def parse(*arguments: str) -> Config:
    return parse_command_line(arguments, speak=False)


# ------------------------------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize(
    "arguments",
    [
        ("--env_name=CartPole-v1",),
        ("--env-name=CartPole-v1",),
        ("--env_name", "CartPole-v1"),
        ("--env-name", "CartPole-v1"),
    ],
)
def test_a_flag_is_spelled_with_underscores_or_dashes_an_equals_sign_or_a_space(arguments: tuple[str, ...]) -> None:
    config = parse(*arguments)
    assert (config.run.env_name, config.run.preset) == ("CartPole-v1", "CartPole")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("--episodic_life=False", False),
        ("--episodic_life=false", False),
        ("--episodic-life=False", False),
        ("--no_episodic_life", False),
        ("--no-episodic-life", False),
        ("--episodic_life=True", True),
        ("--episodic_life", True),
        ("--episodic-life", True),
    ],
)
def test_every_usual_spelling_of_a_boolean_is_understood(argument: str, value: bool) -> None:
    assert parse(argument).world.episodic_life is value


def test_a_boolean_that_is_off_by_default_can_be_switched_on() -> None:
    assert parse("--full_action_space=True").world.full_action_space
    assert not parse().world.full_action_space


def test_values_have_the_types_of_the_settings() -> None:
    config = parse("--num_envs=8", "--minibatch_size=64", "--learning_rate=1e-4", "--run_dir=logs", "--kl_stop=0.1")
    ppo = config.ppo
    assert (ppo.num_envs, ppo.minibatch_size, ppo.learning_rate, ppo.kl_stop) == (8, 64, 1e-4, 0.1)
    assert config.run.run_dir == Path("logs")


def test_an_optional_setting_can_be_switched_off() -> None:
    assert parse("--max_gradient_norm=None").ppo.max_gradient_norm is None
    assert parse("--preset=atari", "--gae_lambda_late=None").ppo.gae_lambda_late is None


def test_a_lambda_that_is_set_alone_is_that_of_all_of_training() -> None:
    assert parse("--preset=atari").ppo.gae_lambda_late is not None
    assert parse("--preset=atari", "--gae_lambda=0.8").ppo.gae_lambda_late is None
    assert parse("--preset=atari", "--gae-lambda", "0.8", "--gae_lambda_late=0.7").ppo.gae_lambda_late == 0.7


@pytest.mark.parametrize("argument", ["--num_envs=many", "--mode=dance", "--model_size=huge"])
def test_a_value_that_cannot_be_is_refused_in_one_line(argument: str) -> None:
    flag, _, value = argument.removeprefix("--").partition("=")
    with pytest.raises(Refusal, match=value) as refused:
        parse(argument)
    assert flag in str(refused.value).replace("-", "_")
    assert "\n" not in str(refused.value)
    assert not set(str(refused.value)) & set("\u2500\u2502\u256d\u256f\x1b")


@pytest.mark.parametrize("argument", ["--num_env=8", "--num-env=8", "--num_env"])
def test_an_unknown_flag_is_refused_with_the_nearest_one(argument: str) -> None:
    with pytest.raises(Refusal, match="no setting --num_env; did you mean 'num_envs'"):
        parse(argument)


@pytest.mark.parametrize("env_name", ["PongNoFrameskip-v4", "CartPole-v1"])
def test_help_names_every_setting_of_a_family_and_ends_with_exit_code_0(
    env_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leave:
        parse_command_line(["--help_all", f"--env_name={env_name}"])
    assert leave.value.code == 0
    text = capsys.readouterr().out.replace("_", "-")
    names = [field.name for section in section_types(family_of(env_name)).values() for field in fields(section)]
    assert [name for name in names if f"--{name.replace('_', '-')}" not in text] == []


def test_silent_ranks_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for argument, error in (("--num_envs=many", Refusal), ("--help", SystemExit)):
        with pytest.raises(error):
            parse_command_line([argument], speak=False)
    printed = capsys.readouterr()
    assert printed.out + printed.err == ""


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], set()),
        (["--env_name=X"], {"env_name"}),
        (["--env-name", "X", "--noop-max=3"], {"env_name", "noop_max"}),
        (["--no-fire-reset"], {"fire_reset"}),
        (["--no_fire_reset", "--fire_reset=False"], {"fire_reset"}),
        (["--sticky_actions", "0.25", "-h"], {"sticky_actions"}),
    ],
)
def test_explicit_settings_are_those_the_command_line_names(arguments: list[str], names: set[str]) -> None:
    assert explicit_settings(arguments) == names


# ----------------------------------------------------------------------------------------------------------- presets


@pytest.mark.parametrize(
    ("env_name", "preset"),
    [
        ("PongNoFrameskip-v4", "atari"),
        ("ALE/MsPacman-v5", "atari"),
        ("CartPole-v1", "CartPole"),
        ("Acrobot-v1", "Acrobot"),
        ("CartPole-v0", "CartPole"),
        ("someone/CartPole-v1", "classic"),
        ("Taxi-v3", "classic"),
        ("Pusher-v5", "continuous"),
        ("CarRacing-v3", "car-racing"),
    ],
)
def test_the_default_preset_is_that_of_the_world_or_of_its_family(env_name: str, preset: str) -> None:
    config = parse(f"--env_name={env_name}")
    assert config.run.preset == preset
    assert config.ppo.learning_rate == PRESETS[preset]["learning_rate"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_setting_of_a_preset_reaches_the_config(name: str) -> None:
    config = parse(f"--preset={name}")
    values = {key: value for section in config.to_dict().values() for key, value in section.items()}
    assert {key: values[key] for key in PRESETS[name]} == dict(PRESETS[name])


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid(name: str) -> None:
    parse(f"--preset={name}").validate()


def test_a_preset_may_name_its_world() -> None:
    config = parse("--preset=car-racing")
    assert (config.run.env_name, config.family.name) == ("CarRacing-v3", "car_racing")
    assert parse("--preset=paper").run.env_name == RunSettings().env_name
    assert parse("--preset=paper", "--env_name=CarRacing-v3").run.env_name == "CarRacing-v3"


def test_a_preset_of_another_family_is_refused() -> None:
    rule = "preset must not be car-racing for CartPole-v1: it sets action_repeat, of CarRacing only"
    with pytest.raises(Refusal, match=rule):
        parse("--preset=car-racing", "--env_name=CartPole-v1")


def test_a_setting_of_several_other_families_is_refused_with_all_of_them() -> None:
    with pytest.raises(Refusal, match=r"frame_stack must not be set for CartPole-v1: .*Atari games, CarRacing only"):
        parse("--env_name=CartPole-v1", "--frame_stack=2")


def test_what_is_for_training_only_is_off_in_whole_games() -> None:
    settings = AtariSettings(noop_max=7)
    assert settings.of_whole_games() == replace(settings, episodic_life=False)
    car = CarRacingSettings(grass_penalty=0.05, env_kwargs='{"continuous": false}')
    assert car.of_whole_games() == replace(car, grass_penalty=None, give_up_frames=None)


def test_flags_override_the_preset() -> None:
    config = parse("--preset=paper", "--num_epochs=7")
    assert (config.ppo.num_epochs, config.ppo.clip_range) == (7, PRESETS["paper"]["clip_range"])


def test_an_unknown_preset_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(Refusal, match=r"preset must be one of atari, paper.*did you mean 'paper'"):
        parse("--preset=papre")


def test_without_a_close_choice_nothing_is_suggested() -> None:
    assert did_you_mean("xyzzy", PRESETS) == ""


@given(st.text())
def test_what_is_printable_is_one_line_of_as_many_characters_and_stays_as_it_is(text: str) -> None:
    line = printable(text)
    assert line.isprintable() and len(line) == len(text)
    assert printable(line) == line
    assert all(shown in (character, " ", "?") for shown, character in zip(line, text, strict=True))


# ------------------------------------------------------------------------------------------------------------ bounds

INF, NAN = float("inf"), float("nan")
# setting, value, and what the message must say is valid
INVALID = [
    ("watchdog_seconds", 0.0, "between 1 and"),
    ("replica_check_interval", 0, "between 1 and"),
    ("env_steps", 0, "between 1 and"),
    ("rng_seed", -1, "between 0 and"),
    ("rng_seed", MAX_SEED + 1, str(MAX_SEED)),
    ("checkpoint_interval", 0, "between 1 and"),
    ("model_name", "a/b", "try 'a-b'"),
    ("model_name", "../up", "try 'up'"),
    ("model_name", ".hidden", "try 'hidden'"),
    ("model_name", "", "try 'my-agent'"),
    ("model_name", "x" * 101, "try '" + "x" * 100 + "'"),
    ("model_name", "pretrained", "try 'my-pretrained'"),
    ("sticky_actions", -0.1, "at least 0"),
    ("sticky_actions", 1.0, "below 1"),
    ("sticky_actions", NAN, "below 1"),
    ("noop_max", -1, "between 0 and 10000"),
    ("noop_max", 10_001, "between 0 and 10000"),
    ("frame_stack", 0, "between 1 and 16"),
    ("frame_stack", 17, "between 1 and 16"),
    ("max_frames", 3, "between 4 and"),
    ("action_repeat", 0, "between 1 and 1000"),
    ("noop_frames", 1000, "between 0 and 999"),
    ("give_up_frames", 0, "between 1 and"),
    ("grass_penalty", 0.0, "above 0"),
    ("head_units", 0, "between 1 and 9999"),
    ("action_start", "0.5,1.0", "as 0.5 or 0.5,0.5,0.1"),
    ("action_start", "0.0", "as 0.5 or 0.5,0.5,0.1"),
    ("action_start", "half", "as 0.5 or 0.5,0.5,0.1"),
    ("num_envs", 0, "between 1 and 4096"),
    ("rollout_steps", 0, "between 1 and 1048576"),
    ("rollout_steps", 10**15, "between 1 and 1048576"),
    ("minibatch_size", 0, "between 1 and"),
    ("minibatch_size", 500, "try 512"),
    ("minibatch_size", 100_000, "try 2048"),
    ("minibatch_size", 1, "try 16"),
    ("num_epochs", 0, "between 1 and"),
    ("num_epochs", 10**400, "between 1 and"),  # no float is as large
    ("discount", 1.1, "between 0 and 1"),
    ("discount", NAN, "between 0 and 1"),
    ("gae_lambda", -0.1, "between 0 and 1"),
    ("gae_lambda_late", 1.5, "between 0 and 1"),
    ("gae_lambda_late_steps", 0, "between 1 and"),
    ("learning_rate", 0.0, "above 0"),
    ("learning_rate", INF, "above 0"),
    ("learning_rate", NAN, "above 0"),
    ("learning_rate_max", 0.0, "above 0"),
    ("learning_rate_decay_steps", 0, "between 1 and"),
    ("l2_penalty", -1.0, "between 0 and"),
    ("kl_target", 0.0, "above 0"),
    ("kl_stop", 0.0, "above 0"),
    ("adam_epsilon", 0.0, "above 0"),
    ("clip_range", 0.0, "above 0"),
    ("value_clip_range", -1.0, "above 0"),
    ("max_gradient_norm", 0.0, "above 0"),
    ("entropy_coefficient", -0.01, "between 0 and"),
    ("value_coefficient", INF, "between 0 and"),
    ("kl_factor", 1.0, "above 1"),
    ("learning_rate_decay_steps", 0, "between 1 and"),
    ("l2_penalty", -1e-4, "between 0 and"),
    ("reward_scale", 0.0, "above 0"),
    ("reward_clip", 0.0, "above 0"),
    ("observation_clip", 0.0, "above 0"),
    ("log_deviation_init", -11.0, "between -10 and 10"),
    ("hidden_sizes", "64,,64", "as 64,64"),
    ("hidden_sizes", "10000", "as 64,64"),
    ("hidden_sizes", "9999,9999", "at most 8388608 weights"),
    ("env_name", "", "1 to 100 letters"),
    ("env_name", "x" * 101, "1 to 100 letters"),
    ("env_name", "a\x1b[2J\nb", r"'a\x1b[2J\nb'"),
    ("evaluation_interval", 0, "between 1 and"),
    ("clip_interval", 0, "between 1 and"),
    ("evaluation_episodes", 0, "between 1 and"),
    ("keep_checkpoints", "0", "a number from 1 on, all or every=K"),
    ("keep_checkpoints", "every=0", "a number from 1 on, all or every=K"),
    ("keep_checkpoints", "best", "a number from 1 on, all or every=K"),
    ("episodes", 0, "between 1 and"),
    ("max_game_steps", 0, "between 1 and"),
    ("record_games", 1, "between 2 and"),
    ("episode", 0, "between 1 and"),
    ("replay_megabytes", -1, "between 0 and"),
    ("port", 1023, "between 1024 and 65535"),
    ("checkpoint", "newest", "best, latest, shipped or a number of steps"),
    ("checkpoint", "-5", "best, latest, shipped or a number of steps"),
    ("seeds", "5-1", "as 1-5 or 1,3,7"),
    ("stop_at_return", NAN, "between"),
    ("runs", "A", "--mode=compare"),
]


@pytest.mark.parametrize(("setting", "value", "valid"), INVALID)
def test_an_invalid_setting_is_refused_by_name_with_what_is_valid(setting: str, value: Any, valid: str) -> None:
    family = next((family for family in FAMILIES if setting in family.settings.__dataclass_fields__), ATARI)
    with pytest.raises(Refusal) as refusal:
        replace(Config(), world=family.settings()).replace_settings({setting: value}).validate()
    assert str(refusal.value).startswith(f"{setting} must")
    assert valid in str(refusal.value)


def test_every_bounded_setting_is_among_those_tried() -> None:
    unbounded = {"preset", "mode", "checkpoint_dir", "run_dir", "asset_dir"}
    unbounded |= {"env_kwargs", "network", "policy"}  # checked where they are used
    chosen_from_a_list = {name for name, kind in setting_types().items() if getattr(kind, "__name__", "") == "Literal"}
    booleans = {name for name, kind in setting_types().items() if kind is bool}
    assert set(setting_types()) - unbounded - chosen_from_a_list - booleans == {name for name, _, _ in INVALID}


NUMBERS = [name for name, kind in setting_types().items() if {int, float} & {kind, *typing.get_args(kind)}]


@pytest.mark.parametrize("value", [2**63 - 1, 2**64, 10**400, -(10**400), 1e308, -1e308, NAN, INF])
def test_every_number_has_a_bound_that_is_asked_before_anything_is_computed(value: float) -> None:
    world = {field.name: family.settings for family in FAMILIES for field in fields(family.settings)}
    for name in NUMBERS:
        if (name, value) == ("rng_seed", MAX_SEED):
            continue
        config = Config(world=world.get(name, AtariSettings)())
        with pytest.raises(Refusal, match=f"^{name} must be "):
            config.replace_settings({name: value}).validate()


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--num_envs=8", "--rollout_steps=1000000000039"], "rollout_steps"),
        (["--num_envs=1000000000039"], "num_envs"),
        (["--num_envs=" + "9" * 400], "num_envs"),
        (["--minibatch_size=" + "9" * 5000], "minibatch_size"),
        (["--clip_range=1e308"], "clip_range"),
        (["--clip_range=" + "9" * 400], "clip_range"),
        (["--rng_seed=" + "9" * 400], "rng_seed"),
        (["--checkpoint_interval=9223372036854775808"], "checkpoint_interval"),
        (["--mode=play", "--episodes=9223372036854775808"], "episodes"),
        (["--max_frames=9223372036854775808"], "max_frames"),
        (["--keep_checkpoints=every=9223372036854775808"], "keep_checkpoints"),
    ],
)
def test_a_number_beyond_its_bound_is_refused_at_once(flags: list[str], name: str) -> None:
    started = time.process_time()
    with pytest.raises(Refusal, match=name.replace("_", "[_-]")):
        parse(*flags)
    assert time.process_time() - started < 2.0


def test_arguments_of_a_world_have_few_levels_whatever_is_left_of_the_stack() -> None:
    text = '{"a":' * 90 + "1" + "}" * 90
    GymnasiumSettings(env_kwargs=text).check()
    with pytest.raises(Refusal, match="env_kwargs must be a JSON object"):
        GymnasiumSettings(env_kwargs='{"a":' * 101 + "1" + "}" * 101).check()


def test_an_adaptive_rate_above_its_bound_is_refused() -> None:
    settings = {"learning_rate_schedule": "kl_adaptive", "learning_rate": 0.01, "learning_rate_max": 0.001}
    with pytest.raises(Refusal, match=r"learning_rate must be at most learning_rate_max = 0\.001"):
        Config().replace_settings(settings).validate()


def test_the_flags_are_validated() -> None:
    with pytest.raises(Refusal, match="minibatch_size must be a multiple of num_envs = 64"):
        parse("--minibatch_size=100")


@given(num_envs=st.integers(1, 64), rollout_steps=st.integers(1, 256), minibatch_size=st.integers(1, 20_000))
def test_the_minibatch_size_that_a_refusal_suggests_is_valid(
    num_envs: int, rollout_steps: int, minibatch_size: int
) -> None:
    ppo = PPOSettings(num_envs=num_envs, rollout_steps=rollout_steps, minibatch_size=minibatch_size)
    try:
        Config(ppo=ppo).validate()
        assert num_envs * rollout_steps % minibatch_size == 0
    except Refusal as refusal:
        suggested = int(str(refusal).rsplit(" ", 1)[1])
        Config(ppo=replace(ppo, minibatch_size=suggested)).validate()


# --------------------------------------------------------------------------------------------------- derived values


def test_the_model_name_defaults_to_the_environment() -> None:
    assert Config(run=RunSettings(env_name="ALE/Pong-v5")).model_name == "ALE-Pong-v5"
    assert Config(run=RunSettings(model_name="mine")).model_name == "mine"


@pytest.mark.parametrize("env_name", ["ALE/Pong-v5", "PongNoFrameskip-v4", "a:b c"])
def test_a_default_model_name_is_a_valid_one(env_name: str) -> None:
    Config(run=RunSettings(model_name=default_model_name(env_name))).validate()


def test_folders_are_those_of_the_model() -> None:
    config = Config(run=RunSettings(model_name="m", checkpoint_dir=Path("c"), run_dir=Path("r")))
    assert (config.checkpoint_folder, config.run_folder) == (Path("c/m"), Path("r/m"))


@pytest.mark.parametrize(("mode", "games"), [("play", 3), ("record", 1), ("evaluate", 100)])
def test_games_to_play_depend_on_the_mode_unless_they_are_given(mode: str, games: int) -> None:
    config = Config().replace_settings({"mode": mode})
    assert config.episodes == games
    assert config.replace_settings({"episodes": 7}).episodes == 7


def test_differences_name_the_settings_of_the_sections_asked_for() -> None:
    new = Config().replace_settings({"clip_range": 0.3, "noop_max": 0})
    assert differences(Config(), new, ("ppo",)) == {"clip_range": (0.2, 0.3)}


def test_settings_that_only_one_family_has_are_no_difference() -> None:
    assert differences(Config(), Config(world=GymnasiumSettings()), ("world",)) == {}
    assert differences(Config(world=GymnasiumSettings()), Config(), ("world",)) == {}


def test_no_two_sections_share_a_name() -> None:
    for family in FAMILIES:
        names = [setting.name for section in section_types(family).values() for setting in fields(section)]
        assert len(set(names)) == len(names)


# -------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_json(name: str) -> None:
    config = parse(f"--preset={name}", "--kl_stop=0.03", "--checkpoint_dir=/some/where", "--trunk=separate")
    assert Config.from_dict(json.loads(json.dumps(config.to_dict())), config.family) == config


def test_settings_that_are_missing_have_their_defaults() -> None:
    assert Config.from_dict({}, ATARI) == Config()


def test_an_int_is_accepted_where_a_float_is_expected() -> None:
    config = Config.from_dict({"ppo": {"discount": 1}}, ATARI)
    assert config.ppo.discount == 1.0 and isinstance(config.ppo.discount, float)


def changed(section: str, setting: str, value: Any) -> Mapping[str, Any]:
    data = copy.deepcopy(Config().to_dict())
    data[section][setting] = value
    return data


@pytest.mark.parametrize(
    ("section", "setting", "value"),
    [
        ("ppo", "num_envs", "16"),
        ("ppo", "num_envs", 16.0),
        ("ppo", "num_envs", True),
        ("ppo", "num_envs", None),
        ("ppo", "discount", "0.9"),
        ("ppo", "discount", True),
        ("ppo", "discount", [0.9]),
        ("ppo", "learning_rate_schedule", "cosine"),
        ("ppo", "learning_rate_schedule", []),
        ("ppo", "value_normalization", 1),
        ("run", "env_name", 5),
        ("run", "run_dir", 5),
        ("model", "model_size", "huge"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(section: str, setting: str, value: Any) -> None:
    with pytest.raises(Refusal, match=f"config setting {setting} has the value"):
        Config.from_dict(changed(section, setting, value), ATARI)


def test_a_value_out_of_bounds_is_refused() -> None:
    with pytest.raises(Refusal, match="discount"):
        Config.from_dict(changed("ppo", "discount", 2.0), ATARI)


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(Refusal, match="momentum"):
        Config.from_dict(changed("ppo", "momentum", 0.9), ATARI)


def test_an_unknown_section_is_refused_by_name() -> None:
    with pytest.raises(Refusal, match="optimizer"):
        Config.from_dict({"optimizer": {}}, ATARI)


def test_a_section_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(Refusal, match="section ppo must be a mapping, got list"):
        Config.from_dict({"ppo": []}, ATARI)


@pytest.mark.parametrize(
    ("flags", "channels", "expected"),
    [
        (["--env_name=PongNoFrameskip-v4", "--frame_stack=3"], 3, 1),
        (["--env_name=CarRacing-v3", "--frame_stack=3"], 3, 1),
        (["--env_name=CarRacing-v3", "--colour", "--frame_stack=2"], 6, 3),
        (["--env_name=some:Pictures-v0"], 3, 3),
        (["--env_name=some:Pictures-v0"], 4, 1),
    ],
)
def test_a_stack_of_greys_is_no_picture_in_colour(flags: list[str], channels: int, expected: int) -> None:
    assert parse_command_line(flags).world.channels_per_picture(channels) == expected
