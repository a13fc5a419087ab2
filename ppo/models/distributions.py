"""The categorical distribution over discrete actions, as functions of logits.

Shapes: logits (B, A); actions and everything returned (B,), but for derivatives by the logits, (B, A).
`torch.distributions` computes the same at several times the cost per call.
"""

import torch
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


def sample(log_probs: Tensor, uniforms: Tensor) -> Tensor:
    """Draw by inversion of the cumulative distribution, one uniform number in [0, 1) per row.

    The last action is returned where rounding leaves the cumulative sum below the number drawn.
    """
    cumulative = log_probs.exp().cumsum(-1)
    return (cumulative <= uniforms.unsqueeze(-1)).sum(-1).clamp_max(log_probs.shape[-1] - 1)


def mode(log_probs: Tensor) -> Tensor:
    """Return the most probable action; the first of equals."""
    return log_probs.argmax(-1)
