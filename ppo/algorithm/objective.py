"""PPO's objective for samples: its derivatives by what the network says of them, and what a log says about it.

The objective, to be minimised, is policy_loss + value_coefficient * value_loss - entropy_coefficient * entropy, each a
mean over samples: Schulman et al. 2017, eq. 9 (arXiv:1707.06347), with its sign turned.
"""

from typing import Any

import torch
from torch import Tensor

from ppo.algorithm import compiled, equations
from ppo.algorithm.samples import Samples
from ppo.config import PPOSettings

LOGGED = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")


def stand_in(
    logits: Tensor, values: Tensor, samples: Samples, settings: PPOSettings, clip_range: float | Tensor
) -> Tensor:
    """Return a number () that stands in for the objective: it has its `derivatives`, and backward passes begin with it.

    To hand `torch.autograd.backward` the derivatives themselves would make PyTorch import SymPy, in a third of a
    second, to compare two shapes.
    """
    number: Tensor = _Derivatives.apply(logits, values, samples, settings, clip_range)  # type: ignore[no-untyped-call]
    return number


class _Derivatives(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        logits: Tensor,
        values: Tensor,
        samples: Samples,
        settings: PPOSettings,
        clip_range: float | Tensor,
    ) -> Tensor:
        context.derivatives = derivatives(logits, values, samples, settings, clip_range)
        return logits.new_zeros(())

    @staticmethod
    def backward(context: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*context.derivatives, None, None, None)


def derivatives(
    logits: Tensor, values: Tensor, samples: Samples, settings: PPOSettings, clip_range: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Return the derivatives of the objective by logits (B, A) and values (B,), for samples (B,).

    Means are taken over the minibatch of the whole job, of which the samples are a part.

    Raises:
        IndexError: an action is none of A.
    """
    if compiled.code is None or logits.device.type != "cpu":
        return derivatives_by_torch(logits, values, samples, settings, clip_range)
    by_logits, by_values = logits.clone(), values.clone()
    actions, log_probs, old_values, returns, advantages = (numbers.contiguous().numpy() for numbers in samples)
    compiled.code.derivatives(
        by_logits.numpy(),
        by_values.numpy(),
        actions,
        log_probs,
        old_values,
        returns,
        advantages,
        float(clip_range),
        -1.0 if settings.value_clip_range is None else settings.value_clip_range,
        settings.entropy_coefficient,
        settings.value_coefficient,
        settings.minibatch_size,
    )
    return by_logits, by_values


def derivatives_by_torch(
    logits: Tensor, values: Tensor, samples: Samples, settings: PPOSettings, clip_range: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Do what `derivatives` does, on any device, float rounding apart."""
    log_probs = _log_probabilities(logits)
    log_ratios = _log_prob(log_probs, samples.actions) - samples.log_probs
    by_log_ratios = equations.clipped_surrogate_derivative(log_ratios, samples.advantages, clip_range)
    by_logits = _log_prob_derivative(log_probs, samples.actions, by_log_ratios)
    by_logits.add_(_entropy_derivative(log_probs), alpha=-settings.entropy_coefficient)
    by_values = equations.value_loss_derivative(values, samples.values, samples.returns, settings.value_clip_range)
    return (
        by_logits.div_(settings.minibatch_size),
        by_values * (settings.value_coefficient / settings.minibatch_size),
    )


def logged_sums(logits: Tensor, values: Tensor, samples: Samples, settings: PPOSettings, clip_range: float) -> Tensor:
    """Return the sums over samples (B,) of what is LOGGED, in that order."""
    log_probs = _log_probabilities(logits)
    log_ratios = _log_prob(log_probs, samples.actions) - samples.log_probs
    return torch.stack(
        [
            equations.clipped_surrogate_loss(log_ratios, samples.advantages, clip_range).sum(),
            equations.value_loss(values, samples.values, samples.returns, settings.value_clip_range).sum(),
            _entropy(log_probs).sum(),
            equations.approximate_kl(log_ratios).sum(),
            equations.clipped(log_ratios, clip_range).sum(),
        ]
    )


def _log_probabilities(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits, dim=-1)


def _log_prob(log_probs: Tensor, actions: Tensor) -> Tensor:
    return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def _log_prob_derivative(log_probs: Tensor, actions: Tensor, upstream: Tensor) -> Tensor:
    derivative = log_probs.exp() * -upstream.unsqueeze(-1)
    return derivative.scatter_add_(-1, actions.unsqueeze(-1), upstream.unsqueeze(-1))


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs).sum(-1)


def _entropy_derivative(log_probs: Tensor) -> Tensor:
    probabilities = log_probs.exp()
    surprise = probabilities * log_probs
    return probabilities * surprise.sum(-1, keepdim=True) - surprise
