"""The categorical distribution against scipy and torch.distributions."""

import numpy as np
import pytest
import torch
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
    uniforms = torch.from_numpy(np.random.default_rng(0).random(20_000))
    actions = distributions.sample(log_probs_of(probabilities).expand(20_000, 4), uniforms)
    counts = np.bincount(actions.numpy(), minlength=4)
    assert stats.chisquare(counts, np.array(probabilities) * 20_000).pvalue > 0.001


@pytest.mark.parametrize(("uniform", "action"), [(0.0, 0), (0.249, 0), (0.251, 1), (0.749, 1), (0.751, 2), (0.999, 2)])
def test_sampling_inverts_the_cumulative_distribution(uniform: float, action: int) -> None:
    assert distributions.sample(log_probs_of([0.25, 0.5, 0.25]), torch.tensor([uniform])).item() == action


def test_a_number_on_a_boundary_belongs_to_the_action_above_it() -> None:
    # [0, 1/2) is action 0, so that an action of probability 0 at the beginning is never drawn.
    assert distributions.sample(log_probs_of([0.5, 0.5]), torch.tensor([0.5])).item() == 1
    assert distributions.sample(log_probs_of([0.0, 1.0]), torch.tensor([0.0])).item() == 1


@pytest.mark.parametrize("uniform", [1.0 - 2.0**-24, 1.0])
def test_numbers_close_to_one_give_an_action_there_is(uniform: float) -> None:
    # In float32 the sum of 18 probabilities may stay below the number drawn, and a float64 draw may round up to 1.
    log_probs = distributions.log_probabilities(torch.randn(1000, 18, generator=torch.Generator().manual_seed(0)))
    actions = distributions.sample(log_probs, torch.full((1000,), uniform))
    assert actions.max() == 17 and actions.min() >= 0


def test_rows_are_sampled_each_with_their_own_number() -> None:
    log_probs = log_probs_of([0.5, 0.5]).expand(3, 2)
    assert distributions.sample(log_probs, torch.tensor([0.9, 0.1, 0.6])).tolist() == [1, 0, 1]


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
