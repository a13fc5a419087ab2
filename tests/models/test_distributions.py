"""Action distributions compared with scipy in float64 and with their own samples, and at the extremes of float32."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from scipy import integrate, special, stats
from torch import Tensor, nn

from ppo.models.distributions import DISTRIBUTIONS, ActionDistribution, make_distribution
from ppo.models.distributions.beta import Beta
from ppo.models.distributions.categories import Bernoulli, Categorical, MultiCategorical
from ppo.models.distributions.gaussian import Gaussian
from ppo.models.encoders import orthogonal

SPACES: dict[str, spaces.Space[Any]] = {
    "categorical": spaces.Discrete(4),
    "multi_categorical": spaces.MultiDiscrete([2, 3, 4]),
    "bernoulli": spaces.MultiBinary(3),
    "gaussian": spaces.Box(-1.0, 1.0, (2,)),
    "beta": spaces.Box(0.0, 1.0, (2,)),
}
every_kind = pytest.mark.parametrize(
    "kind", [make_distribution(SPACES[name], name) for name in SPACES], ids=list(SPACES)
)


def outputs_of(kind: ActionDistribution, *leading: int, seed: int = 0) -> Tensor:
    return torch.randn(*leading, kind.num_outputs, generator=torch.Generator().manual_seed(seed))


def noise_of(kind: ActionDistribution, steps: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(kind.noise(np.random.default_rng(seed), steps))


def draw(kind: ActionDistribution, outputs: Tensor, count: int, seed: int = 0) -> Tensor:
    """Draw many raw actions of one policy (K,)."""
    return kind.sample(outputs.expand(count, -1), noise_of(kind, count, seed))


def beta_outputs(alpha: Any, beta: Any) -> Tensor:
    """Return outputs (..., 2) whose alpha and beta are these up to the rounding of float32."""
    excess = np.stack([np.asarray(alpha, np.float64), np.asarray(beta, np.float64)], -1) - 1.0
    return torch.from_numpy(excess + np.log(-np.expm1(-excess))).float()


def concentrations(outputs: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return alpha and beta of outputs (..., 2) in float64."""
    return tuple(np.moveaxis(1.0 + np.logaddexp(0.0, outputs.double().numpy()), -1, 0))


# Every kind: samples, log-probabilities, entropies and divergences agree with each other.


@every_kind
def test_entropy_is_the_mean_of_minus_the_log_probability_of_samples(kind: ActionDistribution) -> None:
    outputs = outputs_of(kind)
    surprise = -kind.log_prob(outputs.expand(20_000, -1), draw(kind, outputs, 20_000))
    error = surprise.std().item() / math.sqrt(20_000)
    assert kind.entropy(outputs).item() == pytest.approx(surprise.mean().item(), abs=4.0 * error)


@every_kind
def test_kl_is_the_mean_log_ratio_of_old_to_new_over_old_samples(kind: ActionDistribution) -> None:
    old, new = 3.0 * outputs_of(kind), outputs_of(kind, seed=1)
    actions = draw(kind, old, 20_000)
    log_ratios = kind.log_prob(old.expand(20_000, -1), actions) - kind.log_prob(new.expand(20_000, -1), actions)
    error = log_ratios.std().item() / math.sqrt(20_000)
    assert kind.kl(old, new).item() == pytest.approx(log_ratios.mean().item(), abs=4.0 * error)
    assert kind.kl(new, old).item() != pytest.approx(log_ratios.mean().item(), abs=8.0 * error)


@every_kind
def test_kl_of_a_policy_with_itself_is_zero_and_positive_otherwise(kind: ActionDistribution) -> None:
    outputs = outputs_of(kind, 100)
    torch.testing.assert_close(kind.kl(outputs, outputs), torch.zeros(100))
    assert (kind.kl(outputs, outputs + 0.1 * outputs_of(kind, 100, seed=1)) > 0.0).all()


@every_kind
def test_ratio_of_an_unchanged_policy_is_exactly_one_in_any_minibatch(kind: ActionDistribution) -> None:
    outputs = outputs_of(kind, 7, 5)
    actions = kind.sample(outputs, noise_of(kind, 35).reshape(7, 5, *kind.noise_shape))
    log_probs = kind.log_prob(outputs, actions)
    index = torch.tensor([3, 34, 0, 17, 8])
    again = kind.log_prob(outputs.flatten(0, 1)[index], actions.flatten(0, 1)[index])
    assert ((again - log_probs.flatten()[index]).exp() == 1.0).all()


@every_kind
def test_shapes_and_types_are_those_announced_for_any_leading_axes(kind: ActionDistribution) -> None:
    for leading in ((), (6,), (3, 2)):
        outputs, noise = outputs_of(kind, *leading), noise_of(kind, math.prod(leading))
        assert noise.dtype == torch.float32
        actions = kind.sample(outputs, noise.reshape(*leading, *kind.noise_shape))
        points = [getattr(kind, rule)(outputs) for rule in kind.rules if rule != "sample"]
        for raw in (actions, *points):
            assert raw.shape == (*leading, *kind.action_shape) and raw.dtype == kind.dtype
        for numbers in (kind.log_prob(outputs, actions), kind.entropy(outputs), kind.kl(outputs, outputs)):
            assert numbers.shape == leading and numbers.dtype == torch.float32


