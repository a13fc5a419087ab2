"""What an agent observed, predicted and did in one step of one environment, for display."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo.models.distributions.base import Marginal


@dataclass(frozen=True)
class Decision:
    """One step of one environment."""

    observation: NDArray[Any]
    """The network's input."""
    value: float
    """The predicted discounted return of the rest of the game, in units of the rewards learnt from."""
    marginals: Sequence[Marginal]
    """The predicted distribution of each number of an action; empty where the action distribution has no marginals."""
    sent: NDArray[np.float64]
    """The numbers sent to the environment, one for each marginal."""
    episode_return: float
    """The raw return of the game so far."""
    episode_length: int
    """Agent steps of the game so far."""
    channels_per_picture: int = 1
    """Of an image: 3 if its channels are colours, else 1."""
