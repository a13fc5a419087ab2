"""The gradient noise scale: how many steps a minibatch can have before more of them stop helping.

It is measured nearly for free where gradients are averaged over ranks: McCandlish et al. 2018 (arXiv:1812.06162),
appendix A.1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_DECAY = 0.96


class GradientNoiseScale:
    """Running estimate of tr(S) / |G|^2: the noise of one step's gradient over the square of the true gradient.

    A gradient averaged over b steps has E|g|^2 = |G|^2 + tr(S) / b (eq. A.1). The ranks' own gradients, with small b,
    and their average, with large b, give two equations for the two unknowns. Each unknown has its own running mean,
    since a mean of ratios would be biased.
    """

    def __init__(self, shares: Sequence[int]) -> None:
        """Prepare for minibatches with `shares` steps on each rank; with one rank nothing is measured."""
        self.is_measured = len(shares) > 1
        self._small = sum(1.0 / share for share in shares) / len(shares)
        self._large = 1.0 / sum(shares)
        self._means = torch.zeros(2, dtype=torch.float64)

    def observe(self, mean_of_squares: float, square_of_mean: float) -> None:
        """Add a minibatch to the running means.

        Args:
            mean_of_squares: mean over ranks of |g|^2, g being the mean gradient of the rank's own steps.
            square_of_mean: |g|^2 of the whole minibatch.
        """
        noise = (mean_of_squares - square_of_mean) / (self._small - self._large)
        signal = square_of_mean - noise * self._large
        self._means.lerp_(torch.tensor([noise, signal], dtype=torch.float64), 1.0 - _DECAY)

    @property
    def value(self) -> float | None:
        """The noise scale in steps; None if it is not measured, or while noise hides the gradient."""
        noise, signal = self._means.tolist()
        return noise / signal if self.is_measured and noise > 0.0 and signal > 0.0 else None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the running means of tr(S) and |G|^2, (2,)."""
        return {"noise_and_signal": self._means.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a `state_dict`."""
        self._means.copy_(state["noise_and_signal"])