@every_kind
def test_nothing_leaves_the_device_or_is_read_from_it(kind: ActionDistribution) -> None:
    # Tensors on the meta device cannot be read, and cannot be combined with a constant on the processor.
    outputs = torch.empty(5, kind.num_outputs, device="meta")
    actions = kind.sample(outputs, torch.empty(5, *kind.noise_shape, device="meta"))
    results = [
        kind.log_prob(outputs, actions),
        kind.entropy(outputs),
        kind.kl(outputs, outputs),
        kind.deviation(outputs),
    ]
    results += [getattr(kind, rule)(outputs) for rule in kind.rules if rule != "sample"]
    assert all(result.is_meta for result in results if result is not None)


@every_kind
def test_noise_of_the_first_steps_does_not_depend_on_how_many_follow(kind: ActionDistribution) -> None:
    few, many = (kind.noise(np.random.default_rng(3), steps) for steps in (3, 5))
    assert few.shape == (3, *kind.noise_shape)
    np.testing.assert_array_equal(few, many[:3])
    assert not np.array_equal(many[0], many[1])


@every_kind
def test_each_state_is_sampled_with_its_own_noise(kind: ActionDistribution) -> None:
    outputs, noise = outputs_of(kind, 50), noise_of(kind, 50)
    actions = kind.sample(outputs, noise)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kind.sample(outputs[order], noise[order]), actions[order])
    assert not torch.equal(kind.sample(outputs, noise[order]), actions)


@every_kind
@pytest.mark.parametrize("spread", [10.0, 100.0, 1e3, 1e4])
def test_everything_and_its_gradient_are_finite_at_extreme_outputs(kind: ActionDistribution, spread: float) -> None:
    outputs = (spread * outputs_of(kind, 200)).requires_grad_()
    old = spread * outputs_of(kind, 200, seed=1)
    actions = kind.sample(old, noise_of(kind, 200))
    for numbers in (
        kind.log_prob(outputs, actions),
        kind.entropy(outputs),
        kind.kl(old, outputs),
        kind.kl(outputs, old),
    ):
        (gradient,) = torch.autograd.grad(numbers.sum(), outputs)
        assert numbers.isfinite().all() and gradient.isfinite().all()


@every_kind
def test_gradients_are_those_of_finite_differences(kind: ActionDistribution) -> None:
    outputs = outputs_of(kind, 3).double().requires_grad_()
    old = outputs_of(kind, 3, seed=1).double()
    actions = kind.sample(old.float(), noise_of(kind, 3))
    assert torch.autograd.gradcheck(lambda out: kind.log_prob(out, actions), outputs)
    assert torch.autograd.gradcheck(kind.entropy, outputs)
    assert torch.autograd.gradcheck(lambda out: kind.kl(old, out), outputs)


@every_kind
def test_the_first_policy_is_nearly_the_same_in_every_state(kind: ActionDistribution) -> None:
    torch.manual_seed(0)
    head = kind.head(16)
    outputs = head(torch.randn(1000, 16))
    assert outputs.shape == (1000, kind.num_outputs)
    assert (outputs - head(torch.zeros(1, 16))).abs().max() < 0.1
    assert 0.0 < kind.kl(outputs[:500], outputs[500:]).max() < 0.01


@every_kind
def test_every_parameter_of_the_head_learns(kind: ActionDistribution) -> None:
    head = kind.head(16)
    outputs = head(torch.randn(10, 16))
    kind.log_prob(outputs, kind.sample(outputs.detach(), noise_of(kind, 10))).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


@every_kind
def test_a_marginal_for_each_number_of_an_action_integrates_to_one(kind: ActionDistribution) -> None:
    outputs = 0.5 * outputs_of(kind) - (0.5 if kind.name == "gaussian" else 0.0)
    marginals = kind.marginals(outputs)
    assert len(marginals) == math.prod(kind.action_shape)
    for number, marginal in enumerate(marginals):
        if marginal.range is None:
            samples = draw(kind, outputs, 20_000).reshape(20_000, -1)[:, number].numpy()
            frequencies = np.bincount(samples, minlength=len(marginal.values)) / len(samples)
            np.testing.assert_allclose(frequencies, marginal.values, atol=0.02)
        else:
            low, high = marginal.range
            samples = kind.to_environment(draw(kind, outputs, 20_000).numpy())[:, number]
            inside = (samples > low) & (samples < high)
            width = (high - low) / len(marginal.values)
            assert marginal.values.sum() * width == pytest.approx(inside.mean(), abs=0.02)
            below = (inside & (samples < low + width * 30)).mean()
            assert marginal.values[:30].sum() * width == pytest.approx(below, abs=0.02)


@every_kind
def test_default_rule_is_one_of_the_rules(kind: ActionDistribution) -> None:
    assert kind.default_rule in kind.rules
    assert ("mean" in kind.rules) == kind.dtype.is_floating_point


