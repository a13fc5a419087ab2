"""The loss of PPO, which gradient steps minimise, and its terms for the log.

Another loss is a function of the same form (docs/extending.md): the learner differentiates it by autograd, sums over
ranks and divides by the size of the minibatch. The names of the terms become columns of the log.
"""

from torch import Tensor

from ppo.algorithm import equations
from ppo.algorithm.samples import Samples
from ppo.config import PPOSettings
from ppo.models.actor_critic import Prediction
from ppo.models.distributions import ActionDistribution

TERMS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")
"""Names of the terms; `approx_kl` steers the learning rate."""


def ppo_loss(
    prediction: Prediction,
    samples: Samples,
    distribution: ActionDistribution,
    settings: PPOSettings,
    clip_range: float | Tensor,
) -> Tensor:
    """Return the loss summed over samples, ().

    The loss is policy_loss + value_coefficient * value_loss - entropy_coefficient * entropy, to be minimised: Schulman
    et al. 2017, eq. 9 (arXiv:1707.06347), with the opposite sign.

    Args:
        prediction: the network's prediction for the observations of the samples.
        samples: a minibatch, or a rank's part of one, (B,).
        distribution: interprets the outputs of the policy head.
        settings: coefficients, and the clip range of values.
        clip_range: clip range of the probability ratios.
    """
    log_ratios = _log_ratios(prediction, samples, distribution)
    policy_loss = equations.clipped_surrogate_loss(log_ratios, samples.advantages, clip_range)
    loss = policy_loss + settings.value_coefficient * _value_loss(prediction, samples, settings)
    if settings.entropy_coefficient:
        loss = loss - settings.entropy_coefficient * distribution.entropy(prediction.action)
    return loss.sum()


def loss_terms(
    prediction: Prediction,
    samples: Samples,
    distribution: ActionDistribution,
    settings: PPOSettings,
    clip_range: float | Tensor,
) -> dict[str, Tensor]:
    """Return the terms whose means are logged, (B,) each, by the names in TERMS.

    Called once per epoch, with the predictions made in all its minibatches: a small network takes less time for a
    minibatch than this function does.

    Args:
        prediction: predictions of the network as it was in each minibatch.
        samples: samples of all minibatches, (B,).
        distribution: as in `ppo_loss`.
        settings: as in `ppo_loss`.
        clip_range: as in `ppo_loss`.
    """
    log_ratios = _log_ratios(prediction, samples, distribution)
    return {
        "policy_loss": equations.clipped_surrogate_loss(log_ratios, samples.advantages, clip_range),
        "value_loss": _value_loss(prediction, samples, settings),
        "entropy": distribution.entropy(prediction.action),
        "approx_kl": equations.approximate_kl(log_ratios),
        "clip_fraction": equations.clipped(log_ratios, clip_range),
    }


def _log_ratios(prediction: Prediction, samples: Samples, distribution: ActionDistribution) -> Tensor:
    return distribution.log_prob(prediction.action, samples.actions) - samples.log_probs


def _value_loss(prediction: Prediction, samples: Samples, settings: PPOSettings) -> Tensor:
    return equations.value_loss(
        prediction.values,
        samples.values,
        samples.returns,
        settings.value_clip_range,
        smooth_l1=settings.value_loss == "smooth_l1",
    )
