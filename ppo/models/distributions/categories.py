"""Distributions over categories and bits."""

import abc
import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ppo.models.distributions.base import ActionDistribution, Marginal, Space, tensor_dtype


class _Categories(ActionDistribution):
    """Categories chosen by Gumbel noise; each output is the unnormalised log-probability (logit) of one."""

    def noise(self, generator: np.random.Generator, steps: int) -> NDArray[np.float32]:
        """Draw Gumbel noise for each category."""
        return gumbel_noise(generator, (steps, *self.noise_shape))

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Return the category with the largest logit plus noise (Maddison et al. 2014, arXiv:1411.0030, eq. 3).

        No probabilities are needed: after the network, acting takes only two operations on small tensors.
        """
        return self.mode(outputs + noise)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return -sum p log p."""
        log_probs = self._log_probs(outputs)
        return -(log_probs.exp() * log_probs).sum(-1)

    def kl(self, old_outputs: Tensor, outputs: Tensor) -> Tensor:
        """Return sum p_old (log p_old - log p)."""
        old_log_probs = self._log_probs(old_outputs)
        return (old_log_probs.exp() * (old_log_probs - self._log_probs(outputs))).sum(-1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probability of each category."""
        return self._log_probs(outputs).exp()

    @abc.abstractmethod
    def _log_probs(self, outputs: Tensor) -> Tensor:
        """Return the normalised log-probabilities of all categories, (B, K)."""


class Categorical(_Categories):
    """One of A actions, A = K."""

    name = "categorical"

    def __init__(self, space: Space) -> None:
        """Build for a Discrete space with any start."""
        assert isinstance(space, spaces.Discrete)
        self._start, self._environment_dtype = space.start, space.dtype
        self.num_outputs = int(space.n)
        self.action_shape = ()
        self.noise_shape = (self.num_outputs,)

    @classmethod
    def refusal(cls, space: Space) -> str | None:
        """Refuse all but Discrete spaces."""
        return None if isinstance(space, spaces.Discrete) else "needs a Discrete space"

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the most probable action; the first in a tie."""
        return outputs.argmax(-1)

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Return the log-probability of each action."""
        return self._log_probs(outputs).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def to_environment(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Count from the start of the space."""
        counted: NDArray[Any] = actions + self._start
        return counted.astype(self._environment_dtype, copy=False)

    def marginals(self, outputs: Tensor) -> list[Marginal]:
        """Return the probabilities of the actions."""
        return [_categories(self.probabilities(outputs), int(self._start))]

    def elements(self, actions: Tensor) -> Tensor:
        """Count from the start of the space."""
        return (actions + int(self._start)).to(tensor_dtype(self._environment_dtype))

    def _log_probs(self, outputs: Tensor) -> Tensor:
        return outputs.log_softmax(-1)


class MultiCategorical(_Categories):
    """One category in each of D independent dimensions; the outputs of a dimension are adjacent."""

    name = "multi_categorical"

    def __init__(self, space: Space) -> None:
        """Build for a MultiDiscrete space of any shape and any starts."""
        assert isinstance(space, spaces.MultiDiscrete)
        self._space = space
        self.sizes = [int(size) for size in space.nvec.flat]
        self.num_outputs = sum(self.sizes)
        self.action_shape = (len(self.sizes),)
        self.noise_shape = (self.num_outputs,)

    @classmethod
    def refusal(cls, space: Space) -> str | None:
        """Refuse all but MultiDiscrete spaces."""
        return None if isinstance(space, spaces.MultiDiscrete) else "needs a MultiDiscrete space"

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the most probable category of each dimension; the first in a tie."""
        return torch.stack([own.argmax(-1) for own in torch.split(outputs, self.sizes, -1)], -1)

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Return the sum of log-probabilities over dimensions."""
        dimensions = zip(
            torch.split(self._log_probs(outputs), self.sizes, -1), torch.split(actions, 1, -1), strict=True
        )
        return torch.cat([log_probs.gather(-1, category) for log_probs, category in dimensions], -1).sum(-1)

    def to_environment(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Count from the start of each dimension."""
        counted: NDArray[Any] = actions.reshape(*actions.shape[:-1], *self._space.shape) + self._space.start
        return counted.astype(self._space.dtype, copy=False)

    def marginals(self, outputs: Tensor) -> list[Marginal]:
        """Return the probabilities of each dimension's categories."""
        dimensions = torch.split(self.probabilities(outputs), self.sizes, -1)
        starts = self._space.start.flatten().tolist()
        return [_categories(own, start) for own, start in zip(dimensions, starts, strict=True)]

    def elements(self, actions: Tensor) -> Tensor:
        """Count from the start of each dimension."""
        counted = actions.reshape(*actions.shape[:-1], *self._space.shape) + torch.from_numpy(self._space.start)
        return counted.to(tensor_dtype(self._space.dtype))

    def _log_probs(self, outputs: Tensor) -> Tensor:
        return torch.cat([own.log_softmax(-1) for own in torch.split(outputs, self.sizes, -1)], -1)


class Bernoulli(ActionDistribution):
    """Independent bits; each output is the log-odds (logit) of a 1."""

    name = "bernoulli"

    def __init__(self, space: Space) -> None:
        """Build for a MultiBinary space of any shape."""
        assert isinstance(space, spaces.MultiBinary)
        self._space = space
        self.num_outputs = math.prod(space.shape)
        self.action_shape = self.noise_shape = (self.num_outputs,)

    @classmethod
    def refusal(cls, space: Space) -> str | None:
        """Refuse all but MultiBinary spaces."""
        return None if isinstance(space, spaces.MultiBinary) else "needs a MultiBinary space"

    def noise(self, generator: np.random.Generator, steps: int) -> NDArray[np.float32]:
        """Draw standard logistic noise, log(u / (1 - u)), for each bit."""
        # A u of 0, drawn once in 2^53, would clear a bit regardless of its probability.
        u = np.maximum(generator.random((steps, *self.noise_shape)), 2.0**-54)
        noise: NDArray[np.float32] = (np.log(u) - np.log1p(-u)).astype(np.float32)
        return noise

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Set the bits whose log-odds and noise have a positive sum."""
        return self.mode(outputs + noise)

    def mode(self, outputs: Tensor) -> Tensor:
        """Set the bits that are more likely 1 than 0."""
        return (outputs > 0.0).to(self.dtype)

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Return the sum of log-probabilities over bits."""
        return functional.logsigmoid(torch.where(actions > 0, outputs, -outputs)).sum(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the sum of entropies over bits."""
        set_part = outputs.sigmoid() * functional.logsigmoid(outputs)
        clear_part = (-outputs).sigmoid() * functional.logsigmoid(-outputs)
        return -(set_part + clear_part).sum(-1)

    def kl(self, old_outputs: Tensor, outputs: Tensor) -> Tensor:
        """Return the sum of divergences over bits."""
        set_part = old_outputs.sigmoid() * (functional.logsigmoid(old_outputs) - functional.logsigmoid(outputs))
        clear_part = (-old_outputs).sigmoid() * (functional.logsigmoid(-old_outputs) - functional.logsigmoid(-outputs))
        return (set_part + clear_part).sum(-1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the probability of a 1 for each bit."""
        return outputs.sigmoid()

    def marginals(self, outputs: Tensor) -> list[Marginal]:
        """Return the probabilities of a 0 and of a 1 for each bit."""
        return [_categories(own, 0) for own in torch.stack([(-outputs).sigmoid(), outputs.sigmoid()], -1)]

    def to_environment(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Return the bits in the shape of the space."""
        return actions.reshape(*actions.shape[:-1], *self._space.shape).astype(self._space.dtype)

    def elements(self, actions: Tensor) -> Tensor:
        """Return the bits in the shape of the space."""
        return actions.reshape(*actions.shape[:-1], *self._space.shape).to(tensor_dtype(self._space.dtype))


def gumbel_noise(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return independent draws of the standard Gumbel distribution: -log E, where E is exponential with mean 1."""
    # A draw of 0, once in 2^53, would give infinite noise and choose an action however improbable.
    exponential = np.maximum(generator.standard_exponential(shape), np.finfo(np.float64).tiny)
    noise: NDArray[np.float32] = -np.log(exponential).astype(np.float32)
    return noise


def _categories(probabilities: Tensor, start: int) -> Marginal:
    return Marginal(probabilities.double().cpu().numpy(), start=start)