@pytest.mark.parametrize("name", ["categorical", "multi_categorical", "bernoulli"])
def test_discrete_kinds_have_no_mean(name: str) -> None:
    kind = make_distribution(SPACES[name])
    with pytest.raises(AssertionError, match="no mean"):
        kind.mean(outputs_of(kind, 1))


# Categories.

LOGITS = torch.tensor(
    [[0.0, 0.0, 0.0], [1.0, -2.0, 0.5], [30.0, 0.0, -30.0], [-1000.0, 0.0, 1000.0], [0.0, 3.0, -69.0]]
)


def test_categorical_log_probs_are_the_logarithm_of_the_softmax() -> None:
    actions = torch.arange(3).expand(5, 3)
    actual = Categorical(spaces.Discrete(3)).log_prob(LOGITS.unsqueeze(1).expand(5, 3, 3), actions)
    expected = special.log_softmax(LOGITS.double().numpy(), axis=-1)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-6, atol=1e-7)


def test_categorical_entropy_and_kl_are_those_of_scipy_in_nats() -> None:
    kind, probabilities = Categorical(spaces.Discrete(3)), special.softmax(LOGITS.double().numpy(), axis=-1)
    np.testing.assert_allclose(kind.entropy(LOGITS).numpy(), stats.entropy(probabilities, axis=-1), atol=1e-6)
    # scipy takes logarithms of probabilities: those of the last but one row are 0.
    old, new = LOGITS[[1, 1, 2, 4]], LOGITS[[2, 4, 1, 2]]
    expected = stats.entropy(probabilities[[1, 1, 2, 4]], probabilities[[2, 4, 1, 2]], axis=-1)
    np.testing.assert_allclose(kind.kl(old, new).numpy(), expected, rtol=1e-5)


def test_categorical_entropy_of_a_uniform_policy_is_the_logarithm_of_the_number_of_actions() -> None:
    assert Categorical(spaces.Discrete(18)).entropy(torch.zeros(1, 18)).item() == pytest.approx(math.log(18))


def test_categorical_frequencies_are_the_probabilities() -> None:
    kind, probabilities = Categorical(spaces.Discrete(4)), np.array([0.5, 0.1, 0.05, 0.35])
    counts = np.bincount(draw(kind, torch.from_numpy(probabilities).log().float(), 20_000), minlength=4)
    assert stats.chisquare(counts, probabilities * 20_000).pvalue > 0.001


def test_logits_that_are_not_normalised_are_sampled_the_same_way() -> None:
    kind = Categorical(spaces.Discrete(3))
    log_probs = torch.tensor([0.2, 0.5, 0.3]).log()
    assert torch.equal(draw(kind, log_probs + 2.5, 1000), draw(kind, log_probs, 1000))


def test_categorical_sample_is_the_action_of_the_largest_sum_of_logit_and_noise() -> None:
    noise = torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    kind = Categorical(spaces.Discrete(2))
    assert kind.sample(torch.zeros(3, 2), noise).tolist() == [1, 0, 1]
    assert kind.sample(torch.tensor([2.0, 0.0]).expand(3, 2), noise).tolist() == [0, 0, 0]


def test_categorical_mode_is_the_most_probable_action_and_the_first_of_equals() -> None:
    outputs = torch.tensor([[0.1, 0.7, 0.2], [0.4, 0.2, 0.4]]).log()
    assert Categorical(spaces.Discrete(3)).mode(outputs).tolist() == [1, 0]


def test_categorical_head_is_one_orthogonal_layer_of_gain_0_01() -> None:
    torch.manual_seed(1)
    head = Categorical(spaces.Discrete(6)).head(32)
    torch.manual_seed(1)
    expected = orthogonal(nn.Linear(32, 6), gain=0.01)
    assert torch.equal(head.get_parameter("weight"), expected.get_parameter("weight"))
    assert torch.equal(head.get_parameter("bias"), torch.zeros(6))


@pytest.mark.parametrize("name", ["categorical", "multi_categorical"])
def test_noise_of_categories_has_the_standard_gumbel_distribution(name: str) -> None:
    noise = noise_of(make_distribution(SPACES[name]), 2000)
    assert stats.kstest(noise.flatten(), "gumbel_r").pvalue > 0.001


def test_gumbel_noise_is_minus_the_logarithm_of_the_exponentials_of_the_stream() -> None:
    noise = Categorical(spaces.Discrete(7)).noise(np.random.default_rng(5), 100)
    exponentials = np.random.default_rng(5).standard_exponential((100, 7))
    np.testing.assert_allclose(np.exp(-noise.astype(np.float64)), exponentials, rtol=2e-6)


class Zeros(np.random.Generator):
    """A generator that draws the rarest numbers."""

    def __init__(self) -> None:
        super().__init__(np.random.Philox(0))

    def standard_exponential(self, shape: tuple[int, ...]) -> NDArray[np.float64]:  # type: ignore[override]
        return np.zeros(shape)

    def random(self, shape: tuple[int, ...]) -> NDArray[np.float64]:  # type: ignore[override]
        return np.zeros(shape)


