"""The gradient of PPO's loss compared with closed forms and finite differences, and with signs flipped on purpose.

The closed forms are those of a paper and a pencil. With ratio r, advantage A, policy p of entropy H:

    surrogate   d/d log pi(a|s) = -r A, and 0 where the clip decides
    entropy     d H/d logit_i = -p_i (log p_i + H)
    value       d/d V = V - R, and 0 where the clipped error decides
"""

import dataclasses
import math

import gymnasium
import pytest
import torch

from ppo.algorithm import equations
from ppo.algorithm.loss import TERMS, loss_terms, ppo_loss
from ppo.algorithm.samples import Samples
from ppo.config import PPOSettings
from ppo.models.actor_critic import Prediction
from ppo.models.distributions import make_distribution

CLIP_RANGE = 0.2
VALUE, ENTROPY = 0.7, 0.3
KINDS = {
    "categorical": make_distribution(gymnasium.spaces.Discrete(6)),
    "gaussian": make_distribution(gymnasium.spaces.Box(-1.0, 1.0, (2,))),
}
BOTH_KINDS = pytest.mark.parametrize("kind", KINDS)
WITH_AND_WITHOUT_VALUE_CLIP = pytest.mark.parametrize("value_clip_range", [None, 0.1])


def settings(value_clip_range=None):
    return PPOSettings(
        num_envs=8,
        rollout_steps=32,
        minibatch_size=256,
        entropy_coefficient=ENTROPY,
        value_coefficient=VALUE,
        value_clip_range=value_clip_range,
    )


