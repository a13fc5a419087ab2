import pytest

from ppo.settings import Refusal
from scripts.benchmarking.plan import QUICK, Settings, judged_cases, make_cases

ALONE = {"stable_baselines3": False}


def ranks_of(preset, settings, num_cores):
    return [case.ranks for case in make_cases(settings, num_cores, []) if case.preset == preset and not case.weak]


@pytest.mark.parametrize(
    ("num_cores", "ranks"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 3, 4]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])],
)
def test_all_numbers_of_few_cores_are_measured_and_powers_of_two_of_many(num_cores, ranks):
    assert ranks_of("atari", Settings(), num_cores) == ranks


def test_a_preset_is_measured_on_as_many_cores_as_it_has_environments():
    assert ranks_of("paper", Settings(), 64) == [1, 2, 4, 8]
    assert ranks_of("atari", Settings(), 64) == [1, 2, 4, 8, 16, 32, 64]


def test_quick_measures_the_default_preset_on_one_core_and_on_all():
    cases = make_cases(QUICK, 6, [])
    assert [case.name for case in cases] == ["atari -np 1", "atari -np 6"]
    assert QUICK.repeats == 1
    assert not QUICK.stable_baselines3
    assert QUICK.output is None


def test_weak_scaling_is_that_of_the_first_preset_and_gives_a_rank_the_work_of_a_single_one():
    cases = make_cases(Settings(), 2, [])
    names = ["atari -np 1", "atari -np 2", "atari -np 2, weak", "paper -np 1", "paper -np 2", "cleanrl -np 1"]
    assert [case.name for case in cases] == [*names, "cleanrl -np 2"]
    single, _, weak = (case.config.ppo for case in cases[:3])
    assert (weak.num_envs, weak.minibatch_size) == (2 * single.num_envs, 2 * single.minibatch_size)
    cases = make_cases(Settings(presets=("atari",), ranks=(1, 16), **ALONE), 16, [])
    (many,) = (case.config.ppo for case in cases if case.weak)
    assert (many.num_envs, many.minibatch_size) == (16 * single.num_envs, 16 * single.minibatch_size)
    assert many.rollout_steps == weak.rollout_steps == single.rollout_steps


def test_flags_after_the_dashes_reach_every_case_and_the_weak_ones_grow_from_them():
    flags = ["--num_envs=4", "--minibatch_size=64"]
    cases = make_cases(Settings(presets=("paper",), **ALONE), 2, flags)
    assert [case.config.ppo.num_envs for case in cases] == [4, 4, 8]
    assert [case.config.ppo.rollout_steps for case in cases] == [256, 256, 256]
    assert [case.config.ppo.minibatch_size for case in cases] == [64, 64, 128]
    assert all(case.flags[:3] == ("--preset=paper", *flags) for case in cases)


def test_a_preset_is_judged_on_its_most_ranks_without_more_work():
    judged = judged_cases(make_cases(Settings(presets=("atari", "paper"), ranks=(2, 1)), 2, []))
    assert {preset: case.name for preset, case in judged.items()} == {"atari": "atari -np 2", "paper": "paper -np 2"}


@pytest.mark.parametrize(
    ("settings", "flags", "message"),
    [
        (
            {"presets": ("cleanrl",), "ranks": (1, 9)},
            [],
            "at most num_envs = 8 of preset cleanrl, got 9; try --ranks 8",
        ),
        ({"ranks": (17,)}, [], "between 1 and the 16 cores at hand, got 17; try --ranks 16"),
        ({"ranks": (0,)}, [], "between 1 and the 16 cores at hand, got 0"),
        ({"presets": ("atarri",)}, [], "did you mean 'atari'?"),
        ({"presets": ()}, [], "presets must name at least one"),
        ({"repeats": 0}, [], "repeats must be at least 1, got 0"),
        ({"seconds": 0.0}, [], "seconds must be above 0"),
        ({"limit_seconds": float("nan")}, [], "limit_seconds must be above 0"),
        ({"warm_up_seconds": -1.0}, [], "warm_up_seconds must be between 0 and 3600, got -1.0"),
        (ALONE, ["--checkpoint_interval=5"], "checkpoint_interval must not be among the flags after --"),
        (ALONE, ["--preset=paper"], "preset must not be among the flags after --"),
        (ALONE, ["--minibatch_size=100"], "try 128"),
        (ALONE, ["--num_env=8"], "did you mean 'num_envs'?"),
        (ALONE, ["--env_name=CartPole-v1"], "must be an Atari game in a benchmark, got CartPole-v1; try Pong"),
        (ALONE, ["--env_name=PnogNoFrameskip-v4"], "did you mean 'PongNoFrameskip-v4'?"),
        ({}, ["--num_envs=32", "--minibatch_size=256"], "add --no-stable_baselines3"),
        (
            {"presets": ("paper",), "worlds": ()},
            [],
            "compared with atari and cleanrl and in small worlds, got presets paper and no worlds; add --no-stable",
        ),
    ],
)
def test_an_impossible_measurement_is_refused_with_possible_ones(settings, flags, message):
    with pytest.raises(Refusal) as refusal:
        make_cases(Settings(**settings), 16, flags)
    assert message in str(refusal.value)