def test_noise_is_finite_so_that_an_action_of_probability_0_is_never_drawn() -> None:
    kind = Categorical(spaces.Discrete(2))
    noise = kind.noise(Zeros(), 1)
    assert np.isfinite(noise).all()
    assert kind.sample(torch.tensor([[-math.inf, 0.0]]), torch.from_numpy(noise)).item() == 1


def test_multi_categorical_is_independent_categories() -> None:
    joint = MultiCategorical(spaces.MultiDiscrete([2, 3, 4]))
    parts = [Categorical(spaces.Discrete(size)) for size in (2, 3, 4)]
    outputs, old, noise = outputs_of(joint, 50), outputs_of(joint, 50, seed=1), noise_of(joint, 50)
    split, split_old, split_noise = (torch.split(numbers, [2, 3, 4], -1) for numbers in (outputs, old, noise))
    actions = joint.sample(outputs, noise)
    expected_actions = [part.sample(*own) for part, *own in zip(parts, split, split_noise, strict=True)]
    assert torch.equal(actions, torch.stack(expected_actions, -1))
    assert torch.equal(joint.mode(outputs), torch.stack([p.mode(o) for p, o in zip(parts, split, strict=True)], -1))
    for actual, expected in (
        (
            joint.log_prob(outputs, actions),
            [p.log_prob(*own) for p, *own in zip(parts, split, expected_actions, strict=True)],
        ),
        (joint.entropy(outputs), [part.entropy(own) for part, own in zip(parts, split, strict=True)]),
        (joint.kl(old, outputs), [part.kl(*own) for part, *own in zip(parts, split_old, split, strict=True)]),
    ):
        torch.testing.assert_close(actual, torch.stack(expected).sum(0))


# Bits.


def test_bernoulli_log_prob_entropy_and_kl_are_those_of_scipy() -> None:
    kind = Bernoulli(spaces.MultiBinary(1))
    logits = torch.tensor([-69.0, -5.0, 0.0, 0.3, 12.0, 69.0]).unsqueeze(-1)
    # scipy's own entropy takes logarithms of probabilities, and 1 - 1e-30 is 1 even in float64.
    odds = np.concatenate([-logits.double().numpy(), logits.double().numpy()], -1)
    probabilities, log_probs = special.expit(odds), special.log_expit(odds)
    actual = torch.stack([kind.log_prob(logits, torch.full((6, 1), bit)) for bit in (0, 1)], -1)
    np.testing.assert_allclose(actual.numpy(), log_probs, rtol=1e-6)
    np.testing.assert_allclose(kind.entropy(logits).numpy(), -(probabilities * log_probs).sum(-1), rtol=1e-6)
    expected = stats.entropy(probabilities, probabilities[::-1], axis=-1)
    np.testing.assert_allclose(kind.kl(logits, logits.flip(0)).numpy(), expected, rtol=1e-5)


def test_bernoulli_frequencies_are_the_probabilities_and_bits_are_independent() -> None:
    kind, probabilities = Bernoulli(spaces.MultiBinary(2)), np.array([0.2, 0.7])
    bits = draw(kind, torch.from_numpy(special.logit(probabilities)).float(), 20_000).numpy()
    counts = np.bincount(2 * bits[:, 0] + bits[:, 1], minlength=4)
    assert stats.chisquare(counts, 20_000 * np.outer([0.8, 0.2], [0.3, 0.7]).flatten()).pvalue > 0.001


def test_bernoulli_noise_is_logistic_and_finite() -> None:
    kind = Bernoulli(spaces.MultiBinary(3))
    assert stats.kstest(noise_of(kind, 3000).flatten(), "logistic").pvalue > 0.001
    assert np.isfinite(kind.noise(Zeros(), 2)).all()


def test_bernoulli_mode_sets_the_bits_that_are_more_probably_set() -> None:
    assert Bernoulli(spaces.MultiBinary(3)).mode(torch.tensor([-0.1, 0.0, 0.1])).tolist() == [0, 0, 1]


# Gaussian.


def test_gaussian_log_prob_and_entropy_are_those_of_scipy_up_to_extreme_deviations() -> None:
    kind = Gaussian(spaces.Box(-1.0, 1.0, (3,)))
    log_deviations = torch.tensor([-10.0, -5.0, 0.0, 3.0, 10.0])
    outputs = torch.stack(
        [torch.tensor([0.0, 1.0, -1000.0]).expand(5, 3), log_deviations.unsqueeze(-1).expand(5, 3)], -2
    )
    outputs = outputs.flatten(-2)
    actions = kind.sample(outputs, noise_of(kind, 5))
    normal = stats.norm(outputs[:, :3].double().numpy(), outputs[:, 3:].double().exp().numpy())
    expected = normal.logpdf(actions.double().numpy()).sum(-1)
    np.testing.assert_allclose(kind.log_prob(outputs, actions).numpy(), expected, rtol=2e-6)
    np.testing.assert_allclose(kind.entropy(outputs).numpy(), normal.entropy().sum(-1), rtol=2e-6)


