import json

import pytest

from scripts.benchmarking.plan import Settings, make_cases
from scripts.benchmarking.reach import find_targets
from scripts.benchmarking.results import Spread
from tests.benchmark.examples import CASES, benchmark

ONE, TWO, WEAK = CASES


def target(found, words):
    (only,) = [target for target in find_targets(found) if words in target.what]
    return only


def test_a_spread_is_the_median_and_the_extremes():
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)


def test_ratios_are_taken_within_a_round_before_the_median():
    # The ideals are 2000, 1000 and 500: shares of 0.5, 0.9 and 0.8. The medians' ratio would be 900 / 1000.
    found = benchmark((1, 1000, 1), (1, 900, 1), (1, 400, 1), step_seconds=[0.001, 0.002, 0.004])
    assert found.of_case(TWO.name, lambda c: c.ideal) == Spread(*map(pytest.approx, (1000.0, 500.0, 2000.0)))
    assert found.of_case(TWO.name, lambda c: c.share_of_ideal) == Spread(*map(pytest.approx, (0.8, 0.5, 0.9)))


def test_scaling_is_over_one_rank_and_is_compared_with_that_of_the_ideals():
    found = benchmark((800, 1500, 1560))
    assert found.speed_up(TWO).median == pytest.approx(1500 / 800)
    assert found.speed_up(WEAK).median == pytest.approx(1560 / 800)
    # The two ideals are 1000 and 2000.
    assert found.share_of_the_ideal_speed_up(TWO).median == pytest.approx(1500 / 800 / 2)


@pytest.mark.parametrize(("speed", "met"), [(1801, True), (1799, False)])
def test_a_share_of_the_ideal_of_at_least_nine_tenths_is_met(speed, met):
    assert target(benchmark((900, speed, 1)), "over the ideal").met == met


def test_targets_are_judged_by_the_median_over_the_rounds():
    assert target(benchmark((1, 1700, 1), (1, 1900, 1), (1, 1900, 1)), "over the ideal").met
    assert not target(benchmark((1, 1700, 1), (1, 1700, 1), (1, 1900, 1)), "over the ideal").met


@pytest.mark.parametrize(("wait", "met"), [(0.025, True), (0.035, False)])
def test_waiting_and_communication_count_together(wait, met):
    found = target(benchmark((900, 1800, 1), communicate=0.01, wait=wait), "waiting and communication")
    assert found.measured.median == pytest.approx(0.01 + wait)
    assert found.met == met


@pytest.mark.parametrize(("speed", "met"), [(1710, True), (1690, False)])
def test_the_speed_up_is_judged_as_a_share_of_the_ideals(speed, met):
    assert target(benchmark((900, speed, 1)), "speed-up over one rank").met == met


@pytest.mark.parametrize(("starts", "met"), [((9.0, 5.9), True), ((5.0, 6.1), False)])
def test_the_second_start_is_judged(starts, met):
    assert target(benchmark((900, 1800, 1), starts=starts), "second start").met == met


@pytest.mark.parametrize(("peak_rss", "met"), [(599.0, True), (601.0, False)])
def test_memory_is_judged_where_a_rank_has_eight_environments(peak_rss, met):
    eight, more = (
        make_cases(Settings(presets=(preset,), ranks=(1,), stable_baselines3=False), 1, [])
        for preset in ("paper", "atari")
    )
    assert target(benchmark((900,), cases=eight, peak_rss=peak_rss), "memory per rank").met == met
    found = benchmark((900,), cases=more, peak_rss=peak_rss)
    assert not [target for target in find_targets(found) if "memory" in target.what]


def test_stable_baselines3_is_compared_with_the_preset_with_its_settings_and_against_the_default():
    cases = make_cases(Settings(presets=("atari", "cleanrl"), ranks=(2,)), 2, [])
    found = benchmark((1150, 430), cases=cases, stable_baselines3={"cleanrl": 250.0, "published": 260.0})
    same, published = target(found, "same network and settings"), target(found, "published settings")
    assert (same.measured.median, same.met) == (pytest.approx(430 / 250), True)
    assert (published.measured.median, published.met) == (pytest.approx(1150 / 260), False)


def test_a_target_without_a_measurement_is_not_judged():
    (one,) = make_cases(Settings(presets=("atari",), ranks=(1,), stable_baselines3=False), 1, [])
    judged = " ".join(target.what for target in find_targets(benchmark((950,), cases=[one])))
    assert "over the ideal" in judged
    assert "Stable-Baselines3" not in judged
    assert "speed-up" not in judged
    assert "waiting" not in judged


def test_everything_that_was_measured_can_be_read_back_from_json():
    data = json.loads(json.dumps(benchmark((900, 1800, 1900), (910, 1700, 1800)).to_dict()))
    assert [r["cases"]["atari -np 2"]["program"]["steps_per_second"] for r in data["rounds"]] == [1800, 1700]
    assert data["rounds"][0]["cases"]["atari -np 2"]["before"]["ways"]["env"]["fast"] == pytest.approx([2400.0] * 2)
    grown = "--num_envs=128 --rollout_steps=64 --minibatch_size=1024"
    assert data["cases"]["atari -np 2, weak"] == f"--preset=atari {grown}"
    assert data["summary"]["atari -np 2"]["share_of_ideal"]["highest"] == pytest.approx(0.9)
