"""Moments over all ranks, for normalising advantages and values.

Ranks exchange (count, sum) and sums of squares about the common mean, in float64: never means of unequal counts, never
variances. Pixels are integers, so their squares are summed without subtracting the mean.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo.collectives import Collective

_SMALL = 1e-8
_Numbers = TypeVar("_Numbers", Tensor, NDArray[np.float64], float)


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared differences from the mean, each () or (K,) float64."""

    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @property
    def deviation(self) -> NDArray[np.float64]:
        """The population standard deviation."""
        return np.sqrt(self.squares / np.maximum(self.count, 1.0))


MomentsOverRanks = Callable[[Tensor], Moments]
"""Returns the moments of samples (B,), or of each row of (K, B), over all ranks."""


def moments_over_ranks(samples: Tensor, comm: Collective) -> Moments:
    """Return the moments of samples (B,), or of each row of (K, B), over all ranks; two collectives."""
    local = samples.cpu().double().numpy()
    total = np.stack([np.full(local.shape[:-1], local.shape[-1], np.float64), local.sum(-1)])
    comm.sum_in_place(total)
    count, mean = total[0], total[1] / total[0]
    squares = np.asarray(np.square(local - mean[..., None]).sum(-1))
    comm.sum_in_place(squares)
    return Moments(count, mean, squares)


def moments_of_integers(sums: NDArray[np.float64], comm: Collective) -> Moments:
    """Return moments over all ranks from each rank's count, sum and sum of squares of integers, (3,); one collective.

    Integers below 2^53 are added without rounding, so the moments do not depend on the number of ranks.
    """
    total = sums.copy()
    comm.sum_in_place(total)
    count, first, second = (int(number) for number in total.tolist())
    squares = (count * second - first * first) / count
    return Moments(np.array(count, np.float64), np.array(first / count), np.array(squares))


def merged(old: Moments, new: Moments) -> Moments:
    """Return the combined moments of two batches, Chan et al. 1979, eq. 2.1."""
    count = old.count + new.count
    difference = new.mean - old.mean
    mean = old.mean + difference * new.count / count
    squares = old.squares + new.squares + np.square(difference) * old.count * new.count / count
    return Moments(count, mean, squares)


def standardize(samples: Tensor, moments: Moments) -> Tensor:
    """Scale samples (..., B) to mean 0 and deviation 1 by moments of shape (...)."""
    mean = torch.as_tensor(moments.mean, dtype=samples.dtype, device=samples.device).unsqueeze(-1)
    deviation = torch.as_tensor(moments.deviation, dtype=samples.dtype, device=samples.device).unsqueeze(-1)
    return (samples - mean) / (deviation + _SMALL)


class RunningMoments:
    """Mean and deviation of everything seen so far; the identity until the first update."""

    def __init__(self) -> None:
        """Start empty: mean 0, deviation 1."""
        self._moments = Moments(np.zeros(()), np.zeros(()), np.zeros(()))

    @property
    def mean(self) -> float:
        """The mean, 0 before the first update."""
        return float(self._moments.mean)

    @property
    def deviation(self) -> float:
        """The standard deviation, 1 before the first update; bounded below, so that dividing by it is safe."""
        return max(float(self._moments.deviation), 1e-4) if self._moments.count else 1.0

    def update(self, new: Moments) -> None:
        """Merge in the moments of a batch."""
        self._moments = merged(self._moments, new)

    def normalize(self, samples: Tensor) -> Tensor:
        """Map raw units to normalised ones."""
        return (samples - self.mean) / self.deviation

    def denormalize(self, samples: _Numbers) -> _Numbers:
        """Map normalised units back to raw ones, in a tensor, an array or a number."""
        return samples * self.deviation + self.mean

    def state_dict(self) -> dict[str, Tensor]:
        """Return count, mean and squares as one float64 tensor, (3,)."""
        moments = self._moments
        numbers = np.array([moments.count, moments.mean, moments.squares], np.float64)
        return {"moments": torch.from_numpy(numbers)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a `state_dict`."""
        count, mean, squares = state["moments"].double().numpy()
        self._moments = Moments(np.asarray(count), np.asarray(mean), np.asarray(squares))
