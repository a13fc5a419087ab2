"""Action distributions: everything that depends on the kind of action, in one object built for an action space.

Shapes: B minibatch, or any other leading axes; K outputs of the policy head per state; D dimensions of the flattened
space. Raw actions are what a distribution samples and the learner stores; `to_environment` converts them to what the
environment takes. `torch.distributions` computes the same at several times the cost per call.

Every method of tensors works on the device of its arguments and transfers nothing between devices, so that a CUDA graph
can record it.
"""

import abc
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ppo.envs.actions import CompositeSpace
from ppo.models.encoders import orthogonal
from ppo.settings import Refusal

Space = gymnasium.Space[Any]
Rule = Literal["mean", "mode", "sample"]
"""How an agent chooses actions from its distribution: the name of a method."""

# The first policy is nearly the same in every state (Andrychowicz et al. 2021, arXiv:2006.05990, section 3.2).
_HEAD_GAIN = 0.01
_LOG_2_PI = math.log(2.0 * math.pi)
# exp(-10) is 4.5e-5 of half a bounded range. Around 1, float32 resolves such a deviation to 1e-3; rounding the action
# would swallow the noise of a much smaller deviation, and with it the log-probability.
_LOG_DEVIATIONS = (-10.0, 10.0)
_PROPOSALS = 8
_POINTS = 100
"""Number of points at which a density is drawn."""
# Half the distance from 1 to the next float32: 1 - 2^-24 is the largest float32 below 1.
_EDGE = 2.0**-24


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
        return orthogonal(nn.Linear(num_features, self.num_outputs), _HEAD_GAIN)

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
        return (actions + int(self._start)).to(_tensor_dtype(self._environment_dtype))

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
        return counted.to(_tensor_dtype(self._space.dtype))

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
        return actions.reshape(*actions.shape[:-1], *self._space.shape).to(_tensor_dtype(self._space.dtype))


