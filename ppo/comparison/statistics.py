"""Statistics of a few runs (Agarwal et al. 2021, arXiv:2108.13264): interquartile mean, bootstrap, performance profile.

The first axis of every array is the runs.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_RESAMPLES = 2000
_CONFIDENCE = 95.0


def mean(samples: Floats, axis: int = 0) -> Floats:
    """Return the mean over an axis."""
    return np.asarray(np.mean(samples, axis=axis))


def interquartile_mean(samples: Floats, axis: int = 0) -> Floats:
    """Return the mean of the middle half over an axis of length n: without the n // 4 lowest and n // 4 highest."""
    count = samples.shape[axis]
    middle = np.arange(count // 4, count - count // 4)
    return np.asarray(np.mean(np.take(np.sort(samples, axis=axis), middle, axis=axis), axis=axis))


def performance_profile(samples: Floats, thresholds: Floats) -> Floats:
    """Return the share of runs whose score exceeds each threshold: (runs,), (X,) -> (X,)."""
    return np.asarray(np.mean(samples[:, None] > thresholds, axis=0))


def bootstrap(samples: Floats, statistic: Callable[[Floats, int], Floats] = mean) -> tuple[Floats, Floats]:
    """Return the limits of the 95 % percentile bootstrap interval of a statistic over the runs.

    Deterministic: the same samples give the same limits. For fewer than two runs, both are the statistic itself.

    Args:
        samples: (runs, ...).
        statistic: takes samples and the axis to reduce.
    """
    count = len(samples)
    chosen = np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
    resampled = statistic(samples[chosen], 1)
    tail = (100.0 - _CONFIDENCE) / 2.0
    low, high = np.percentile(resampled, [tail, 100.0 - tail], axis=0)
    return low, high
