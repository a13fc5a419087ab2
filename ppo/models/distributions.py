"""The categorical distribution over discrete actions, as functions of logits.

Shapes: logits (B, A); actions and everything returned (B,), but for noise and derivatives by the logits, (B, A).
`torch.distributions` computes the same at several times the cost per call.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def log_probabilities(logits: Tensor) -> Tensor:
    """Return the normalised log-probabilities of all actions, (B, A)."""
    return torch.log_softmax(logits, dim=-1)


def log_prob(log_probs: Tensor, actions: Tensor) -> Tensor:
    """Return the log-probability of each action taken, given normalised log-probabilities."""
    return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def log_prob_derivative(log_probs: Tensor, actions: Tensor, upstream: Tensor) -> Tensor:
    """Return the derivative of sum(upstream * log_prob) by the logits: that of each is 1 at the action, less p."""
    derivative = log_probs.exp() * -upstream.unsqueeze(-1)
    return derivative.scatter_add_(-1, actions.unsqueeze(-1), upstream.unsqueeze(-1))


def entropy(log_probs: Tensor) -> Tensor:
    """Return the entropy in nats, given normalised log-probabilities."""
    return -(log_probs.exp() * log_probs).sum(-1)


def entropy_derivative(log_probs: Tensor) -> Tensor:
    """Return the derivative of the sum of entropies by the logits: -p (log p + H)."""
    probabilities = log_probs.exp()
    surprise = probabilities * log_probs
    return probabilities * surprise.sum(-1, keepdim=True) - surprise


def sample(logits: Tensor, noise: Tensor) -> Tensor:
    """Draw an action per row by `gumbel_noise` (B, A): the largest sum (Maddison et al. 2014, arXiv:1411.0030, eq. 3).

    That sum needs no probabilities, so that acting, which is all small tensors, is two operations behind the network.
    """
    return (logits + noise).argmax(-1)


def gumbel_noise(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return independent draws of the standard Gumbel distribution: -log E, where E is exponential of mean 1."""
    # The noise of 0, drawn once in 2^53, would be infinite and choose an action however improbable.
    exponential = np.maximum(generator.standard_exponential(shape), np.finfo(np.float64).tiny)
    noise: NDArray[np.float32] = -np.log(exponential).astype(np.float32)
    return noise


def mode(logits: Tensor) -> Tensor:
    """Return the most probable action; the first of equals."""
    return logits.argmax(-1)
