"""Normal distributions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppo.models.distributions.base import HEAD_GAIN, Space
from ppo.models.distributions.box import BoxDistribution
from ppo.models.encoders import orthogonal

_LOG_2_PI = math.log(2.0 * math.pi)
# exp(-10) is 4.5e-5 of half a bounded range. Around 1, float32 resolves such a deviation to 1e-3; rounding the action
# would swallow the noise of a much smaller deviation, and with it the log-probability.
_LOG_DEVIATIONS = (-10.0, 10.0)


class Gaussian(BoxDistribution):
    """Independent normal distributions; outputs are D means and D logarithms of standard deviations.

    In a dimension with two bounds, raw actions of -1 and 1 are these bounds. Log-probability and entropy are those of
    the raw action, before it is clipped.
    """

    name = "gaussian"
    options = ("log_deviation_init", "state_dependent_deviation", "action_start")

    def __init__(
        self,
        space: Space,
        *,
        log_deviation_init: float = 0.0,
        state_dependent_deviation: bool = False,
        action_start: float | Sequence[float] = 0.5,
    ) -> None:
        """Build for a Box.

        Args:
            space: the Box.
            log_deviation_init: logarithm of the initial standard deviations, between -10 and 10.
            state_dependent_deviation: predict the deviations from the state, as the means are, instead of one parameter
                per dimension.
            action_start: mean of the first policy as a fraction of the range, one for all dimensions or one for each.
        """
        super().__init__(space, action_start)
        lowest, highest = _LOG_DEVIATIONS
        if not lowest <= log_deviation_init <= highest:
            raise ValueError(f"log_deviation_init must lie in [{lowest:g}, {highest:g}], got {log_deviation_init}")
        self._log_deviation_init = float(log_deviation_init)
        # An unbounded action has no scale but that of the first policy.
        self.drawn_range = (-1.0, 1.0) if space.is_bounded() else (-3.0, 3.0)  # type: ignore[attr-defined]
        self._state_dependent = state_dependent_deviation
        self.noise_shape = self.action_shape

    def head(self, num_features: int) -> nn.Module:
        """Build a linear layer for the means, and parameters or a layer for the deviations."""
        means = torch.from_numpy(2.0 * self._start - 1.0)
        if not self._state_dependent:
            head = GaussianHead(num_features, self.num_dimensions, self._log_deviation_init)
            with torch.no_grad():
                head.means.bias.copy_(means)
            return head
        layer = nn.Linear(num_features, self.num_outputs)
        orthogonal(layer, HEAD_GAIN)
        with torch.no_grad():
            layer.bias[: self.num_dimensions] = means
            layer.bias[self.num_dimensions :] = self._log_deviation_init
        return layer

    def noise(self, generator: np.random.Generator, steps: int) -> NDArray[np.float32]:
        """Draw standard normal noise."""
        return generator.standard_normal((steps, *self.noise_shape), dtype=np.float32)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Return mean + deviation * noise."""
        means, log_deviations = _split(outputs)
        return means + log_deviations.exp() * noise

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the means."""
        return outputs.chunk(2, -1)[0]

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the means."""
        return self.mean(outputs)

    def _log_densities(self, outputs: Tensor, actions: Tensor) -> Tensor:
        means, log_deviations = _split(outputs)
        normal = (actions - means) * (-log_deviations).exp()
        return -0.5 * (normal.square() + _LOG_2_PI) - log_deviations

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the sum of log deviation + log(2 pi e) / 2 over dimensions."""
        return (_split(outputs)[1] + 0.5 * (1.0 + _LOG_2_PI)).sum(-1)

    def kl(self, old_outputs: Tensor, outputs: Tensor) -> Tensor:
        """Return the sum of divergences over dimensions."""
        old_means, old_log_deviations = _split(old_outputs)
        means, log_deviations = _split(outputs)
        shift = (old_means - means) * (-log_deviations).exp()
        log_ratio = old_log_deviations - log_deviations
        # For nearly equal deviations, expm1 keeps the digits that exp(2 r) - 1 would lose.
        return (0.5 * ((2.0 * log_ratio).expm1() - 2.0 * log_ratio + shift.square())).sum(-1)

    def deviation(self, outputs: Tensor) -> Tensor:
        """Return the mean standard deviation over dimensions."""
        return _split(outputs)[1].exp().mean(-1)

    def to_environment(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Scale [-1, 1] to the range of bounded dimensions, then clip."""
        return self._to_box(actions.astype(np.float64))

    def elements(self, actions: Tensor) -> Tensor:
        """Scale [-1, 1] to the range of bounded dimensions, then clip."""
        return self._tensor_to_box(actions.double())


class GaussianHead(nn.Module):
    """Predicts state-dependent means, and log deviations that are the same in every state."""

    def __init__(self, num_features: int, num_dimensions: int, log_deviation_init: float) -> None:
        """Start with means near 0 and one deviation for all dimensions."""
        super().__init__()
        self.means = nn.Linear(num_features, num_dimensions)
        orthogonal(self.means, HEAD_GAIN)
        self.log_deviations = nn.Parameter(torch.full((num_dimensions,), log_deviation_init))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, F) to outputs (B, 2D)."""
        means = self.means(features)
        return torch.cat([means, self.log_deviations.expand_as(means)], -1)


def _split(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return a Gaussian's means and log deviations, (B, D) each."""
    means, log_deviations = outputs.chunk(2, -1)
    return means, log_deviations.clamp(*_LOG_DEVIATIONS)
