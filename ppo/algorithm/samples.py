"""Turns a rollout into samples for the loss: advantages, returns and their normalisation over ranks."""

from typing import NamedTuple

import torch
from torch import Tensor

from ppo.algorithm import equations
from ppo.algorithm.rollout import Rollout
from ppo.collectives.moments import Moments, MomentsOverRanks, RunningMoments, standardize
from ppo.config import PPOSettings


class Samples(NamedTuple):
    """Inputs of the loss besides the network's prediction, for B samples; (B,) unless stated otherwise."""

    actions: Tensor
    """Raw, (B, *action shape)."""
    outputs: Tensor
    """Outputs of the policy head that acted, (B, K)."""
    log_probs: Tensor
    """Log-probabilities of the actions under the policy that acted."""
    values: Tensor
    """Predictions of the value head at that time."""
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
        rewards: the rewards to learn from, (T, N).
        value_normalizer: defines the units of the value head.
        settings: the discount, and the choice of what to normalise.
        moments_of: returns moments over all ranks.
        gae_lambda: lambda of this update.
        again: the rollout was prepared before, with other values, so the normaliser has already seen its returns.

    Returns:
        The samples, and the share of the returns' variance that values explain. Returns and share are those of this
        lambda.
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
    # The residual of the value prediction is the advantage, so two rows of moments are enough for everything below.
    both = moments_of(torch.stack([returns, advantages]))
    returns_moments, advantage_moments = (Moments(both.count[row], both.mean[row], both.squares[row]) for row in (0, 1))
    variance = float(returns_moments.squares)
    explained = 1.0 - float(advantage_moments.squares) / variance if variance > 0.0 else 0.0
    if settings.value_normalization:
        # The reference for value clipping: the value head's predictions, in the units that it had when it made them.
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
    """Gather an epoch's minibatches by indices (K, B), normalising advantages per minibatch if so configured.

    Moments are those of the whole job's minibatch.
    """
    minibatches = samples.at(indices)
    if settings.advantage_normalization == "minibatch":
        moments = moments_of(minibatches.advantages)
        minibatches = minibatches._replace(advantages=standardize(minibatches.advantages, moments))
    return minibatches
