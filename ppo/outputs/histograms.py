"""Statistics of a rollout for TensorBoard: histograms of a bounded sample of its numbers, and means of the policy.

Only rank 0's rollout is used; the more ranks, the fewer its environments. Sampling uses no randomness and does not
affect training.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo.algorithm.rollout import Rollout
from ppo.algorithm.samples import Samples
from ppo.models.distributions import ActionDistribution

MOST_ROWS = 1024
MOST_NUMBERS = 16_384
_MOST_PLOTS = 32
_PIXELS_A_SIDE = 10
_NUM_BINS = 30


@dataclass(frozen=True)
class Histogram:
    """Counts of numbers per bin."""

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    numbers: NDArray[np.float64]
    """The numbers that were counted."""


@dataclass(frozen=True)
class Look:
    """Statistics of a rollout, by their names in TensorBoard."""

    histograms: dict[str, Histogram]
    means: dict[str, float]


@torch.inference_mode()
def look_at(rollout: Rollout, samples: Samples | None, distribution: ActionDistribution) -> Look:
    """Summarise a rollout and the samples that were learnt from.

    Args:
        rollout: this rank's rollout, (T, N, ...).
        samples: the rollout's samples in the newest update, (T * N, ...): advantages as normalised over the batch,
            returns in the units of the value head. None if nothing was learnt from it.
        distribution: interprets the outputs of the policy head.
    """
    numbers = {**_each("observations", rollout.observations), **_each("actions", rollout.actions)}
    numbers |= _each("rewards", rollout.rewards)
    if samples is not None:
        for name in ("returns", "advantages"):
            numbers |= _each(name, getattr(samples, name).view(rollout.rewards.shape))
    outputs = _sampled(rollout.outputs)
    means = {}
    if (deviation := distribution.deviation(outputs)) is not None:
        means["policy/deviation"] = float(deviation.mean())
    if (probabilities := distribution.probabilities(outputs)) is not None:
        of_each = probabilities.mean(0).tolist()[:_MOST_PLOTS]
        means |= {f"policy/probability/{number}": mean for number, mean in enumerate(of_each)}
    return Look({name: _histogram(drawn) for name, drawn in numbers.items()}, means)


def _each(name: str, tensor: Tensor) -> dict[str, NDArray[np.float64]]:
    """Return a sample of a tensor (T, N, ...): by dimension for short vectors, otherwise all in one array."""
    rows = _sampled(tensor).double().cpu().numpy()
    if rows.ndim == 2 and 1 < rows.shape[1] <= _MOST_PLOTS:
        return {f"{name}/{number}": column for number, column in enumerate(rows.T)}
    return {name: rows.flatten()}


def _sampled(tensor: Tensor) -> Tensor:
    """Return some rows of (T, N, ...), thinning images and long vectors: at most MOST_NUMBERS numbers, or one row."""
    rows = tensor.flatten(0, 1)
    if rows.dim() == 2:
        rows = rows[:, :: _stride(rows.shape[1], MOST_ROWS)]
    elif rows.dim() == 4:
        height, width = (_stride(side, _PIXELS_A_SIDE) for side in rows.shape[2:])
        rows = rows[..., ::height, ::width]
    # An odd stride reaches all environments if their number is a power of two.
    return rows[:: _stride(len(rows), max(1, min(MOST_ROWS, MOST_NUMBERS // rows[0].numel()))) | 1]


def _stride(size: int, most: int) -> int:
    """Return the smallest k for which every k-th of `size` items makes at most `most`."""
    return -(-size // most)


def _histogram(numbers: NDArray[Any]) -> Histogram:
    finite = numbers[np.isfinite(numbers)]
    counts, edges = np.histogram(finite, _NUM_BINS)
    return Histogram(edges, counts, finite)