def test_gaussian_kl_is_the_closed_form_in_float64() -> None:
    kind = Gaussian(spaces.Box(-1.0, 1.0, (1,)))
    old = torch.tensor([[0.0, 0.0], [1.0, -10.0], [2.0, 10.0], [0.5, 1.0], [0.5, 1.0]])
    new = torch.tensor([[0.3, 0.7], [1.5, -9.0], [-2.0, -10.0], [0.5, 1.001], [0.501, 1.0]])
    (m0, s0), (m1, s1) = (numbers.double().numpy().T for numbers in (old, new))
    expected = s1 - s0 + (np.exp(2 * s0) + (m0 - m1) ** 2) / (2 * np.exp(2 * s1)) - 0.5
    np.testing.assert_allclose(kind.kl(old, new).numpy(), expected, rtol=1e-3)
    np.testing.assert_allclose(kind.kl(old, new).numpy()[:3], expected[:3], rtol=1e-5)


def test_gaussian_samples_are_normal() -> None:
    actions = draw(Gaussian(spaces.Box(-1.0, 1.0, (2,))), torch.tensor([3.0, -1.0, 0.5, -2.0]), 5000).numpy()
    for column, mean, deviation in ((actions[:, 0], 3.0, math.exp(0.5)), (actions[:, 1], -1.0, math.exp(-2.0))):
        assert stats.kstest(column, "norm", (mean, deviation)).pvalue > 0.001
    assert abs(stats.pearsonr(*actions.T).statistic) < 0.05


def test_gaussian_mean_and_mode_are_the_means_and_deviation_is_averaged() -> None:
    kind, outputs = Gaussian(spaces.Box(-1.0, 1.0, (2,))), torch.tensor([[3.0, -1.0, 0.0, math.log(3.0)]])
    assert kind.mean(outputs).tolist() == kind.mode(outputs).tolist() == [[3.0, -1.0]]
    assert kind.deviation(outputs).tolist() == pytest.approx([2.0])


def test_gaussian_density_is_that_of_the_action_before_it_is_clipped() -> None:
    kind, outputs = Gaussian(spaces.Box(-1.0, 1.0, (1,))), torch.zeros(2, 2)
    near, far = kind.log_prob(outputs, torch.tensor([[1.0], [3.0]])).tolist()
    assert near - far == pytest.approx(4.0)


def test_gaussian_log_deviation_has_its_closed_derivative_inside_the_limits() -> None:
    kind = Gaussian(spaces.Box(-1.0, 1.0, (1,)))
    log_deviations = torch.linspace(-9.9, 9.9, 12).requires_grad_()
    outputs = torch.stack([torch.zeros(12), log_deviations], -1)
    kind.log_prob(outputs, 2.0 * log_deviations.detach().exp().unsqueeze(-1)).sum().backward()
    torch.testing.assert_close(log_deviations.grad, torch.full((12,), 2.0**2 - 1.0))


def test_gaussian_deviation_is_a_parameter_of_its_own_unless_it_depends_on_the_state() -> None:
    box, features = spaces.Box(-1.0, 1.0, (3,)), torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    own, of_state = (
        make_distribution(box, log_deviation_init=-1, state_dependent_deviation=depends).head(8)
        for depends in (False, True)
    )
    assert torch.equal(own(features)[:, 3:], torch.full((20, 3), -1.0))
    assert torch.equal(of_state(torch.zeros(1, 8)), torch.tensor([[0.0, 0.0, 0.0, -1.0, -1.0, -1.0]]))
    assert of_state(features)[:, 3:].std(0).min() > 1e-3
    assert sum(parameter.numel() for parameter in own.parameters()) == 3 * 8 + 3 + 3


def test_a_log_deviation_outside_the_limits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"log_deviation_init must lie in \[-10, 10\], got 11"):
        make_distribution(spaces.Box(-1.0, 1.0), log_deviation_init=11)


# Beta.

CONCENTRATIONS = [1.0 + 1e-6, 1.1, 2.0, 15.0, 300.0, 1e4]


@pytest.fixture
def beta_pairs() -> Tensor:
    alpha, beta = np.meshgrid(CONCENTRATIONS, CONCENTRATIONS)
    return beta_outputs(alpha.flatten(), beta.flatten())


@pytest.mark.parametrize("action", [2.0**-24, 1e-3, 0.5, 0.999, 1.0 - 2.0**-24])
def test_beta_log_prob_is_that_of_scipy(beta_pairs: Tensor, action: float) -> None:
    actions = torch.full((len(beta_pairs), 1), action)
    actual = Beta(spaces.Box(0.0, 1.0, (1,))).log_prob(beta_pairs, actions)
    expected = stats.beta.logpdf(actions[0].double().item(), *concentrations(beta_pairs))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_beta_entropy_is_that_of_scipy(beta_pairs: Tensor) -> None:
    actual = Beta(spaces.Box(0.0, 1.0, (1,))).entropy(beta_pairs)
    np.testing.assert_allclose(actual.numpy(), stats.beta.entropy(*concentrations(beta_pairs)), rtol=1e-6, atol=1e-6)


