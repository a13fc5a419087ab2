import numpy as np
import pytest
import torch

from ppo.collectives import Alone
from ppo.collectives.moments import (
    Moments,
    RunningMoments,
    moments_of_integers,
    moments_over_ranks,
    standardize,
)


class TwoRanks(Alone):
    """Stands in for a job of two ranks; the other rank's contribution to each sum is given."""

    def __init__(self, *others):
        self.others = list(others)

    def sum_in_place(self, buffer):
        buffer += self.others.pop(0)


def moments(values):
    return moments_over_ranks(torch.as_tensor(values, dtype=torch.float32), Alone())


def test_moments_are_count_mean_and_squared_differences():
    result = moments([1.0, 2.0, 6.0])
    assert (result.count, result.mean, result.squares) == (3.0, 3.0, 14.0)
    assert result.deviation == pytest.approx(np.std([1.0, 2.0, 6.0]))


def test_ranks_with_unequal_counts_get_the_moments_of_all_their_samples():
    mine, theirs = np.array([1.0, 2.0, 6.0]), np.array([10.0])
    everything = np.concatenate([mine, theirs])
    comm = TwoRanks(np.array([1.0, 10.0]), np.square(theirs - everything.mean()).sum())
    result = moments_over_ranks(torch.tensor([1.0, 2.0, 6.0]), comm)
    assert result.count == 4.0
    assert result.mean == pytest.approx(everything.mean())
    assert result.deviation == pytest.approx(everything.std())


def test_moments_of_integers_are_those_of_all_ranks_pixels_to_the_last_bit():
    generator = np.random.default_rng(0)
    everything = generator.integers(0, 256, 300_001)
    whole = moments_of_integers(sums_of(everything), Alone())
    for cut in (1, 1234, 300_000):
        shared = moments_of_integers(sums_of(everything[:cut]), TwoRanks(sums_of(everything[cut:])))
        assert (shared.count, shared.mean, shared.squares) == (whole.count, whole.mean, whole.squares)
    assert whole.count == 300_001
    assert whole.mean == pytest.approx(everything.mean(), rel=1e-12)
    assert whole.deviation == pytest.approx(everything.std(), rel=1e-12)


def sums_of(integers):
    return np.array([integers.size, integers.sum(), np.square(integers).sum()], np.float64)


def test_rows_have_moments_of_their_own():
    result = moments([[1.0, 3.0], [10.0, 10.0]])
    assert result.mean.tolist() == [2.0, 10.0]
    assert result.squares.tolist() == [2.0, 0.0]


def test_standardized_samples_have_mean_zero_and_deviation_one():
    samples = torch.tensor([[1.0, 2.0, 6.0, 7.0], [0.0, 0.0, 0.0, 4.0]])
    scaled = standardize(samples, moments_over_ranks(samples, Alone()))
    torch.testing.assert_close(scaled.mean(-1), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled.std(-1, unbiased=False), torch.ones(2))


def test_constant_samples_become_zero_and_not_nan():
    samples = torch.full((5,), 3.0)
    assert standardize(samples, moments_over_ranks(samples, Alone())).tolist() == [0.0] * 5


def test_running_moments_are_those_of_all_data():
    running = RunningMoments()
    batches = [[1.0, 5.0], [2.0], [-3.0, 4.0, 4.0]]
    for batch in batches:
        running.update(moments(batch))
    everything = np.concatenate(batches)
    assert running.mean == pytest.approx(everything.mean())
    assert running.deviation == pytest.approx(everything.std())


def test_running_moments_change_nothing_before_the_first_update():
    samples = torch.tensor([1.0, -2.0])
    assert torch.equal(RunningMoments().normalize(samples), samples)
    assert torch.equal(RunningMoments().denormalize(samples), samples)


def test_denormalize_undoes_normalize():
    running = RunningMoments()
    running.update(Moments(np.array(4.0), np.array(7.0), np.array(36.0)))
    samples = torch.tensor([1.0, 10.0])
    torch.testing.assert_close(running.normalize(samples), torch.tensor([-2.0, 1.0]))
    torch.testing.assert_close(running.denormalize(running.normalize(samples)), samples)


def test_running_moments_survive_a_restart_exactly():
    running, restored = RunningMoments(), RunningMoments()
    running.update(moments([0.1, 0.2, 0.7]))
    restored.load_state_dict(running.state_dict())
    assert (restored.mean, restored.deviation) == (running.mean, running.deviation)
