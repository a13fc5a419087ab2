"""Statistics of an update: mean loss terms, gradient norms and the noise scale; halts a run that diverges."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ppo.algorithm.noise_scale import GradientNoiseScale
from ppo.collectives import Halt

# The norm of a rank's own gradient takes an extra pass over the gradient.
_STEPS_PER_NOISE_SAMPLE = 4


def measures_noise(minibatch: int) -> bool:
    """Return whether noise is measured in this minibatch of an epoch."""
    return minibatch % _STEPS_PER_NOISE_SAMPLE == 0


class UpdateStatistics:
    """Collects the statistics of one update, epoch by epoch."""

    def __init__(self, terms: Sequence[str], noise_scale: GradientNoiseScale) -> None:
        """Start empty.

        Args:
            terms: names of the logged loss terms.
            noise_scale: observes every measured minibatch.
        """
        self._terms, self._noise_scale = terms, noise_scale
        self._sums = np.zeros(len(terms))
        self._norms: list[float] = []
        self.num_epochs = 0

    def add_epoch(self, of_steps: NDArray[np.float64], sums: NDArray[np.float64], update: int) -> float:
        """Add an epoch of K minibatches and return its KL.

        Args:
            of_steps: gradient norm before clipping and mean over ranks of each rank's squared norm, (K, 2).
            sums: of the terms over the K minibatches, each term being a mean over the job's minibatch.
            update: number of the update, for the message.

        Raises:
            Halt: a value is non-finite; raised on all ranks alike.
        """
        norms = of_steps[:, 0].tolist()
        if not (np.isfinite(of_steps).all() and np.isfinite(sums).all()):
            norm = next((norm for norm in norms if not math.isfinite(norm)), norms[-1])
            terms = zip(self._terms, sums / len(norms), strict=True)
            raise Halt(
                f"the loss or the gradient of update {update + 1} is not finite (gradient norm {norm:g}, "
                f"{', '.join(f'{name} {mean:g}' for name, mean in terms)}); the update was not saved and the "
                "last checkpoint is intact. Try a lower --learning_rate"
            )
        if self._noise_scale.is_measured:
            for number, (norm, squared_gradient_of_a_rank) in enumerate(of_steps.tolist()):
                if measures_noise(number):
                    self._noise_scale.observe(squared_gradient_of_a_rank, norm * norm)
        self._norms += norms
        self._sums += sums
        self.num_epochs += 1
        return float(sums[self._terms.index("approx_kl")]) / len(norms)

    def metrics(self) -> dict[str, float | None]:
        """Return the means over all minibatches of the update, by column of the log; None without minibatches."""
        count = len(self._norms)
        means = [float(total) / count if count else None for total in self._sums]
        return {
            **{f"update/{name}": mean for name, mean in zip(self._terms, means, strict=True)},
            "update/grad_norm": float(np.mean(self._norms)) if count else None,
            "update/noise_scale": self._noise_scale.value,
            "update/epochs": self.num_epochs,
        }