class _BoxDistribution(ActionDistribution):
    """Independent numbers, one per dimension of a Box; two outputs each, all first ones before all second ones."""

    rules = ("mean", "mode", "sample")
    # One Beta agent on CarRacing scored 829 with its mean, 675 with samples and 217 with its mode; another scored 711
    # with its mean and 847 with samples. Validation games choose better than any default.
    default_rule = "mean"
    dtype = torch.float32
    drawn_range: tuple[float, float]
    """Raw actions at the ends of a drawn density."""

    def __init__(self, space: Space, action_start: float | Sequence[float] = 0.5) -> None:
        """Build for a Box of any shape and dtype; only `to_environment` rounds to whole numbers.

        Args:
            space: the Box.
            action_start: mean of the first policy as a fraction of the range, one for all dimensions or one for each.
        """
        assert isinstance(space, spaces.Box)
        self._space = space
        self._low, self._high = (bound.astype(np.float64).flatten() for bound in (space.low, space.high))
        bounded = (space.bounded_below & space.bounded_above).flatten()
        low, high = np.where(bounded, self._low, -1.0), np.where(bounded, self._high, 1.0)
        self._centre, self._half_range = (high + low) / 2.0, (high - low) / 2.0
        self.num_dimensions = math.prod(space.shape)
        self.num_outputs = 2 * self.num_dimensions
        self.action_shape = (self.num_dimensions,)
        fractions = np.asarray(action_start, np.float64)
        if fractions.shape not in ((), self.action_shape) or not ((fractions > 0.0) & (fractions < 1.0)).all():
            raise ValueError(
                f"action_start must be one number in (0, 1), or one for each of {self.num_dimensions} dimensions, "
                f"got {action_start}"
            )
        self._start = np.broadcast_to(fractions, self.action_shape)
        if not bounded[self._start != 0.5].all():
            raise ValueError(f"action_start must be 0.5 for unbounded actions, got {action_start}")

    @classmethod
    def refusal(cls, space: Space) -> str | None:
        """Refuse all but Boxes."""
        return None if isinstance(space, spaces.Box) and not isinstance(space, CompositeSpace) else "needs a Box space"

    def log_prob(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Return the sum of log-densities over dimensions."""
        return self._log_densities(outputs, actions).sum(-1).to(outputs.dtype)

    def marginals(self, outputs: Tensor) -> list[Marginal]:
        """Return the density of each dimension over the range of raw actions."""
        low, high = self.drawn_range
        # Strictly between the bounds, where every density is finite.
        points = (torch.arange(_POINTS, device=outputs.device) + 0.5) * ((high - low) / _POINTS) + low
        densities = self._log_densities(outputs.unsqueeze(0), points.unsqueeze(1)).exp()
        ends = np.array([[low], [high]], np.float32).repeat(self.num_dimensions, 1)
        ranges = self.to_environment(ends).reshape(2, -1).T.astype(np.float64).tolist()
        return [
            Marginal(own, (first, last))
            for own, (first, last) in zip(densities.double().T.cpu().numpy(), ranges, strict=True)
        ]

    @abc.abstractmethod
    def _log_densities(self, outputs: Tensor, actions: Tensor) -> Tensor:
        """Return the log-density of each dimension, (B, D), for raw actions (B, D)."""

    def _to_box(self, actions: NDArray[np.float64]) -> NDArray[Any]:
        """Map [-1, 1] to the range of bounded dimensions, leave others as they are, and clip to all bounds.

        Args:
            actions: (B, D).
        """
        scaled = self._centre + self._half_range * actions
        if np.issubdtype(self._space.dtype, np.integer):
            scaled = np.rint(scaled)
        clipped = np.clip(scaled, self._low, self._high).astype(self._space.dtype)
        return clipped.reshape(*actions.shape[:-1], *self._space.shape)

    def _tensor_to_box(self, actions: Tensor) -> Tensor:
        """Do the same as `_to_box`, on float64 tensors."""
        centre, half_range, low, high = map(torch.from_numpy, (self._centre, self._half_range, self._low, self._high))
        scaled = centre + half_range * actions
        if np.issubdtype(self._space.dtype, np.integer):
            scaled = scaled.round()
        clipped = scaled.clamp(low, high).to(_tensor_dtype(self._space.dtype))
        return clipped.reshape(*actions.shape[:-1], *self._space.shape)


class Gaussian(_BoxDistribution):
    """Independent normal distributions; outputs are D means and D logarithms of standard deviations.

    In a dimension with two bounds, raw actions of -1 and 1 are these bounds. Log-probability and entropy are those of
    the raw action, before it is clipped.
    """

    name = "gaussian"
    options = ("log_deviation_init", "state_dependent_deviation", "action_start")

    def __init__(
        self,
        space: Space,
        *,
        log_deviation_init: float = 0.0,
        state_dependent_deviation: bool = False,
        action_start: float | Sequence[float] = 0.5,
    ) -> None:
        """Build for a Box.

        Args:
            space: the Box.
            log_deviation_init: logarithm of the initial standard deviations, between -10 and 10.
            state_dependent_deviation: predict the deviations from the state, as the means are, instead of one parameter
                per dimension.
            action_start: mean of the first policy as a fraction of the range, one for all dimensions or one for each.
        """
        super().__init__(space, action_start)
        lowest, highest = _LOG_DEVIATIONS
        if not lowest <= log_deviation_init <= highest:
            raise ValueError(f"log_deviation_init must lie in [{lowest:g}, {highest:g}], got {log_deviation_init}")
        self._log_deviation_init = float(log_deviation_init)
        # An unbounded action has no scale but that of the first policy.
        self.drawn_range = (-1.0, 1.0) if space.is_bounded() else (-3.0, 3.0)  # type: ignore[attr-defined]
        self._state_dependent = state_dependent_deviation
        self.noise_shape = self.action_shape

    def head(self, num_features: int) -> nn.Module:
        """Build a linear layer for the means, and parameters or a layer for the deviations."""
        means = torch.from_numpy(2.0 * self._start - 1.0)
        if not self._state_dependent:
            head = GaussianHead(num_features, self.num_dimensions, self._log_deviation_init)
            with torch.no_grad():
                head.means.bias.copy_(means)
            return head
        layer = nn.Linear(num_features, self.num_outputs)
        orthogonal(layer, _HEAD_GAIN)
        with torch.no_grad():
            layer.bias[: self.num_dimensions] = means
            layer.bias[self.num_dimensions :] = self._log_deviation_init
        return layer

    def noise(self, generator: np.random.Generator, steps: int) -> NDArray[np.float32]:
        """Draw standard normal noise."""
        return generator.standard_normal((steps, *self.noise_shape), dtype=np.float32)

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Return mean + deviation * noise."""
        means, log_deviations = _split(outputs)
        return means + log_deviations.exp() * noise

    def mean(self, outputs: Tensor) -> Tensor:
        """Return the means."""
        return outputs.chunk(2, -1)[0]

    def mode(self, outputs: Tensor) -> Tensor:
        """Return the means."""
        return self.mean(outputs)

    def _log_densities(self, outputs: Tensor, actions: Tensor) -> Tensor:
        means, log_deviations = _split(outputs)
        normal = (actions - means) * (-log_deviations).exp()
        return -0.5 * (normal.square() + _LOG_2_PI) - log_deviations

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the sum of log deviation + log(2 pi e) / 2 over dimensions."""
        return (_split(outputs)[1] + 0.5 * (1.0 + _LOG_2_PI)).sum(-1)

    def kl(self, old_outputs: Tensor, outputs: Tensor) -> Tensor:
        """Return the sum of divergences over dimensions."""
        old_means, old_log_deviations = _split(old_outputs)
        means, log_deviations = _split(outputs)
        shift = (old_means - means) * (-log_deviations).exp()
        log_ratio = old_log_deviations - log_deviations
        # For nearly equal deviations, expm1 keeps the digits that exp(2 r) - 1 would lose.
        return (0.5 * ((2.0 * log_ratio).expm1() - 2.0 * log_ratio + shift.square())).sum(-1)

    def deviation(self, outputs: Tensor) -> Tensor:
        """Return the mean standard deviation over dimensions."""
        return _split(outputs)[1].exp().mean(-1)

    def to_environment(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Scale [-1, 1] to the range of bounded dimensions, then clip."""
        return self._to_box(actions.astype(np.float64))

    def elements(self, actions: Tensor) -> Tensor:
        """Scale [-1, 1] to the range of bounded dimensions, then clip."""
        return self._tensor_to_box(actions.double())


class GaussianHead(nn.Module):
    """Predicts state-dependent means, and log deviations that are the same in every state."""

    def __init__(self, num_features: int, num_dimensions: int, log_deviation_init: float) -> None:
        """Start with means near 0 and one deviation for all dimensions."""
        super().__init__()
        self.means = nn.Linear(num_features, num_dimensions)
        orthogonal(self.means, _HEAD_GAIN)
        self.log_deviations = nn.Parameter(torch.full((num_dimensions,), log_deviation_init))

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, F) to outputs (B, 2D)."""
        means = self.means(features)
        return torch.cat([means, self.log_deviations.expand_as(means)], -1)


class Beta(_BoxDistribution):
    """Independent Beta distributions on (0, 1) (Chou et al. 2017, PMLR 70), scaled to the bounds by `to_environment`.

    The first half of the outputs gives alpha = 1 + softplus(output), the second half beta likewise, so there is a
    single peak. Log-densities are those of the raw action and differ by a constant from those of the scaled action. The
    entropy is 0 for the uniform distribution and negative for all others.
    """

    name = "beta"
    options = ("action_start",)
    drawn_range = (0.0, 1.0)

    def __init__(self, space: Space, *, action_start: float | Sequence[float] = 0.5) -> None:
        """Build for a Box with finite bounds.

        Args:
            space: the Box.
            action_start: mean of the first policy as a fraction of the range, one for all dimensions or one for each.
        """
        super().__init__(space, action_start)
        self.noise_shape = (2, 2, _PROPOSALS + 1, self.num_dimensions)

    @classmethod
    def refusal(cls, space: Space) -> str | None:
        """Refuse all but Boxes with finite bounds."""
        is_served = super().refusal(space) is None and isinstance(space, spaces.Box) and space.is_bounded()
        return None if is_served else "needs a Box with finite bounds"

    def head(self, num_features: int) -> nn.Module:
        """Build a linear layer; outputs of 0 give alpha = beta = 1.69, an off-centre start raises the larger one."""
        layer = nn.Linear(num_features, self.num_outputs)
        orthogonal(layer, _HEAD_GAIN)
        least = 1.0 + math.log(2.0)
        shares = np.concatenate([self._start, 1.0 - self._start])
        excess = least * np.maximum(shares / (1.0 - shares), 1.0) - 1.0
        with torch.no_grad():
            # The inverse of softplus.
            layer.bias.copy_(torch.from_numpy(excess + np.log(-np.expm1(-excess))))
        return layer

    def noise(self, generator: np.random.Generator, steps: int) -> NDArray[np.float32]:
        """Draw the proposals of `sample`: x and log u (2) for two Gammas (2), each proposal and each dimension.

        x is standard normal, u uniform. -log u is exponential, as is half the sum of two squared normals, so that one
        call draws all noise in the order of the steps. The last proposal is x = 0, which every Gamma accepts.
        """
        x, *others = np.moveaxis(
            generator.standard_normal((steps, 3, 2, _PROPOSALS, self.num_dimensions), dtype=np.float32), 1, 0
        )
        noise = np.zeros((steps, *self.noise_shape), np.float32)
        noise[:, 0, :, :-1] = x
        noise[:, 1, :, :-1] = -0.5 * (others[0] ** 2 + others[1] ** 2)
        noise[:, 1, :, -1] = -1.0
        return noise

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Return G_alpha / (G_alpha + G_beta), each by the first accepted proposal of Marsaglia and Tsang (2000).

        A proposal is rejected with probability below 5 %, so that the last one is needed once in 10^10 draws.
        """
        d = functional.softplus(outputs) + 2.0 / 3.0
        d = d.reshape(*outputs.shape[:-1], 2, 1, self.num_dimensions)
        x, log_u = noise.unbind(-4)
        # A root of 0 makes the logarithm -infinity, which rejects the proposal as required.
        root = (1.0 + x / (9.0 * d).sqrt()).clamp_min(0.0)
        v = root**3
        accepted = log_u < 0.5 * x.square() + d * (1.0 - v + 3.0 * root.log())
        first = accepted.to(torch.uint8).argmax(-2, keepdim=True)
        of_alpha, of_beta = (d * v.gather(-2, first)).squeeze(-2).unbind(-2)
        return _inside(of_alpha / (of_alpha + of_beta))

    def mean(self, outputs: Tensor) -> Tensor:
        """Return alpha / (alpha + beta)."""
        alpha, beta = (1.0 + functional.softplus(outputs)).chunk(2, -1)
        return _inside(alpha / (alpha + beta))

    def mode(self, outputs: Tensor) -> Tensor:
        """Return (alpha - 1) / (alpha + beta - 2); the mean where the distribution is uniform."""
        left, right = functional.softplus(outputs).chunk(2, -1)
        both = left + right
        return _inside(torch.where(both > 0.0, left / both, 0.5))

    # The following are differences of large numbers, hence float64: float32 is off by 0.004 (log-density) and 0.02
    # (entropy) at alpha = beta = 1e4, by a tenth of that at 1e3. With gradients, float64 takes 15 to 40 % longer.

    def _log_densities(self, outputs: Tensor, actions: Tensor) -> Tensor:
        left, right = _excess(outputs)
        actions = actions.double()
        return left * actions.log() + right * (-actions).log1p() - _log_beta(1.0 + left, 1.0 + right)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return the sum of differential entropies over dimensions."""
        left, right = _excess(outputs)
        alpha, beta = 1.0 + left, 1.0 + right
        mean_log_density = (
            left * alpha.digamma() + right * beta.digamma() - (left + right) * (alpha + beta).digamma()
        ) - _log_beta(alpha, beta)
        return -mean_log_density.sum(-1).to(outputs.dtype)

    def kl(self, old_outputs: Tensor, outputs: Tensor) -> Tensor:
        """Return the sum of divergences over dimensions."""
        old_alpha, old_beta = (1.0 + excess for excess in _excess(old_outputs))
        alpha, beta = (1.0 + excess for excess in _excess(outputs))
        more_alpha, more_beta = old_alpha - alpha, old_beta - beta
        divergence = (
            more_alpha * old_alpha.digamma()
            + more_beta * old_beta.digamma()
            - (more_alpha + more_beta) * (old_alpha + old_beta).digamma()
        ) + (_log_beta(alpha, beta) - _log_beta(old_alpha, old_beta))
        return divergence.sum(-1).to(outputs.dtype)

    def deviation(self, outputs: Tensor) -> Tensor:
        """Return the mean standard deviation over dimensions, as a fraction of the range."""
        alpha, beta = (1.0 + functional.softplus(outputs)).chunk(2, -1)
        both = alpha + beta
        return ((alpha * beta / (both + 1.0)).sqrt() / both).mean(-1)

    def to_environment(self, actions: NDArray[Any]) -> NDArray[Any]:
        """Scale (0, 1) to the bounds."""
        return self._to_box(2.0 * actions.astype(np.float64) - 1.0)

    def elements(self, actions: Tensor) -> Tensor:
        """Scale (0, 1) to the bounds."""
        return self._tensor_to_box(2.0 * actions.double() - 1.0)


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
        of_boxes = [options if Gaussian.refusal(part) is None else {} for part in space.parts]
        self._parts = [make_distribution(part, **own) for part, own in zip(space.parts, of_boxes, strict=True)]
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


def _lead(actions: Tensor, kind: ActionDistribution) -> torch.Size:
    """Return the axes before those of one raw action."""
    return actions.shape[: actions.dim() - len(kind.action_shape)]


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(0)


DISTRIBUTIONS: dict[str, type[ActionDistribution]] = {
    kind.name: kind for kind in (Categorical, MultiCategorical, Bernoulli, Gaussian, Beta, Composite)
}
"""Distributions by value of the setting `policy`; "auto" selects the first that supports the space."""


def make_distribution(space: Space, policy: str = "auto", **options: Any) -> ActionDistribution:
    """Build the distribution for an action space.

    Args:
        space: the action space of one environment.
        policy: "auto", or a name of DISTRIBUTIONS.
        options: options of the chosen kind.

    Raises:
        ValueError: unknown policy, none for this space, or an option that the kind does not have.
    """
    kind = distribution_type(space, policy)
    for option in options:
        if option not in kind.options:
            raise ValueError(
                f"{option} does not apply to policy={kind.name}, whose options are: {', '.join(kind.options) or 'none'}"
            )
    return kind(space, **options)  # type: ignore[call-arg]


def distribution_type(space: Space, policy: str = "auto") -> type[ActionDistribution]:
    """Return the kind of distribution for an action space.

    Raises:
        ValueError: unknown policy, or none for this space.
    """
    serving = [name for name, kind in DISTRIBUTIONS.items() if kind.refusal(space) is None]
    if policy != "auto" and policy not in DISTRIBUTIONS:
        raise ValueError(f"policy must be one of auto, {', '.join(DISTRIBUTIONS)}, got {policy}")
    if not serving:
        raise ValueError(
            f"no policy supports the action space {space}: it must be Discrete, MultiDiscrete, MultiBinary or Box"
        )
    kind = DISTRIBUTIONS[serving[0] if policy == "auto" else policy]
    reason = kind.refusal(space)
    if reason is not None:
        raise ValueError(f"policy={policy} {reason}, got {space}; try auto or {' or '.join(serving)}")
    return kind


def gumbel_noise(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return independent draws of the standard Gumbel distribution: -log E, where E is exponential with mean 1."""
    # A draw of 0, once in 2^53, would give infinite noise and choose an action however improbable.
    exponential = np.maximum(generator.standard_exponential(shape), np.finfo(np.float64).tiny)
    noise: NDArray[np.float32] = -np.log(exponential).astype(np.float32)
    return noise


def _categories(probabilities: Tensor, start: int) -> Marginal:
    return Marginal(probabilities.double().cpu().numpy(), start=start)


def _tensor_dtype(dtype: Any) -> torch.dtype:
    """Return the PyTorch type that corresponds to a numpy type."""
    named: torch.dtype = getattr(torch, np.dtype(dtype).name)
    return named


def _split(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return a Gaussian's means and log deviations, (B, D) each."""
    means, log_deviations = outputs.chunk(2, -1)
    return means, log_deviations.clamp(*_LOG_DEVIATIONS)


def _excess(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha - 1 and beta - 1, (B, D) each, in float64."""
    left, right = functional.softplus(outputs.double()).chunk(2, -1)
    return left, right


def _log_beta(alpha: Tensor, beta: Tensor) -> Tensor:
    """Return the logarithm of the Beta function."""
    return alpha.lgamma() + beta.lgamma() - (alpha + beta).lgamma()


def _inside(actions: Tensor) -> Tensor:
    """Clamp a Beta's raw actions to where every log-density is finite."""
    return actions.clamp(_EDGE, 1.0 - _EDGE)
