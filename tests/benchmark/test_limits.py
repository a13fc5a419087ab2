import pytest

from scripts.benchmarking.limits import Limits, ideal_steps_per_second


def test_the_ideal_is_the_sum_of_the_times_of_a_step_shared_out_over_the_ranks():
    # 1 ms of emulation, 0.5 ms of inference and 3 times 1 ms of training are 4.5 ms a step and rank.
    ideal = ideal_steps_per_second(ranks=2, env=1000.0, inference=2000.0, training=1000.0, epochs=3)
    assert ideal == pytest.approx(2 / 0.0045)


def test_the_ideal_of_two_quiet_cores_is_that_of_the_design_document():
    nature = ideal_steps_per_second(ranks=2, env=2100.0, inference=2300.0, training=1080.0, epochs=4)
    small = ideal_steps_per_second(ranks=2, env=2100.0, inference=8200.0, training=3900.0, epochs=3)
    assert 412 <= nature <= 461
    assert small == pytest.approx(1450, rel=0.04)


LIMITS = Limits(
    {
        "env": {"one way": [100.0, 300.0], "another": [210.0, 180.0]},
        "inference": {"forward": [400.0, 400.0]},
        "training": {"whole": [500.0, 700.0], "256 at once": [900.0, 900.0]},
    }
)


def test_a_limit_is_the_mean_over_ranks_in_the_way_that_is_fastest_for_all_of_them():
    assert LIMITS.rates == {"env": 200.0, "inference": 400.0, "training": 900.0}


def test_the_ideal_uses_the_limits_and_the_ranks_that_were_measured():
    assert LIMITS.ideal_steps_per_second(3) == pytest.approx(2 / (1 / 200 + 1 / 400 + 3 / 900))


def test_the_seconds_of_the_ideal_phases_add_up_to_the_ideal():
    seconds = LIMITS.ideal_seconds(1024, 3)
    assert seconds["env"] == pytest.approx(512 / 200)
    assert sum(seconds.values()) == pytest.approx(1024 / LIMITS.ideal_steps_per_second(3))