def a_case(kind, *, count=400, seed=0, dtype=torch.float32):
    """Return a prediction and samples whose ratios and values lie on all sides of their clip ranges."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    distribution = KINDS[kind]
    outputs, values = 0.7 * normal(count, distribution.num_outputs), normal(count)
    if kind == "categorical":
        actions = torch.randint(distribution.num_outputs, (count,), generator=generator)
    else:
        actions = outputs.chunk(2, -1)[0] + normal(count, 2)
    log_probs = distribution.log_prob(outputs, actions)
    samples = Samples(
        actions=actions,
        outputs=normal(count, distribution.num_outputs),
        log_probs=log_probs - 0.3 * normal(count),
        values=values - 0.2 * normal(count),
        returns=normal(count),
        advantages=normal(count),
    )
    # As in a first minibatch: the old policy, the old values, and advantages of 0.
    samples.log_probs[: count // 8] = log_probs[: count // 8]
    samples.values[count // 16 : count // 6] = values[count // 16 : count // 6]
    samples.advantages[: count // 40] = 0.0
    return Prediction(outputs.requires_grad_(), values.requires_grad_()), samples


def loss_of(kind, prediction, samples, value_clip_range=None, clip_range=CLIP_RANGE):
    """Return the loss and its terms."""
    given = (samples, KINDS[kind], settings(value_clip_range), clip_range)
    with torch.no_grad():
        terms = loss_terms(Prediction(*(numbers.detach() for numbers in prediction)), *given)
    return ppo_loss(prediction, *given), terms


def log_prob_derivative(kind, outputs, actions):
    """Return d log pi(a|s) / d outputs, (B, K)."""
    if kind == "categorical":
        return torch.nn.functional.one_hot(actions, outputs.shape[-1]) - outputs.softmax(-1)
    means, log_deviations = outputs.chunk(2, -1)
    deviations = log_deviations.exp()
    normal = (actions - means) / deviations
    return torch.cat([normal / deviations, normal.square() - 1.0], -1)


def entropy_derivative(kind, outputs):
    if kind == "categorical":
        probabilities = outputs.softmax(-1)
        entropy = -(probabilities * probabilities.log()).sum(-1, keepdim=True)
        return -probabilities * (probabilities.log() + entropy)
    means, _ = outputs.chunk(2, -1)
    return torch.cat([torch.zeros_like(means), torch.ones_like(means)], -1)


def closed_form(kind, prediction, samples, value_clip_range):
    """Return the derivatives of the loss with respect to outputs and values, worked out by hand."""
    outputs, values = (tensor.detach() for tensor in prediction)
    ratios = (KINDS[kind].log_prob(outputs, samples.actions) - samples.log_probs).exp()
    raised, lowered = ratios > 1.0 + CLIP_RANGE, ratios < 1.0 - CLIP_RANGE
    decides = torch.where(samples.advantages > 0.0, raised, lowered)
    surrogate = -(ratios * samples.advantages).masked_fill(decides, 0.0)
    by_outputs = surrogate.unsqueeze(-1) * log_prob_derivative(kind, outputs, samples.actions)
    by_outputs -= ENTROPY * entropy_derivative(kind, outputs)
    errors = values - samples.returns
    if value_clip_range is not None:
        change = values - samples.values
        kept = samples.values + change.clamp(-value_clip_range, value_clip_range)
        worse = (kept - samples.returns).abs() > errors.abs()
        value_decides = worse & (change.abs() > value_clip_range)
        assert 10 < int(value_decides.sum()) < len(values) - 10
        errors = errors.masked_fill(value_decides, 0.0)
    assert 40 < int(decides.sum()) < len(values) - 40
    return by_outputs, VALUE * errors


def check_gradient(kind, value_clip_range):
    """Assert that the loss has the gradient that was worked out by hand."""
    prediction, samples = a_case(kind)
    expected = closed_form(kind, prediction, samples, value_clip_range)
    loss, _ = loss_of(kind, prediction, samples, value_clip_range)
    for got, by_hand in zip(torch.autograd.grad(loss, tuple(prediction)), expected, strict=True):
        torch.testing.assert_close(got, by_hand, rtol=1e-4, atol=1e-5)


@BOTH_KINDS
@WITH_AND_WITHOUT_VALUE_CLIP
def test_the_gradient_is_the_one_worked_out_by_hand(kind, value_clip_range):
    check_gradient(kind, value_clip_range)


def _largest(log_ratios, advantages, clip_range):
    ratios = log_ratios.exp()
    clamped = ratios.clamp(1.0 - clip_range, 1.0 + clip_range)
    return -torch.maximum(ratios * advantages, clamped * advantages)


# The first two are from a published agent with both signs flipped, which learnt to fail.
BUGS = {
    "the surrogate is made small": ("clipped_surrogate_loss", lambda real: lambda *given: -real(*given)),
    "the value error is made large": ("value_loss", lambda real: lambda *given, **kind: -real(*given, **kind)),
    "old and new probabilities are swapped": (
        "clipped_surrogate_loss",
        lambda real: lambda log_ratios, *given: real(-log_ratios, *given),
    ),
    "the larger surrogate is taken": ("clipped_surrogate_loss", lambda real: _largest),
    "old values and returns are swapped": (
        "value_loss",
        lambda real: lambda values, old, returns, clip, **kind: real(values, returns, old, clip, **kind),
    ),
    "values and returns are swapped": (
        "value_loss",
        lambda real: (
            lambda values, old, returns, clip, **kind: real(returns, old, values.detach(), clip) + 0.0 * values
        ),
    ),
    "the value error is not halved": ("value_loss", lambda real: lambda *given, **kind: 2.0 * real(*given, **kind)),
}


@BOTH_KINDS
@pytest.mark.parametrize("bug", BUGS)
def test_a_turned_sign_or_a_swapped_argument_is_noticed(kind, bug, monkeypatch):
    name, spoil = BUGS[bug]
    monkeypatch.setattr(equations, name, spoil(getattr(equations, name)))
    with pytest.raises(AssertionError, match="not close"):
        check_gradient(kind, 0.1)


@BOTH_KINDS
@pytest.mark.parametrize("method", ["entropy", "log_prob"])
def test_a_flipped_sign_in_the_distribution_is_noticed(kind, method, monkeypatch):
    real = getattr(KINDS[kind], method)
    monkeypatch.setattr(KINDS[kind], method, lambda *given: -real(*given))
    with pytest.raises(AssertionError, match="not close"):
        check_gradient(kind, None)


@BOTH_KINDS
@WITH_AND_WITHOUT_VALUE_CLIP
@pytest.mark.parametrize("clip_range", [0.2, torch.tensor(0.2, dtype=torch.float64)])
def test_the_gradient_is_that_of_finite_differences(kind, value_clip_range, clip_range):
    # 12 samples, none of them at a kink.
    prediction, samples = a_case(kind, count=12, seed=3, dtype=torch.float64)

    def loss(outputs, values):
        return loss_of(kind, Prediction(outputs, values), samples, value_clip_range, clip_range)[0]

    assert torch.autograd.gradcheck(loss, tuple(prediction), eps=1e-6, atol=1e-6)


@BOTH_KINDS
def test_the_loss_is_the_sum_of_its_terms_with_their_coefficients(kind):
    prediction, samples = a_case(kind)
    loss, terms = loss_of(kind, prediction, samples, 0.1)
    assert tuple(terms) == TERMS and all(term.shape == (400,) for term in terms.values())
    expected = terms["policy_loss"] + VALUE * terms["value_loss"] - ENTROPY * terms["entropy"]
    torch.testing.assert_close(loss, expected.sum())


@BOTH_KINDS
def test_the_terms_are_what_their_names_say(kind):
    prediction, samples = a_case(kind)
    _, terms = loss_of(kind, prediction, samples)
    log_ratios = KINDS[kind].log_prob(prediction.action, samples.actions) - samples.log_probs
    ratios = log_ratios.exp()
    bounded = ratios.clamp(0.8, 1.2)
    expected = {
        "policy_loss": -torch.min(ratios * samples.advantages, bounded * samples.advantages),
        "value_loss": (prediction.values - samples.returns).square() / 2,
        "entropy": KINDS[kind].entropy(prediction.action),
        "approx_kl": ratios - 1.0 - log_ratios,
        "clip_fraction": (ratios < 0.8) | (ratios > 1.2),
    }
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_the_old_value_matters_only_with_a_value_clip():
    prediction, samples = a_case("categorical")
    moved = samples._replace(values=samples.values + 1.0)
    for value_clip_range in (None, 0.1):
        before, after = (loss_of("categorical", prediction, given, value_clip_range)[0] for given in (samples, moved))
        assert torch.equal(before, after) == (value_clip_range is None)


@BOTH_KINDS
def test_the_prediction_and_the_samples_are_left_as_they_are(kind):
    prediction, samples = a_case(kind)
    before = [numbers.detach().clone() for numbers in (*prediction, *samples)]
    loss_of(kind, prediction, samples, 0.1)[0].backward()
    assert all(torch.equal(*pair) for pair in zip(before, (*prediction, *samples), strict=True))


@pytest.mark.parametrize("place", ["outputs", "prediction", "log_probs", "returns", "advantages"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_value_that_is_not_finite_reaches_the_gradient_of_its_sample(place, number):
    prediction, samples = a_case("categorical", count=20)
    outputs, values = (tensor.detach().clone() for tensor in prediction)
    numbers = {**samples._asdict(), "outputs": outputs, "prediction": values}
    numbers[place].view(20, -1)[7, 0] = number
    if place == "log_probs" and number == math.inf:
        samples.advantages[7] = -1.0
        samples.log_probs[7] = -math.inf  # an action that could not be taken: its ratio is infinite
    prediction = Prediction(outputs.requires_grad_(), values.requires_grad_())
    gradients = torch.autograd.grad(loss_of("categorical", prediction, samples, 0.1)[0], tuple(prediction))
    by_outputs, by_values = (gradient.isfinite().view(20, -1).all(-1) for gradient in gradients)
    broken, whole = (by_values, by_outputs) if place in ("prediction", "returns") else (by_outputs, by_values)
    assert (~broken).nonzero().flatten().tolist() == [7]
    assert whole.all()


@pytest.mark.parametrize("moved", [-30.0, 30.0])
def test_ratios_far_from_one_give_finite_gradients(moved):
    prediction, samples = a_case("categorical")
    apart = samples._replace(log_probs=samples.log_probs + moved)
    loss, terms = loss_of("categorical", prediction, apart, 0.1)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, tuple(prediction)))
    assert terms["clip_fraction"].all() and terms["approx_kl"].isfinite().all()


@BOTH_KINDS
def test_a_smooth_value_loss_is_learnt_from_where_it_is_asked_for(kind):
    prediction, samples = a_case(kind)
    smooth = dataclasses.replace(settings(), value_loss="smooth_l1")
    given = (prediction, samples, KINDS[kind], smooth, CLIP_RANGE)
    loss, terms = ppo_loss(*given), loss_terms(*given)
    errors = (prediction.values - samples.returns).detach()
    torch.testing.assert_close(torch.autograd.grad(loss, prediction.values)[0], VALUE * errors.clamp(-1.0, 1.0))
    assert (terms["value_loss"] < errors.square() / 2).any()