def test_beta_kl_is_the_integral_of_its_definition() -> None:
    old, new = (
        beta_outputs([1.1, 2.0, 15.0, 300.0], [2.0, 1.1, 4.0, 300.0]),
        beta_outputs([2.0, 2.0, 4.0, 310.0], [3.0, 9.0, 15.0, 300.0]),
    )

    def integral(a: float, b: float, c: float, d: float) -> float:
        p, q = stats.beta(a, b), stats.beta(c, d)
        return integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), 0.0, 1.0, points=[a / (a + b)])[0]

    expected = [integral(*pair) for pair in zip(*concentrations(old), *concentrations(new), strict=True)]
    np.testing.assert_allclose(Beta(spaces.Box(0.0, 1.0, (1,))).kl(old, new).numpy(), expected, rtol=1e-5)


def test_beta_kl_of_close_and_sharp_policies_keeps_its_digits() -> None:
    # KL is half the Fisher information times the square of a small step: n / 8 of the log-odds at alpha = beta = n / 2.
    step = 1e-3
    old, new = beta_outputs(1e4, 1e4), beta_outputs(1e4 * math.exp(step), 1e4 * math.exp(-step))
    actual = Beta(spaces.Box(0.0, 1.0, (1,))).kl(old, new).item()
    assert actual == pytest.approx(2e4 / 8.0 * (2.0 * step) ** 2, rel=0.01)


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [(1.0001, 1.0001), (1.0001, 3.0), (2.0, 5.0), (30.0, 1.5), (400.0, 300.0), (1e4, 1e4), (1e4, 1.5)],
)
def test_beta_samples_have_the_distribution_of_scipy(alpha: float, beta: float) -> None:
    actions = draw(Beta(spaces.Box(0.0, 1.0, (1,))), beta_outputs(alpha, beta), 5000)
    assert stats.kstest(actions[:, 0].numpy(), "beta", (alpha, beta)).pvalue > 0.001


def test_beta_dimensions_have_their_own_concentrations_and_are_independent() -> None:
    kind = Beta(spaces.Box(0.0, 1.0, (2,)))
    outputs = torch.cat([beta_outputs(2.0, 8.0), beta_outputs(5.0, 1.5)]).reshape(2, 2).T.flatten()
    actions = draw(kind, outputs, 5000).numpy()
    for column, parameters in zip(actions.T, ((2.0, 8.0), (5.0, 1.5)), strict=True):
        assert stats.kstest(column, "beta", parameters).pvalue > 0.001
    assert abs(stats.pearsonr(*actions.T).statistic) < 0.05


def test_beta_takes_the_first_proposal_that_is_accepted() -> None:
    kind, outputs = Beta(spaces.Box(0.0, 1.0, (1,))), beta_outputs([2.0], [2.0])
    noise = noise_of(kind, 1)
    x, log_u = noise[0]
    x[0, :3, 0] = torch.tensor([-4.5, 0.5, -0.5])
    log_u[0, :3, 0] = torch.tensor([-1.0, -1.0, -1.0])
    x[1, 0, 0], log_u[1, 0, 0] = 0.0, -1.0
    # -4.5 would make a Gamma below 0.
    d = 5.0 / 3.0
    gamma = d * (1.0 + 0.5 / math.sqrt(9.0 * d)) ** 3
    assert kind.sample(outputs, noise).item() == pytest.approx(gamma / (gamma + d))


def test_beta_with_every_proposal_rejected_is_the_ratio_of_the_fallbacks() -> None:
    kind = Beta(spaces.Box(0.0, 1.0, (2,)))
    noise = noise_of(kind, 4)
    noise[:, 0, :, :-1] = -100.0
    outputs = outputs_of(kind, 4)
    alpha, beta = (1.0 + nn.functional.softplus(outputs)).chunk(2, -1)
    expected = (alpha - 1 / 3) / (alpha + beta - 2 / 3)
    torch.testing.assert_close(kind.sample(outputs, noise), expected)


@pytest.mark.parametrize("output", [-1e4, 0.0, 1e4])
def test_beta_accepts_the_fallback_at_any_concentration(output: float) -> None:
    kind = Beta(spaces.Box(0.0, 1.0, (1,)))
    noise = noise_of(kind, 1)
    noise[:, 1, :, :-1] = 0.0  # u = 1
    noise[:, 0, :, :-1] = -100.0 * math.sqrt(1.0 + max(output, 0.0))
    assert kind.sample(torch.full((1, 2), output), noise).item() == pytest.approx(0.5)


