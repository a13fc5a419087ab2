"""Statistics of observations, by which a network centres and scales its inputs.

They hold the moments of all pixels, or of each entry of a vector, and are part of the agent: saved with its weights,
frozen when it plays. The training loop updates them with each rollout after its last gradient step, on all ranks alike.
They never change between acting and learning, so the ratios in an update's first minibatch are 1.

The first convolution of our CNNs absorbs them into its weights, which are far smaller than the observations; for any
other network they are applied to the observations.
"""

import abc

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ppo.collectives import Collective
from ppo.collectives.moments import Moments, merged, moments_of_integers, moments_over_ranks

# The pixels of every 64th step determine mean and deviation to far more digits than matter.
_STEPS_PER_PIXEL_SAMPLE = 64


class InputStatistics(nn.Module, abc.ABC):
    """Moments of observations, and the mean and deviation applied to them."""

    moments: Tensor
    """Count, mean and sum of squared differences from the mean, (3, *S) float64."""
    applied: Tensor
    """Mean and deviation, (2, *S) float32."""

    def __init__(self, shape: tuple[int, ...], mean: float, deviation: float, *, follows: bool) -> None:
        """Start with a given mean and deviation.

        Args:
            shape: S, () for one mean of all entries.
            mean: applied until observations are followed.
            deviation: likewise.
            follows: whether to follow observations; otherwise mean and deviation never change.
        """
        super().__init__()
        self.follows = follows
        self.register_buffer("moments", torch.zeros(3, *shape, dtype=torch.float64))
        self.register_buffer("applied", torch.stack([torch.full(shape, mean), torch.full(shape, deviation)]))

    @property
    def waits_for_first_rollout(self) -> bool:
        """Whether the next rollout only initialises the moments, without a gradient step."""
        return False

    def follow(self, observations: Tensor, comm: Collective) -> None:
        """Merge the moments of a rollout over all ranks with those so far; called by all ranks together.

        Args:
            observations: (T, N, ...).
            comm: the ranks.
        """
        if self.follows:
            old = Moments(*self.moments.cpu().numpy())
            new = merged(old, self._moments_of(observations, comm))
            numbers = np.stack([np.broadcast_to(part, new.mean.shape) for part in (new.count, new.mean, new.squares)])
            self.moments.copy_(torch.from_numpy(numbers))
            deviation = np.maximum(new.deviation, self._least_deviation)
            self.applied.copy_(torch.from_numpy(np.stack([new.mean, deviation])))

    _least_deviation: float

    @abc.abstractmethod
    def _moments_of(self, observations: Tensor, comm: Collective) -> Moments:
        """Return the moments of a rollout over all ranks, each (*S)."""


class PixelStatistics(InputStatistics):
    """One mean and deviation of all pixels, initially 0 and 255."""

    _least_deviation = 1.0

    def __init__(self, *, follows: bool) -> None:
        """Divide pixels by 255 until observations are followed."""
        super().__init__((), 0.0, 255.0, follows=follows)

    def forward(self, observations: Tensor) -> Tensor:
        """Map pixels (B, C, H, W) to float32 of the same shape."""
        mean, deviation = self.applied
        scaled: Tensor = (observations.to(torch.float32) - mean) / deviation
        return scaled

    def _moments_of(self, observations: Tensor, comm: Collective) -> Moments:
        pixels = observations[::_STEPS_PER_PIXEL_SAMPLE]
        sums = np.array([pixels.numel(), *sums_of_powers(pixels).cpu().tolist()], np.float64)
        return moments_of_integers(sums, comm)


class VectorStatistics(InputStatistics):
    """A mean and deviation for each entry of a vector (D,), and the bound to which scaled entries are clipped."""

    _least_deviation = 1e-4

    def __init__(self, num_entries: int, *, follows: bool, clip: float | None) -> None:
        """Leave vectors unchanged until observations are followed."""
        super().__init__((num_entries,), 0.0, 1.0, follows=follows)
        self.clip = clip

    @property
    def waits_for_first_rollout(self) -> bool:
        """True before a new run's first rollout, so that no gradient step is taken on inputs of unknown scale."""
        return self.follows and not bool(self.moments[0].any())

    def forward(self, observations: Tensor) -> Tensor:
        """Map vectors (B, D) to the same shape."""
        if not self.follows:
            return observations
        mean, deviation = self.applied
        scaled: Tensor = (observations - mean) / deviation
        return scaled if self.clip is None else scaled.clamp(-self.clip, self.clip)

    def _moments_of(self, observations: Tensor, comm: Collective) -> Moments:
        return moments_over_ranks(observations.flatten(0, 1).T, comm)


def sums_of_powers(pixels: Tensor) -> Tensor:
    """Return the exact sums of uint8 pixels and of their squares, (2,) float64."""
    # 255^2 * 256 < 2^24: float32 sums these rows without rounding, in a third of the time that integers take.
    rows = pixels.flatten().to(torch.float32)
    rows = functional.pad(rows, (0, -len(rows) % 256)).view(-1, 256)
    return torch.stack([rows.sum(-1), rows.square().sum(-1)]).double().sum(-1)
