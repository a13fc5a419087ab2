"""Beta distributions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ppo.models.distributions.base import HEAD_GAIN, Space
from ppo.models.distributions.box import BoxDistribution
from ppo.models.encoders import orthogonal

_PROPOSALS = 8
# Half the distance from 1 to the next float32: 1 - 2^-24 is the largest float32 below 1.
_EDGE = 2.0**-24


class Beta(BoxDistribution):
    """Independent Beta distributions on (0, 1) (Chou et al. 2017, PMLR 70), scaled to the bounds by `to_environment`.

    The first half of the outputs gives alpha = 1 + softplus(output), the second half beta likewise, so there is a
    single peak. Log-densities are those of the raw action and differ by a constant from those of the scaled action. The
    entropy is 0 for the uniform distribution and negative for all others.
    """

    name = "beta"
    options = ("action_start",)
    drawn_range = (0.0, 1.0)

    def __init__(self, space: Space, *, action_start: float | Sequence[float] = 0.5) -> None:
        """Build for a Box with finite bounds.

        Args:
            space: the Box.
            action_start: mean of the first policy as a fraction of the range, one for all dimensions or one for each.
        """
        super().__init__(space, action_start)
        self.noise_shape = (2, 2, _PROPOSALS + 1, self.num_dimensions)

    @classmethod
    def refusal(cls, space: Space) -> str | None:
        """Refuse all but Boxes with finite bounds."""
        is_served = super().refusal(space) is None and isinstance(space, spaces.Box) and space.is_bounded()
        return None if is_served else "needs a Box with finite bounds"

    def head(self, num_features: int) -> nn.Module:
        """Build a linear layer; outputs of 0 give alpha = beta = 1.69, an off-centre start raises the larger one."""
        layer = nn.Linear(num_features, self.num_outputs)
        orthogonal(layer, HEAD_GAIN)
        least = 1.0 + math.log(2.0)
        shares = np.concatenate([self._start, 1.0 - self._start])
        excess = least * np.maximum(shares / (1.0 - shares), 1.0) - 1.0
        with torch.no_grad():
            # The inverse of softplus.
            layer.bias.copy_(torch.from_numpy(excess + np.log(-np.expm1(-excess))))
        return layer

    def noise(self, generator: np.random.Generator, steps: int) -> NDArray[np.float32]:
        """Draw the proposals of `sample`: x and log u (2) for two Gammas (2), each proposal and each dimension.

        x is standard normal, u uniform. -log u is exponential, as is half the sum of two squared normals, so that one
        call draws all noise in the order of the steps. The last proposal is x = 0, which every Gamma accepts.
        """
        x, *others = np.moveaxis(
            generator.standard_normal((steps, 3, 2, _PROPOSALS, self.num_dimensions), dtype=np.float32), 1, 0
        )
        noise = np.zeros((steps, *self.noise_shape), np.float32)
        noise[:, 0, :, :-1] = x
        noise[:, 1, :, :-1] = -0.5 * (others[0] ** 2 + others[1] ** 2)
        noise[:, 1, :, -1] = -1.0
        return noise

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Return G_alpha / (G_alpha + G_beta), each by the first accepted proposal of Marsaglia and Tsang (2000).

        A proposal is rejected with probability below 5 %, so that the last one is needed once in 10^10 draws.
        """
        d = functional.softplus(outputs) + 2.0 / 3.0
        d = d.reshape(*outputs.shape[:-1], 2, 1, self.num_dimensions)
        x, log_u = noise.unbind(-4)
        # A root of 0 makes the logarithm -infinity, which rejects the proposal as required.
        root = (1.0 + x / (9.0 * d).sqrt()).clamp_min(0.0)
        v = root**3
        accepted = log_u < 0.5 * x.square() + d * (1.0 - v + 3.0 * root.log())
        first = accepted.to(torch.uint8).argmax(-2, keepdim=True)
        of_alpha, of_beta = (d * v.gather(-2, first)).squeeze(-2).unbind(-2)
        return _inside(of_alpha / (of_alpha + of_beta))

    def mean(self, outputs: Tensor) -> Tensor:
        """Return alpha / (alpha + beta)."""
        alpha, beta = (1.0 + functional.softplus(outputs)).chunk(2, -1)
        return _inside(alpha / (alpha + beta))

    def mode(self, outputs: Tensor) -> Tensor:
        """Return (alpha - 1) / (alpha + beta - 2); the mean where the distribution is uniform."""
        left, right = functional.softplus(outputs).chunk(2, -1)
        both = left + right
        return _inside(torch.where(both > 0.0, left / both, 0.5))

    # The following are differences of large numbers, hence float64: float32 is off by 0.004 (log-density) and 0.02
    # (entropy) at alpha = beta = 1e4, by a tenth of that at 1e3. With gradients, float64 takes 15 to 40 % longer.

    def _log_densities(self, outputs: Tensor, actions: Tensor) -> Tensor:
        left, right = _excess(outputs)
        actions = actions.double()
        return left * actions.log() + right * (-actions).log1p() - _log_beta(1.0 + left, 1.0 + right)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the sum of differential entropies over dimensions."""
        left, right = _excess(outputs)
        alpha, beta = 1.0 + left, 1.0 + right
        mean_log_density = (
            left * alpha.digamma() + right * beta.digamma() - (left + right) * (alpha + beta).digamma()
        ) - _log_beta(alpha, beta)
        return -mean_log_density.sum(-1).to(outputs.dtype)

    def kl(self, old_outputs: Tensor, outputs: Tensor) -> Tensor:
        """Return the sum of divergences over dimensions."""
        old_alpha, old_beta = (1.0 + excess for excess in _excess(old_outputs))
        alpha, beta = (1.0 + excess for excess in _excess(outputs))
        more_alpha, more_beta = old_alpha - alpha, old_beta - beta
        divergence = (
            more_alpha * old_alpha.digamma()
            + more_beta * old_beta.digamma()
            - (more_alpha + more_beta) * (old_alpha + old_beta).digamma()
        ) + (_log_beta(alpha, beta) - _log_beta(old_alpha, old_beta))
        return divergence.sum(-1).to(outputs.dtype)

    def deviation(self, outputs: Tensor) -> Tensor:
        """Return the mean standard deviation over dimensions, as a fraction of the range."""
        alpha, beta = (1.0 + functional.softplus(outputs)).chunk(2, -1)
        both = alpha + beta
        return ((alpha * beta / (both + 1.0)).sqrt() / both).mean(-1)

    def to_environment(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Scale (0, 1) to the bounds."""
        return self._to_box(2.0 * actions.astype(np.float64) - 1.0)

    def elements(self, actions: Tensor) -> Tensor:
        """Scale (0, 1) to the bounds."""
        return self._tensor_to_box(2.0 * actions.double() - 1.0)


def _excess(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha - 1 and beta - 1, (B, D) each, in float64."""
    left, right = functional.softplus(outputs.double()).chunk(2, -1)
    return left, right


def _log_beta(alpha: Tensor, beta: Tensor) -> Tensor:
    """Return the logarithm of the Beta function."""
    return alpha.lgamma() + beta.lgamma() - (alpha + beta).lgamma()


def _inside(actions: Tensor) -> Tensor:
    """Clamp a Beta's raw actions to where every log-density is finite."""
    return actions.clamp(_EDGE, 1.0 - _EDGE)
