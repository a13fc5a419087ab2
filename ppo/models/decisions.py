"""What an agent saw, said and did in one step of one environment, for those who watch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo.models.distributions import Marginal


@dataclass(frozen=True)
class Decision:
    """One step of one environment."""

    observation: NDArray[Any]
    """What the network saw."""
    value: float
    """What it expected of the rest of the game: discounted, in units of the rewards that it learnt from."""
    marginals: Sequence[Marginal]
    """What it said of each number of an action; none where the distribution does not tell."""
    sent: NDArray[np.float64]
    """The numbers that the world was sent, one for each marginal."""
    episode_return: float
    """The raw return of the game so far."""
    episode_length: int
    """Agent steps of the game so far."""
