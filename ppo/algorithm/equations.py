"""The equations of PPO as pure functions: tensors in, tensors out, no state, no ranks.

Shapes: T steps, N environments, B minibatch. Time is the first axis. Losses are per sample, to be minimised.
"""

import torch
from torch import Tensor
from torch.nn import functional


def gae(
    rewards: Tensor, values: Tensor, next_values: Tensor, dones: Tensor, *, discount: float, gae_lambda: float
) -> Tensor:
    """Estimate advantages by GAE(lambda), Schulman et al. 2016, eq. 16 (arXiv:1506.02438).

    All tensors are (T, N). `next_values` is V(s_{t+1}), already 0 where the episode terminated and V(final observation)
    where it was truncated; `dones` marks both, and the sum of later errors stops there.
    """
    deltas = rewards + discount * next_values - values
    carry = discount * gae_lambda * (~dones).to(rewards.dtype)
    advantages = torch.empty_like(deltas)
    advantage = torch.zeros_like(deltas[0])
    for t in range(len(deltas) - 1, -1, -1):
        advantage = deltas[t] + carry[t] * advantage
        advantages[t] = advantage
    return advantages


def clipped_surrogate_loss(log_ratios: Tensor, advantages: Tensor, clip_range: float | Tensor) -> Tensor:
    """Return -L^CLIP per sample, (B,), Schulman et al. 2017, eq. 7 (arXiv:1707.06347).

    `log_ratios` is log pi(a|s) - log pi_old(a|s).
    """
    ratios = log_ratios.exp()
    # Where the clipped term is smaller it is constant. Detaching it cuts the derivative to a third of the operations.
    clipped = ratios.detach().clamp(1.0 - clip_range, 1.0 + clip_range) * advantages  # type: ignore[arg-type]
    unclipped = ratios * advantages
    return -torch.where(unclipped > clipped, clipped, unclipped)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None, *, smooth_l1: bool = False
) -> Tensor:
    """Return half the squared error per sample, (B,), or the Huber loss, which is linear for errors above 1.

    With a clip range, the result is the larger of the losses of the prediction and of the prediction clipped to that
    range around the old one, as in Schulman's code (described in Engstrom et al. 2020, arXiv:2005.12729, section 3).
    """

    def loss(predictions: Tensor) -> Tensor:
        if smooth_l1:
            return functional.smooth_l1_loss(predictions, returns, reduction="none")
        return 0.5 * functional.mse_loss(predictions, returns, reduction="none")

    if clip_range is None:
        return loss(values)
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return torch.maximum(loss(values), loss(clipped))


def approximate_kl(log_ratios: Tensor) -> Tensor:
    """Estimate KL(pi_old || pi) per sample, unbiased and non-negative: r - 1 - log r, Schulman 2020 ("k3")."""
    return log_ratios.expm1() - log_ratios


def clipped(log_ratios: Tensor, clip_range: float | Tensor) -> Tensor:
    """Return which samples' ratios lie outside the clip range."""
    return (log_ratios.exp() - 1.0).abs() > clip_range


def scheduled_lambda(env_steps: int, *, early: float, late: float, late_steps: int) -> float:
    """Return lambda after `env_steps`: early until late_steps / 2, late from late_steps on, linear in between.

    The best lambda falls as values become accurate: a longer return then adds more in variance than it saves in bias
    (Kearns and Singh 2000, "Bias-variance error bounds for temporal difference updates").
    """
    moved = min(1.0, max(0.0, (2 * env_steps - late_steps) / late_steps))
    return early + (late - early) * moved


def inverse_time_decay(start: float, env_steps: int, decay_steps: int) -> float:
    """Return start / (1 + env_steps / decay_steps)."""
    return start / (1.0 + env_steps / decay_steps)


def linear_decay(start: float, progress: float) -> float:
    """Return a value that falls linearly from `start` to 0 as progress goes from 0 to 1, never below 0."""
    return start * max(0.0, 1.0 - progress)


def adapted_learning_rate(learning_rate: float, kl: float, *, kl_target: float, factor: float, maximum: float) -> float:
    """Adapt the learning rate to the KL of the last epoch, as Schulman et al. 2017, section 4, adapt the KL penalty.

    It is divided by `factor` above twice the target and multiplied by it below half the target, up to `maximum`.
    """
    if kl > 2.0 * kl_target:
        return learning_rate / factor
    if kl < 0.5 * kl_target:
        return min(maximum, learning_rate * factor)
    return learning_rate
