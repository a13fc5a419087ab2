"""What a distribution over actions is, whatever the kind of action."""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppo.models.encoders import orthogonal
from ppo.settings import Refusal

Space = gymnasium.Space[Any]
Rule = Literal["mean", "mode", "sample"]
"""How an agent chooses actions from its distribution: the name of a method."""

# The first policy is nearly the same in every state (Andrychowicz et al. 2021, arXiv:2006.05990, section 3.2).
HEAD_GAIN = 0.01


@dataclass(frozen=True)
class Marginal:
    """The marginal distribution of one dimension of one action, for display."""

    values: NDArray[np.float64]
    """The probability of each category, or the density at evenly spaced points of the range, (P,)."""
    range: tuple[float, float] | None = None
    """Environment actions at the ends of the range; None for categories."""
    start: int = 0
    """Environment action of the first category."""


class ActionDistribution(abc.ABC):
    """A kind of distribution over the actions of one space; it holds no weights and no state.

    Outputs are (B, K), raw actions (B, *action_shape). Results per state are (B,), in nats.
    """

    name: ClassVar[str]
    """The value of the setting `policy` that selects this kind."""
    rules: ClassVar[tuple[Rule, ...]] = ("mode", "sample")
    """The rules by which an agent can play."""
    default_rule: ClassVar[Rule] = "sample"
    """The rule unless the user chooses another."""
    options: ClassVar[tuple[str, ...]] = ()
    """Keyword arguments of the constructor."""
    dtype: ClassVar[torch.dtype] = torch.int64
    """Type of raw actions."""

    action_shape: tuple[int, ...]
    """Shape of one raw action."""
    noise_shape: tuple[int, ...]
    """Shape of the noise of one step."""
    num_outputs: int
    """K."""

    @classmethod
    @abc.abstractmethod
    def refusal(cls, space: Space) -> str | None:
        """Return what the kind needs and the space lacks, as in "needs a Discrete space"; None if supported."""

    def head(self, num_features: int) -> nn.Module:
        """Build the module that maps features (B, num_features) to outputs (B, K)."""
        return orthogonal(nn.Linear(num_features, self.num_outputs), HEAD_GAIN)

    @abc.abstractmethod
    def noise(self, generator: np.random.Generator, steps: int) -> NDArray[np.float32]:
        """Draw the noise of successive steps, (steps, *noise_shape); more steps leave the first ones unchanged."""

    @abc.abstractmethod
    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Return the raw actions determined by noise (B, *noise_shape)."""

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the mean raw actions, if "mean" is one of the rules."""
        raise AssertionError(f"{self.name} actions have no mean")

    @abc.abstractmethod
    def mode(self, outputs: Tensor) -> Tensor:
        """Return the most probable raw actions."""

    @abc.abstractmethod
    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Return the log-probability, or log-density, of raw actions: the sum over their dimensions."""

    @abc.abstractmethod
    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the entropy; that of a density can be negative."""

    @abc.abstractmethod
    def kl(self, old_outputs: Tensor, outputs: Tensor) -> Tensor:
        """Return the Kullback-Leibler divergence KL(old || new)."""

    def deviation(self, outputs: Tensor) -> Tensor | None:
        """Return the standard deviation of raw actions, averaged over dimensions; None where undefined."""
        return None

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        """Return the probability of each category, or of a 1 for each bit, (B, K); None where undefined."""
        return None

    def marginals(self, outputs: Tensor) -> list[Marginal]:
        """Return the marginal of each number of a raw action, for the outputs (K,) of one state; empty if unknown."""
        return []

    @abc.abstractmethod
    def to_environment(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Convert raw actions (B, *action_shape) to elements of the space, (B, *space.shape) of its dtype."""

    def elements(self, actions: Tensor) -> Tensor:
        """Do the same as `to_environment`, on tensors, so that it can be exported.

        Raises:
            Refusal: the distribution is user-defined and does not override this method.
        """
        raise Refusal(
            f"an agent with {self.name} actions cannot be exported: {type(self).__name__} does not implement `elements`"
        )


def tensor_dtype(dtype: Any) -> torch.dtype:
    """Return the PyTorch type that corresponds to a numpy type."""
    named: torch.dtype = getattr(torch, np.dtype(dtype).name)
    return named
