"""From a rollout to the samples that gradients are made of: advantages, returns and their normalisation over ranks."""

from typing import NamedTuple

import torch
from torch import Tensor

from ppo.algorithm import equations
from ppo.algorithm.rollout import Rollout
from ppo.collectives.moments import Moments, MomentsOverRanks, RunningMoments, standardize
from ppo.config import PPOSettings


class Samples(NamedTuple):
    """What the loss depends on besides the network's prediction: one entry for each of B samples, (B,) if not said."""

    actions: Tensor
    """Raw, (B, *action shape)."""
    outputs: Tensor
    """Of the policy head that acted, (B, K)."""
    log_probs: Tensor
    """Of the actions, from the policy that acted."""
    values: Tensor
    """What the value head predicted then."""
    returns: Tensor
    """In the units of the value head."""
    advantages: Tensor

    def at(self, indices: Tensor) -> "Samples":
        """Gather flat samples by indices of any shape."""
        return Samples(*(numbers[indices] for numbers in self))


def prepare(
    rollout: Rollout,
    rewards: Tensor,
    value_normalizer: RunningMoments,
    settings: PPOSettings,
    moments_of: MomentsOverRanks,
    *,
    gae_lambda: float,
    again: bool = False,
) -> tuple[Samples, float]:
    """Turn a rollout into flat samples, (T * N,), and update the value normaliser if the settings ask for it.

    Args:
        rollout: this rank's experience.
        rewards: what to learn from, (T, N).
        value_normalizer: the units of the value head.
        settings: the discount and what is normalised.
        moments_of: returns moments over all ranks.
        gae_lambda: lambda of this update.
        again: the rollout has been prepared before, with other values: the normaliser has seen its returns.

    Returns:
        The samples, and the share of the returns' variance that values explain. Returns are those of this lambda, and
        so is the share.
    """
    advantages = equations.gae(
        rewards,
        rollout.values,
        rollout.next_values,
        rollout.dones,
        discount=settings.discount,
        gae_lambda=gae_lambda,
    ).flatten()
    values = rollout.values.flatten()
    returns = advantages + values
    # The residual of the prediction is the advantage, so two rows of moments serve everything below.
    both = moments_of(torch.stack([returns, advantages]))
    returns_moments, advantage_moments = (Moments(both.count[row], both.mean[row], both.squares[row]) for row in (0, 1))
    variance = float(returns_moments.squares)
    explained = 1.0 - float(advantage_moments.squares) / variance if variance > 0.0 else 0.0
    if settings.value_normalization:
        # What the value head predicted, in the units of that time: the reference of value clipping.
        values = value_normalizer.normalize(values)
        if not again:
            value_normalizer.update(returns_moments)
        returns = value_normalizer.normalize(returns)
    if settings.advantage_normalization == "batch":
        advantages = standardize(advantages, advantage_moments)
    actions, outputs, log_probs = (a.flatten(0, 1) for a in (rollout.actions, rollout.outputs, rollout.log_probs))
    return Samples(actions, outputs, log_probs, values, returns, advantages), explained


def gather_minibatches(
    samples: Samples, indices: Tensor, settings: PPOSettings, moments_of: MomentsOverRanks
) -> Samples:
    """Gather an epoch's minibatches by indices (K, B), with advantages normalised per minibatch if the settings say so.

    Moments are those of the minibatch of the whole job.
    """
    minibatches = samples.at(indices)
    if settings.advantage_normalization == "minibatch":
        moments = moments_of(minibatches.advantages)
        minibatches = minibatches._replace(advantages=standardize(minibatches.advantages, moments))
    return minibatches
