import numpy as np
import pytest
import torch

from ppo.algorithm.noise_scale import GradientNoiseScale

GRADIENT = np.array([3.0, -4.0])  # |G|^2 = 25
DEVIATION = np.array([20.0, 40.0])  # of one step; tr(S) = 2000


def observe(scale: GradientNoiseScale, shares: list[int], minibatches: int) -> None:
    """Draw the gradients of the ranks' shares as means over that many steps."""
    generator = np.random.default_rng(0)
    for _ in range(minibatches):
        own = [GRADIENT + DEVIATION * generator.standard_normal(2) / np.sqrt(share) for share in shares]
        mean = np.average(own, axis=0, weights=shares)
        scale.observe(float(np.mean([g @ g for g in own])), float(mean @ mean))


@pytest.mark.parametrize("shares", [[64, 64], [32] * 8, [96, 32]])
def test_the_noise_scale_is_that_of_its_gradients(shares: list[int]) -> None:
    values = []
    scale = GradientNoiseScale(shares)
    for _ in range(20):
        observe(scale, shares, 200)
        values.append(scale.value)
    assert np.mean(values) == pytest.approx(2000.0 / 25.0, rel=0.35)


def test_two_equations_have_the_solution_worked_out_by_hand() -> None:
    # b = 10, B = 20: |G|^2 + S / 10 = 7 and |G|^2 + S / 20 = 5 give S = 40, |G|^2 = 3.
    scale = GradientNoiseScale([10, 10])
    scale.observe(7.0, 5.0)
    assert scale.value == pytest.approx(40.0 / 3.0)


def test_ranks_with_equal_gradients_see_no_noise() -> None:
    scale = GradientNoiseScale([10, 10])
    scale.observe(4.0, 4.0)
    assert scale.value is None


def test_one_rank_measures_nothing() -> None:
    scale = GradientNoiseScale([256])
    assert not scale.is_measured and scale.value is None


def test_it_continues_from_its_saved_state() -> None:
    whole, first = GradientNoiseScale([8, 8]), GradientNoiseScale([8, 8])
    for scale in (whole, first):
        scale.observe(7.0, 5.0)
    resumed = GradientNoiseScale([8, 8])
    resumed.load_state_dict(first.state_dict())
    for scale in (whole, resumed):
        scale.observe(9.0, 4.0)
    assert resumed.value == whole.value
    assert torch.equal(resumed.state_dict()["noise_and_signal"], whole.state_dict()["noise_and_signal"])