def test_beta_mean_and_mode_are_those_of_scipy() -> None:
    kind, outputs = Beta(spaces.Box(0.0, 1.0, (1,))), beta_outputs([1.5, 2.0, 300.0, 1e4], [4.0, 2.0, 20.0, 1.5])
    alpha, beta = concentrations(outputs)
    np.testing.assert_allclose(kind.mean(outputs)[:, 0].numpy(), stats.beta.mean(alpha, beta), rtol=1e-5)
    np.testing.assert_allclose(kind.deviation(outputs).numpy(), stats.beta.std(alpha, beta), rtol=1e-3)
    mode = kind.mode(outputs)[:, 0].double().numpy()
    for offset in (-0.01, 0.01):
        neighbours = mode + offset * mode * (1.0 - mode)
        assert (stats.beta.logpdf(mode, alpha, beta) > stats.beta.logpdf(neighbours, alpha, beta)).all()


def test_beta_mode_of_the_uniform_distribution_is_its_mean() -> None:
    outputs = torch.full((1, 2), -1000.0)
    assert Beta(spaces.Box(0.0, 1.0, (1,))).mode(outputs).item() == 0.5


def test_beta_actions_stay_off_the_edges_where_the_density_is_not_finite() -> None:
    kind = Beta(spaces.Box(0.0, 1.0, (1,)))
    for outputs in (torch.tensor([[1e9, -1e9]]), torch.tensor([[-1e9, 1e9]])):
        for actions in (draw(kind, outputs, 100), kind.mean(outputs), kind.mode(outputs)):
            assert ((actions > 0.0) & (actions < 1.0)).all()
            assert kind.log_prob(outputs, actions).isfinite().all()


def test_beta_of_equal_outputs_of_minus_infinity_nearly_is_uniform_of_entropy_0() -> None:
    kind, outputs = Beta(spaces.Box(0.0, 1.0, (1,))), torch.full((1, 2), -50.0)
    assert kind.entropy(outputs).item() == pytest.approx(0.0, abs=1e-6)
    assert kind.log_prob(outputs, torch.tensor([[0.3]])).item() == pytest.approx(0.0, abs=1e-6)


def test_beta_starts_where_it_is_set() -> None:
    kind = make_distribution(spaces.Box(0.0, 1.0, (3,)), "beta", action_start=(0.5, 0.9, 0.1))
    outputs = kind.head(4)(torch.zeros(1, 4))
    torch.testing.assert_close(kind.mean(outputs), torch.tensor([[0.5, 0.9, 0.1]]))
    least = 1.0 + math.log(2.0)
    alpha, beta = (1.0 + nn.functional.softplus(outputs[0])).chunk(2)
    torch.testing.assert_close(torch.minimum(alpha, beta), torch.full((3,), least))


@pytest.mark.parametrize("is_dependent", [False, True])
def test_a_gaussian_starts_where_it_is_told(is_dependent: bool) -> None:
    box = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float64)
    options = {"state_dependent_deviation": is_dependent, "log_deviation_init": -1.0}
    kind = make_distribution(box, "gaussian", action_start=(0.75, 0.1), **options)
    outputs = kind.head(4)(torch.zeros(1, 4))
    np.testing.assert_allclose(kind.to_environment(kind.mean(outputs).detach().numpy()), [[1.0, 1.0]], atol=1e-6)
    torch.testing.assert_close(outputs[:, 2:], torch.full((1, 2), -1.0))


@pytest.mark.parametrize("policy", ["gaussian", "beta"])
@pytest.mark.parametrize("start", [0.0, 1.0, -0.5, math.nan, (0.5,), (0.5, 1.5, 0.5)])
def test_a_start_that_is_no_fraction_is_refused(policy: str, start: Any) -> None:
    with pytest.raises(
        ValueError, match=r"action_start must be one number in \(0, 1\), or one for each of 3 dimensions"
    ):
        make_distribution(spaces.Box(0.0, 1.0, (3,)), policy, action_start=start)


def test_a_start_is_no_fraction_of_a_range_without_bounds() -> None:
    with pytest.raises(ValueError, match=r"action_start must be 0\.5 for unbounded actions"):
        make_distribution(spaces.Box(0.0, np.inf), "gaussian", action_start=0.1)


# Conversion to the environment.

ENVIRONMENT_SPACES: list[spaces.Space[Any]] = [
    spaces.Discrete(4),
    spaces.Discrete(4, start=3),
    spaces.MultiDiscrete([2, 5, 3]),
    spaces.MultiDiscrete(np.array([[2, 3, 4], [5, 1, 2]]), start=np.array([[1, -2, 0], [0, 7, 3]])),
    spaces.MultiDiscrete([3, 4], dtype=np.int8, start=[-2, 100]),
    spaces.MultiBinary(4),
    spaces.MultiBinary((2, 3)),
    spaces.Box(-2.0, 3.0, ()),
    spaces.Box(-2.0, 3.0, (3,)),
    spaces.Box(np.array([[0.0, -1.0], [-5.0, 0.1]]), np.array([[1.0, 1.0], [-4.0, 0.3]]), dtype=np.float64),
    spaces.Box(np.array([0.1, -np.inf, -np.inf], np.float32), np.array([np.inf, 0.3, np.inf], np.float32)),
    spaces.Box(-np.inf, np.inf, (2,), dtype=np.float64),
    spaces.Box(-0.7, 0.1, (2,), dtype=np.float16),
    spaces.Box(0, 255, (2,), dtype=np.uint8),
    spaces.Box(-3, 2, (2,), dtype=np.int64),
    spaces.Box(np.float32(-3e38), np.float32(3e38), (2,)),
]


