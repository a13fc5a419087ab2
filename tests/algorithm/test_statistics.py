import math

import numpy as np
import pytest

from ppo.algorithm.noise_scale import GradientNoiseScale
from ppo.algorithm.statistics import UpdateStatistics, measures_noise
from ppo.collectives import Halt

TERMS = ("policy_loss", "approx_kl")


def of_steps(*norms, square=0.0):
    return np.array([[norm, square] for norm in norms])


def statistics(shares=(256,)):
    return UpdateStatistics(TERMS, GradientNoiseScale(shares))


def test_metrics_are_means_over_all_minibatches_of_the_update():
    collected = statistics()
    collected.add_epoch(of_steps(1.0, 3.0), np.array([2.0, 0.2]), update=0)
    collected.add_epoch(of_steps(5.0), np.array([4.0, 0.1]), update=0)
    assert collected.metrics() == {
        "update/policy_loss": pytest.approx(2.0),
        "update/approx_kl": pytest.approx(0.1),
        "update/grad_norm": pytest.approx(3.0),
        "update/noise_scale": None,
        "update/epochs": 2,
    }


def test_the_kl_of_an_epoch_is_that_of_this_epoch_alone():
    collected = statistics()
    assert collected.add_epoch(of_steps(1.0, 1.0), np.array([0.0, 0.2]), update=0) == pytest.approx(0.1)
    assert collected.add_epoch(of_steps(1.0, 1.0), np.array([0.0, 0.6]), update=0) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("norms", "means", "named"),
    [
        ([1.0, 2.0], [math.nan, 0.0], "norm 2, policy_loss nan, approx_kl 0"),
        ([1.0, 2.0], [3.0, math.inf], "norm 2, policy_loss 1.5, approx_kl inf"),
        ([1.0, math.nan], [3.0, 0.0], "norm nan, policy_loss 1.5"),
        ([math.inf, 2.0], [3.0, 0.0], "norm inf, policy_loss 1.5"),
    ],
)
def test_the_message_has_the_norm_that_is_not_finite_or_else_the_last(norms, means, named):
    with pytest.raises(Halt, match=f"update 8 is not finite .gradient {named}"):
        statistics().add_epoch(of_steps(*norms), np.array(means), update=7)


def test_noise_is_observed_in_every_fourth_minibatch_of_an_epoch_and_on_one_rank_never(monkeypatch):
    assert [number for number in range(9) if measures_noise(number)] == [0, 4, 8]
    for shares, expected in (((8, 8), [(7.0, 1.0), (7.0, 25.0)]), ((16,), [])):
        collected, seen = statistics(shares), []
        monkeypatch.setattr(collected._noise_scale, "observe", lambda *squares, seen=seen: seen.append(squares))
        collected.add_epoch(of_steps(1.0, 2.0, 3.0, 4.0, 5.0, square=7.0), np.zeros(2), update=0)
        assert seen == expected


def test_of_no_minibatch_there_is_no_mean():
    assert statistics().metrics() == {
        **dict.fromkeys(("update/policy_loss", "update/approx_kl", "update/grad_norm", "update/noise_scale")),
        "update/epochs": 0,
    }
