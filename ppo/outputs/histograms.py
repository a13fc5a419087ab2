"""What a rollout was like, for TensorBoard: the spread of a bounded sample of its numbers, and what the policy says.

It is rank 0's rollout, whose environments are the fewer the more ranks there are. Nothing is drawn at random, and
nothing of the training is changed.
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
    """How often numbers lie in bins."""

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    numbers: NDArray[np.float64]
    """What was counted."""


@dataclass(frozen=True)
class Look:
    """A rollout at a glance, by the names in TensorBoard."""

    histograms: dict[str, Histogram]
    means: dict[str, float]


@torch.inference_mode()
def look_at(rollout: Rollout, samples: Samples | None, distribution: ActionDistribution) -> Look:
    """Look at a rollout and at what was learnt from it.

    Args:
        rollout: of this rank, (T, N, ...).
        samples: what the newest update made of it, (T * N, ...): advantages as normalised over the batch, returns in
            the units of the value head. None if nothing was learnt from it.
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
    """Return a sample of (T, N, ...): by dimension, if these are vectors of few, or all in one."""
    rows = _sampled(tensor).double().cpu().numpy()
    if rows.ndim == 2 and 1 < rows.shape[1] <= _MOST_PLOTS:
        return {f"{name}/{number}": column for number, column in enumerate(rows.T)}
    return {name: rows.flatten()}


def _sampled(tensor: Tensor) -> Tensor:
    """Return some rows of (T, N, ...), of images and long vectors some numbers: MOST_NUMBERS at most, or one row."""
    rows = tensor.flatten(0, 1)
    if rows.dim() == 2:
        rows = rows[:, :: _stride(rows.shape[1], MOST_ROWS)]
    elif rows.dim() == 4:
        height, width = (_stride(side, _PIXELS_A_SIDE) for side in rows.shape[2:])
        rows = rows[..., ::height, ::width]
    # An odd step meets all environments where their number is a power of two.
    return rows[:: _stride(len(rows), max(1, min(MOST_ROWS, MOST_NUMBERS // rows[0].numel()))) | 1]


def _stride(size: int, most: int) -> int:
    """Return k so that every k-th of so many are at most `most`."""
    return -(-size // most)


def _histogram(numbers: NDArray[Any]) -> Histogram:
    finite = numbers[np.isfinite(numbers)]
    counts, edges = np.histogram(finite, _NUM_BINS)
    return Histogram(edges, counts, finite)
