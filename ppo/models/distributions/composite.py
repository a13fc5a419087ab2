"""Distributions over Dicts and Tuples of actions."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ppo.envs.actions import ActionSpace, CompositeSpace
from ppo.models.distributions.base import ActionDistribution, Marginal, Space
from ppo.models.distributions.categories import Bernoulli, Categorical, MultiCategorical
from ppo.models.distributions.gaussian import Gaussian

_WITHOUT_OPTIONS = (Categorical, MultiCategorical, Bernoulli)


class Composite(ActionDistribution):
    """A distribution for each part of a Dict or Tuple of actions; in a given state the parts are independent.

    A raw action concatenates those of the parts, with categories as float32, which is exact up to 2^24.
    """

    name = "composite"
    options = Gaussian.options
    dtype = torch.float32

    def __init__(self, space: Space, **options: Any) -> None:
        """Build for a CompositeSpace; the options apply to its Boxes."""
        assert isinstance(space, CompositeSpace)
        self._parts = [_of_part(part, options) for part in space.parts]
        self._output_sizes = [part.num_outputs for part in self._parts]
        self._action_sizes = [math.prod(part.action_shape) for part in self._parts]
        self._noise_sizes = [math.prod(part.noise_shape) for part in self._parts]
        self.num_outputs = sum(self._output_sizes)
        self.action_shape, self.noise_shape = (sum(self._action_sizes),), (sum(self._noise_sizes),)

    @classmethod
    def refusal(cls, space: Space) -> str | None:
        """Refuse all but Dict and Tuple spaces, as flattened by `ppo.envs.actions`."""
        return None if isinstance(space, CompositeSpace) else "needs a Dict or Tuple space"

    def head(self, num_features: int) -> nn.Module:
        """Build a head for each part."""
        return CompositeHead([part.head(num_features) for part in self._parts])

    def noise(self, generator: np.random.Generator, steps: int) -> NDArray[np.float32]:
        """Draw each part's noise from a separate generator, so that more steps leave the first ones unchanged."""
        seeds = generator.integers(2**63, size=len(self._parts))
        draws = [part.noise(np.random.default_rng(seed), steps) for part, seed in zip(self._parts, seeds, strict=True)]
        return np.concatenate([draw.reshape(steps, -1) for draw in draws], 1)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Sample every part."""
        noises = torch.split(noise, self._noise_sizes, -1)
        return self._joined(
            part.sample(own, noise.reshape(*noise.shape[:-1], *part.noise_shape))
            for part, own, noise in zip(self._parts, self._outputs(outputs), noises, strict=True)
        )

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the mode of every part."""
        return self._joined(part.mode(own) for part, own in zip(self._parts, self._outputs(outputs), strict=True))

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Return the sum over parts."""
        terms = zip(self._parts, self._outputs(outputs), self._actions(actions), strict=True)
        return _sum(part.log_prob(own, action) for part, own, action in terms)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the sum over parts."""
        return _sum(part.entropy(own) for part, own in zip(self._parts, self._outputs(outputs), strict=True))

    def kl(self, old_outputs: Tensor, outputs: Tensor) -> Tensor:
        """Return the sum over parts."""
        terms = zip(self._parts, self._outputs(old_outputs), self._outputs(outputs), strict=True)
        return _sum(part.kl(old, new) for part, old, new in terms)

    def marginals(self, outputs: Tensor) -> list[Marginal]:
        """Return the marginals of all parts."""
        parts = zip(self._parts, self._outputs(outputs), strict=True)
        return [marginal for part, own in parts for marginal in part.marginals(own)]

    def to_environment(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Return the elements of all parts, one after the other."""
        own = zip(self._parts, self._actions(torch.from_numpy(actions)), strict=True)
        elements = [part.to_environment(action.numpy()) for part, action in own]
        lead = actions.shape[:-1]
        return np.concatenate([element.reshape(*lead, -1).astype(np.float64) for element in elements], -1)

    def elements(self, actions: Tensor) -> Tensor:
        """Return the elements of all parts, one after the other."""
        own = [part.elements(action) for part, action in zip(self._parts, self._actions(actions), strict=True)]
        return torch.cat([element.reshape(*actions.shape[:-1], -1).double() for element in own], -1)

    def _outputs(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Return each part's outputs."""
        return torch.split(outputs, self._output_sizes, -1)

    def _actions(self, actions: Tensor) -> list[Tensor]:
        """Return each part's raw actions, in its own type and shape."""
        numbers = zip(self._parts, torch.split(actions, self._action_sizes, -1), strict=True)
        return [own.reshape(*own.shape[:-1], *part.action_shape).to(part.dtype) for part, own in numbers]

    def _joined(self, actions: Iterable[Tensor]) -> Tensor:
        """Concatenate the parts' raw actions into one."""
        parts = zip(self._parts, actions, strict=True)
        return torch.cat([own.reshape(*_lead(own, part), -1).to(self.dtype) for part, own in parts], -1)


class CompositeHead(nn.ModuleList):
    """The heads of all parts of a composite distribution."""

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, F) to outputs (B, K), part by part."""
        return torch.cat([head(features) for head in self], -1)


def _of_part(space: ActionSpace, options: dict[str, Any]) -> ActionDistribution:
    """Build the distribution of a part; only Boxes have options."""
    if Gaussian.refusal(space) is None:
        return Gaussian(space, **options)
    return next(kind(space) for kind in _WITHOUT_OPTIONS if kind.refusal(space) is None)


def _lead(actions: Tensor, kind: ActionDistribution) -> torch.Size:
    """Return the axes before those of one raw action."""
    return actions.shape[: actions.dim() - len(kind.action_shape)]


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(0)
