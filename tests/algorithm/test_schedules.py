import dataclasses

import pytest

from ppo.algorithm.schedules import Schedules
from tests.algorithm.learners import SETTINGS


def schedules(**changes):
    return Schedules(dataclasses.replace(SETTINGS, **changes))


@pytest.mark.parametrize(
    ("progress", "rate", "clip_range"), [(0.0, 1e-2, 0.2), (0.5, 5e-3, 0.1), (1.0, 0.0, 0.0), (1.3, 0.0, 0.0)]
)
def test_linear_schedules_follow_progress_and_end_at_zero(progress, rate, clip_range):
    linear = schedules(learning_rate_schedule="linear", clip_range_schedule="linear")
    scheduled = linear.at(env_steps=10**9, progress=progress)
    assert (scheduled.learning_rate, scheduled.clip_range) == pytest.approx((rate, clip_range))


@pytest.mark.parametrize("name", ["learning_rate", "clip_range"])
def test_each_schedule_is_its_own(name):
    scheduled = schedules(**{f"{name}_schedule": "linear"}).at(env_steps=0, progress=0.5)
    expected = {"learning_rate": 1e-2, "clip_range": 0.2}
    assert {key: getattr(scheduled, key) for key in expected} == {**expected, name: expected[name] / 2}


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_constant_schedules_stay(progress):
    scheduled = schedules().at(env_steps=10**9, progress=progress)
    assert (scheduled.learning_rate, scheduled.clip_range, scheduled.gae_lambda) == (1e-2, 0.2, 0.95)


@pytest.mark.parametrize(("env_steps", "gae_lambda"), [(0, 1.0), (200, 1.0), (300, 0.75), (400, 0.5), (1000, 0.5)])
def test_lambda_follows_experience_and_not_the_length_of_the_run(env_steps, gae_lambda):
    falling = schedules(gae_lambda=1.0, gae_lambda_late=0.5, gae_lambda_late_steps=400)
    for progress in (0.0, 1.0):
        assert falling.at(env_steps=env_steps, progress=progress).gae_lambda == pytest.approx(gae_lambda)


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_the_inverse_time_rate_follows_experience_and_not_the_length_of_the_run(progress):
    falling = schedules(learning_rate_schedule="inverse_time", learning_rate=4e-3, learning_rate_decay_steps=100)
    rates = [falling.at(env_steps=steps, progress=progress).learning_rate for steps in (0, 100, 300)]
    assert rates == pytest.approx([4e-3, 2e-3, 1e-3])
    assert falling.after_epoch(2e-3, kl=100.0) == 2e-3


def test_the_adaptive_rate_is_what_the_epochs_left_whatever_the_progress():
    adaptive = schedules(learning_rate_schedule="kl_adaptive", learning_rate=3e-4, kl_target=0.01, kl_factor=1.5)
    assert adaptive.at(env_steps=0, progress=0.9).learning_rate == 3e-4
    rate = adaptive.after_epoch(3e-4, kl=0.03)
    assert rate == adaptive.at(env_steps=0, progress=0.9).learning_rate == pytest.approx(2e-4)
    assert adaptive.after_epoch(rate, kl=0.001) == pytest.approx(3e-4)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_no_epoch_moves_another_rate(schedule):
    fixed = schedules(learning_rate_schedule=schedule)
    assert fixed.after_epoch(5e-3, kl=100.0) == 5e-3
    assert fixed.at(env_steps=0, progress=0.0).learning_rate == 1e-2


def test_the_adaptive_rate_survives_a_restart_and_keeps_below_a_new_maximum():
    settings = {"learning_rate_schedule": "kl_adaptive", "learning_rate": 3e-4, "learning_rate_max": 1e-3}
    before = schedules(**settings)
    rate = before.after_epoch(3e-4, kl=0.0)
    for maximum, expected in ((1e-3, rate), (3.5e-4, 3.5e-4)):
        restored = schedules(**{**settings, "learning_rate_max": maximum})
        restored.load_state_dict(before.state_dict())
        assert restored.at(env_steps=0, progress=0.0).learning_rate == expected