@pytest.mark.parametrize("space", ENVIRONMENT_SPACES, ids=str)
def test_the_space_contains_every_action_that_the_environment_gets(space: spaces.Space[Any]) -> None:
    names = [name for name, kind in DISTRIBUTIONS.items() if kind.refusal(space) is None]
    assert names
    for name in names:
        kind = make_distribution(space, name)
        outputs = 5.0 * outputs_of(kind, 200)
        for rule in kind.rules:
            raw = getattr(kind, rule)(outputs, *([noise_of(kind, 200)] if rule == "sample" else []))
            actions = kind.to_environment(raw.numpy())
            assert actions.shape == (200, *space.shape) and actions.dtype == space.dtype
            assert all(space.contains(np.asarray(action)) for action in actions)


@pytest.mark.parametrize("space", ENVIRONMENT_SPACES[:7], ids=str)
def test_every_action_of_a_discrete_space_is_reached(space: spaces.Space[Any]) -> None:
    kind = make_distribution(space)
    actions = kind.to_environment(draw(kind, torch.zeros(kind.num_outputs), 500).numpy())
    space.seed(0)
    sampled = np.array([space.sample() for _ in range(500)])
    np.testing.assert_array_equal(actions.min(0), sampled.min(0))
    np.testing.assert_array_equal(actions.max(0), sampled.max(0))


def test_gaussian_actions_are_scaled_to_two_bounds_and_only_clipped_at_one() -> None:
    box = spaces.Box(
        np.array([2.0, 0.0, -np.inf, -np.inf], np.float32), np.array([6.0, np.inf, 0.0, np.inf], np.float32)
    )
    raw = np.array([[-1.0, -7.0, -7.0, -7.0], [0.5, 7.0, 7.0, 7.0], [3.0, 0.5, -0.5, 0.5]], np.float32)
    expected = [[2.0, 0.0, -7.0, -7.0], [5.0, 7.0, 0.0, 7.0], [6.0, 0.5, -0.5, 0.5]]
    assert Gaussian(box).to_environment(raw).tolist() == expected


def test_beta_actions_are_scaled_to_the_bounds() -> None:
    raw = np.array([[0.0, 0.25], [1.0, 0.5]], np.float32)
    actions = Beta(spaces.Box(np.array([2.0, -1.0]), np.array([6.0, 1.0]), dtype=np.float64)).to_environment(raw)
    assert actions.tolist() == [[2.0, -0.5], [6.0, 0.0]]


def test_actions_of_a_box_of_whole_numbers_are_rounded() -> None:
    box = spaces.Box(0, 10, (1,), dtype=np.int32)
    raw = np.array([[-1.0], [0.13], [-0.13], [2.0]], np.float32)
    assert Gaussian(box).to_environment(raw)[:, 0].tolist() == [0, 6, 4, 10]


# The distribution chosen by the space.


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Discrete(3, start=1), Categorical),
        (spaces.MultiDiscrete([3, 3]), MultiCategorical),
        (spaces.MultiBinary(2), Bernoulli),
        (spaces.Box(-1.0, 1.0), Gaussian),
        (spaces.Box(-np.inf, np.inf), Gaussian),
    ],
    ids=str,
)
def test_the_space_chooses_its_distribution(space: spaces.Space[Any], expected: type[ActionDistribution]) -> None:
    assert type(make_distribution(space)) is expected


def test_beta_is_chosen_by_name() -> None:
    assert type(make_distribution(spaces.Box(-1.0, 1.0), "beta")) is Beta


@pytest.mark.parametrize(
    ("space", "policy", "message"),
    [
        (spaces.Discrete(3), "poisson", "policy must be one of auto, categorical, .*, composite, got poisson"),
        (
            spaces.Discrete(3),
            "gaussian",
            r"policy=gaussian needs a Box space, got Discrete\(3\); try auto or categorical",
        ),
        (spaces.Box(0.0, np.inf), "beta", r"policy=beta needs a Box with finite bounds, .*; try auto or gaussian"),
        (
            spaces.Box(0.0, 1.0),
            "bernoulli",
            "policy=bernoulli needs a MultiBinary space, .*; try auto or gaussian or beta",
        ),
        (
            spaces.Text(3),
            "auto",
            "no policy supports the action space Text.*: it must be Discrete, MultiDiscrete, MultiBinary or Box",
        ),
        (spaces.Dict(a=spaces.Discrete(2)), "beta", "no policy supports the action space Dict"),
    ],
)
def test_a_policy_that_cannot_serve_the_space_is_refused(space: spaces.Space[Any], policy: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_distribution(space, policy)


def test_an_option_of_another_kind_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"log_deviation_init does not apply to policy=beta, whose options are: action_start"
    ):
        make_distribution(spaces.Box(0.0, 1.0), "beta", log_deviation_init=0.1)
