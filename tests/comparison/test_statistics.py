"""Statistics over runs, against values worked out by hand."""

import numpy as np
import pytest

from ppo.comparison.statistics import bootstrap, interquartile_mean, mean, performance_profile


def of(*values: float) -> np.ndarray:
    return np.array(values, dtype=float)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (of(8, 1, 2, 7, 3, 6, 4, 5), 4.5),  # 3, 4, 5 and 6 are the middle half
        (of(800, 1, 2, 7, 3, 6, 4, 5), 4.5),
        (of(0, 100, 2, 1, 3), 2.0),  # of five, the lowest and the highest go
        (of(0, 0, 3), 1.0),  # of three, none goes
        (of(7), 7.0),
    ],
)
def test_the_interquartile_mean_is_that_of_the_middle_half(scores: np.ndarray, expected: float) -> None:
    assert interquartile_mean(scores) == expected


def test_a_profile_is_the_share_of_runs_above_each_threshold() -> None:
    profile = performance_profile(of(1, 2, 2, 5), of(0, 1, 2, 4.9, 5))
    np.testing.assert_array_equal(profile, [1.0, 0.75, 0.25, 0.25, 0.0])


# Of four runs drawn from 0, 0, 0, 1, k are the 1: at least 3 with probability 13/256, all 4 with 1/256. The limit of
# 2.5 % lies between, at k = 3: a mean of 3/4, and a middle half of two ones.
@pytest.mark.parametrize(("statistic", "high"), [(mean, 0.75), (interquartile_mean, 1.0)])
def test_the_interval_is_that_of_runs_drawn_again(statistic, high) -> None:  # type: ignore[no-untyped-def]
    assert bootstrap(of(0, 0, 0, 1), statistic) == (0.0, high)


def test_the_interval_of_two_or_three_runs_reaches_from_the_lowest_to_the_highest() -> None:
    assert bootstrap(of(3, 9)) == (3.0, 9.0)
    assert bootstrap(of(3, 9, 3)) == (3.0, 9.0)  # 9 three times has probability 1/27, which is more than 2.5 %


def test_intervals_of_curves_are_those_of_their_points_and_always_the_same() -> None:
    curves = np.array([[0.0, 3.0], [0.0, 9.0], [0.0, 3.0], [1.0, 3.0]])
    low, high = bootstrap(curves)
    assert (low.tolist(), high.tolist()) == ([0.0, 3.0], [0.75, 7.5])
    np.testing.assert_array_equal(bootstrap(curves), (low, high))


def test_one_run_has_no_interval() -> None:
    assert bootstrap(of(5)) == (5.0, 5.0)
