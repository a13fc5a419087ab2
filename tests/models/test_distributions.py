"""The categorical distribution against scipy and torch.distributions."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.special import softmax

from ppo.models import distributions

LOGITS = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5], [30.0, 0.0, -30.0], [-1000.0, 0.0, 1000.0]])


def log_probs_of(probabilities: list[float]) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def test_log_probabilities_are_the_logarithm_of_the_softmax() -> None:
    expected = softmax(LOGITS[:3].double().numpy(), axis=-1)
    np.testing.assert_allclose(distributions.log_probabilities(LOGITS[:3]).exp().numpy(), expected, rtol=1e-6)


def test_log_prob_is_that_of_torch_distributions() -> None:
    actions = torch.tensor([2, 1, 0, 2])
    expected = torch.distributions.Categorical(logits=LOGITS).log_prob(actions)
    torch.testing.assert_close(distributions.log_prob(distributions.log_probabilities(LOGITS), actions), expected)


def test_entropy_is_that_of_scipy_in_nats() -> None:
    expected = stats.entropy(softmax(LOGITS.double().numpy(), axis=-1), axis=-1)
    actual = distributions.entropy(distributions.log_probabilities(LOGITS))
    np.testing.assert_allclose(actual.numpy(), expected, atol=1e-6)


def test_entropy_of_a_uniform_policy_is_the_logarithm_of_the_number_of_actions() -> None:
    actual = distributions.entropy(distributions.log_probabilities(torch.zeros(1, 18)))
    assert actual.item() == pytest.approx(np.log(18))


def test_frequencies_of_samples_match_the_probabilities() -> None:
    probabilities = [0.5, 0.1, 0.05, 0.35]
    noise = torch.from_numpy(distributions.gumbel_noise(np.random.default_rng(0), (20_000, 4)))
    actions = distributions.sample(log_probs_of(probabilities).expand(20_000, 4), noise)
    counts = np.bincount(actions.numpy(), minlength=4)
    assert stats.chisquare(counts, np.array(probabilities) * 20_000).pvalue > 0.001


def test_logits_that_are_not_normalised_are_sampled_alike() -> None:
    noise = torch.from_numpy(distributions.gumbel_noise(np.random.default_rng(1), (1000, 3)))
    log_probs = log_probs_of([0.2, 0.5, 0.3]).expand(1000, 3)
    assert torch.equal(distributions.sample(log_probs + 2.5, noise), distributions.sample(log_probs, noise))


def test_noise_has_the_standard_gumbel_distribution() -> None:
    noise = distributions.gumbel_noise(np.random.default_rng(0), (100, 50))
    assert noise.shape == (100, 50) and noise.dtype == np.float32
    assert stats.kstest(noise.flatten(), "gumbel_r").pvalue > 0.001


class Zeros(np.random.Generator):
    """A generator that draws what it hardly ever does."""

    def __init__(self) -> None:
        super().__init__(np.random.Philox(0))

    def standard_exponential(self, shape: tuple[int, ...]) -> NDArray[np.float64]:  # type: ignore[override]
        return np.zeros(shape)


def test_noise_is_finite_so_that_an_action_of_probability_0_is_never_drawn() -> None:
    noise = distributions.gumbel_noise(Zeros(), (1, 2))
    assert np.isfinite(noise).all()
    assert distributions.sample(log_probs_of([0.0, 1.0]), torch.from_numpy(noise)[0]).item() == 1


def test_rows_are_sampled_each_with_their_own_noise() -> None:
    noise = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    assert distributions.sample(torch.zeros(3, 2), noise).tolist() == [1, 0, 1]


def test_mode_is_the_most_probable_action_and_the_first_of_equals() -> None:
    assert distributions.mode(torch.tensor([[0.1, 0.7, 0.2], [0.4, 0.2, 0.4]]).log()).tolist() == [1, 0]


def test_derivatives_by_the_logits_are_those_of_autograd() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3.0 * torch.randn(200, 18, generator=generator, dtype=torch.float64)).requires_grad_()
    actions = torch.randint(18, (200,), generator=generator)
    upstream = torch.randn(200, generator=generator, dtype=torch.float64)
    log_probs = distributions.log_probabilities(logits)
    for objective, derivative in (
        ((distributions.log_prob(log_probs, actions) * upstream).sum(), "log_prob"),
        (distributions.entropy(log_probs).sum(), "entropy"),
    ):
        (expected,) = torch.autograd.grad(objective, logits, retain_graph=True)
        with torch.no_grad():
            actual = (
                distributions.log_prob_derivative(log_probs, actions, upstream)
                if derivative == "log_prob"
                else distributions.entropy_derivative(log_probs)
            )
        torch.testing.assert_close(actual, expected)
