"""The objective's derivatives, compiled and by PyTorch: against autograd, against each other, and what they refuse."""

import dataclasses
import math
import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from ppo.algorithm import compiled, equations
from ppo.algorithm.objective import Samples, derivatives, derivatives_by_torch
from ppo.config import PPOSettings
from ppo.models import distributions
from tests.algorithm.test_update import SETTINGS as UPDATE_SETTINGS
from tests.algorithm.test_update import build

NEEDS_COMPILER = pytest.mark.skipif(compiled.code is None, reason="needs a C compiler where the package is installed")
BOTH = pytest.mark.parametrize(
    "derive",
    [pytest.param(derivatives, marks=NEEDS_COMPILER, id="compiled"), pytest.param(derivatives_by_torch, id="torch")],
)
CLIP_RANGE = 0.2


def settings(value_clip_range=None):
    return PPOSettings(
        num_envs=8,
        rollout_steps=32,
        minibatch_size=256,
        entropy_coefficient=0.3,
        value_coefficient=0.7,
        value_clip_range=value_clip_range,
    )


def outputs_and_samples(num_actions=6, count=400, seed=0):
    """Return logits, values and samples whose ratios and values lie on all sides of their clip ranges."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    logits, values = 2.0 * normal(count, num_actions), normal(count)
    actions = torch.randint(num_actions, (count,), generator=generator)
    now = distributions.log_prob(distributions.log_probabilities(logits), actions)
    samples = Samples(actions, now - 0.3 * normal(count), values - 0.2 * normal(count), normal(count), normal(count))
    return logits, values, samples


@BOTH
@pytest.mark.parametrize("value_clip_range", [None, 0.1])
@pytest.mark.parametrize("num_actions", [2, 6, 18])
def test_derivatives_are_those_of_autograd(derive, value_clip_range, num_actions):
    logits, values, samples = outputs_and_samples(num_actions)
    logits.requires_grad_()
    values.requires_grad_()
    log_probs = distributions.log_probabilities(logits)
    log_ratios = distributions.log_prob(log_probs, samples.actions) - samples.log_probs
    losses = (
        equations.clipped_surrogate_loss(log_ratios, samples.advantages, CLIP_RANGE)
        + 0.7 * equations.value_loss(values, samples.values, samples.returns, value_clip_range)
        - 0.3 * distributions.entropy(log_probs)
    )
    expected = torch.autograd.grad(losses.sum() / 256, (logits, values))
    with torch.no_grad():
        got = derive(logits, values, samples, settings(value_clip_range), CLIP_RANGE)
    clipped = equations.clipped_surrogate_derivative(log_ratios, samples.advantages, CLIP_RANGE) == 0.0
    assert 40 < int(clipped.sum()) < 360
    assert (int((expected[1] == 0.0).sum()) > 10) == (value_clip_range is not None)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


@BOTH
def test_what_the_network_said_and_the_samples_are_left_as_they_are(derive):
    logits, values, samples = outputs_and_samples()
    before = [numbers.clone() for numbers in (logits, values, *samples)]
    derive(logits, values, samples, settings(), CLIP_RANGE)
    assert all(torch.equal(*pair) for pair in zip(before, (logits, values, *samples), strict=True))


@BOTH
@pytest.mark.parametrize("place", ["logits", "values", "log_probs", "returns", "advantages"])
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_not_finite_is_in_the_derivatives_too(derive, place, number):
    logits, values, samples = outputs_and_samples(count=20)
    numbers = {**samples._asdict(), "logits": logits, "values": values}
    numbers[place].view(-1)[7] = number
    if place == "log_probs":
        samples.advantages[7] = -1.0
        if number == math.inf:
            number = -math.inf  # an action that could not be taken: its ratio is infinite
            numbers[place][7] = number
    by_logits, by_values = derive(logits, values, samples, settings(0.1), CLIP_RANGE)
    broken = by_values if place in ("values", "returns") else by_logits
    assert not bool(broken.isfinite().all())
    assert int((~broken.isfinite()).view(20, -1).any(dim=-1).sum()) == 1


@NEEDS_COMPILER
@pytest.mark.parametrize("value_clip_range", [None, 0.1])
def test_compiled_derivatives_are_those_of_torch_also_where_they_are_cut_off(value_clip_range):
    logits, values, samples = outputs_and_samples(count=2000, seed=1)
    samples.log_probs[:10] -= 30.0  # ratios of e^30
    samples.log_probs[10:20] += 30.0
    samples.advantages[20:30] = 0.0
    samples.values[30:40] = values[30:40]
    logits[40:50] *= 40.0
    apart = Samples(*(torch.stack([numbers, numbers], dim=-1)[..., 0] for numbers in samples))  # not side by side
    given = settings(value_clip_range)
    got = derivatives(logits, values, apart, given, CLIP_RANGE)
    expected = derivatives_by_torch(logits, values, samples, given, CLIP_RANGE)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-8)


@NEEDS_COMPILER
def test_an_update_without_a_compiler_is_the_same_but_for_rounding(monkeypatch):
    weights = []
    for is_compiled in (True, False):
        if not is_compiled:
            monkeypatch.setattr("ppo.algorithm.compiled.code", None)
        model, collector, learner = build(dataclasses.replace(UPDATE_SETTINGS, learning_rate=1e-4))
        learner.update(collector.collect(0)[0], update=0, env_steps=0, progress=0.0)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)


def test_the_faster_code_is_compiled_wherever_there_is_a_compiler():
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    headers = Path(sysconfig.get_path("include"), "Python.h")
    assert compiled.IS_COMPILED or shutil.which(compiler) is None or not headers.exists()


@NEEDS_COMPILER
@pytest.mark.parametrize(
    ("place", "array", "error"),
    [
        (0, np.zeros((4, 3), np.float64), ValueError),
        (0, np.zeros(4, np.float32), ValueError),
        (0, np.zeros((4, 6), np.float32)[:, ::2], ValueError),
        (1, np.zeros(3, np.float32), ValueError),
        (2, np.zeros(4, np.int32), ValueError),
        (2, np.array([0, 1, 3, 0]), IndexError),
        (2, np.array([0, 1, -1, 0]), IndexError),
        (6, np.zeros(5, np.float32), ValueError),
    ],
)
def test_compiled_derivatives_refuse_what_they_would_read_or_write_beyond(place, array, error):
    arrays = [np.zeros((4, 3), np.float32), np.zeros(4, np.float32), np.zeros(4, np.int64)]
    arrays += [np.zeros(4, np.float32) for _ in range(4)]
    compiled.code.derivatives(*arrays, 0.2, -1.0, 0.0, 1.0, 4.0)
    arrays[place] = array
    with pytest.raises(error):
        compiled.code.derivatives(*arrays, 0.2, -1.0, 0.0, 1.0, 4.0)


@NEEDS_COMPILER
@pytest.mark.parametrize(
    ("place", "array", "error"),
    [
        (0, np.zeros((2, 6), np.float32), ValueError),
        (0, np.zeros((3, 5), np.float32), ValueError),
        (0, np.zeros((2, 5), np.float64), ValueError),
        (1, np.zeros((4, 10), np.uint8)[:, ::2], ValueError),
        (1, np.zeros((4, 5), np.int8), ValueError),
        (2, np.array([0, 4]), IndexError),
        (2, np.array([-1, 0]), IndexError),
    ],
)
def test_compiled_gathering_refuses_what_it_would_read_or_write_beyond(place, array, error):
    arrays = [np.zeros((2, 5), np.float32), np.ones((4, 5), np.uint8), np.array([3, 0])]
    compiled.code.gather_pixels(*arrays)
    assert arrays[0].all()
    arrays[place] = array
    with pytest.raises(error):
        compiled.code.gather_pixels(*arrays)
