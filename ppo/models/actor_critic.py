"""The actor-critic network: a policy head and a value head over an encoder.

Images share one encoder between actor and critic, as in the PPO paper's Atari experiments; vectors have one each.
"""

import contextlib
from typing import Literal

import gymnasium
import torch
from torch import Tensor, nn
from torch.nn import functional

from ppo.models.encoders import MLP, ImpalaResNet, NatureCNN, PixelConv2d, SmallCNN, orthogonal

_ENCODERS: dict[str, type[SmallCNN | NatureCNN | ImpalaResNet]] = {
    "small": SmallCNN,
    "large": NatureCNN,
    "impala": ImpalaResNet,
}
_WIDTHS = {"small": 64, "large": 256}


class ActorCritic(nn.Module):
    """Policy logits and state values."""

    def __init__(
        self,
        actor: nn.Module,
        critic: nn.Module | None,
        num_features: int,
        num_actions: int,
        precision: torch.dtype = torch.float32,
    ) -> None:
        """Put heads on an actor's encoder and a critic's; None lets both share the actor's.

        With another `precision` than float32 the encoders compute in it; weights and heads are float32 all the same.
        """
        super().__init__()
        self.actor = actor
        self.critic = critic
        self.precision = precision
        # A nearly uniform first policy, and values near 0 (Andrychowicz et al. 2021, arXiv:2006.05990, section 3.2).
        self.policy_head = orthogonal(nn.Linear(num_features, num_actions), gain=0.01)
        self.value_head = orthogonal(nn.Linear(num_features, 1), gain=1.0)
        if precision != torch.float32 and self.pixel_layer is not None:
            self.pixel_layer.in_16_bits = True

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Map observations (B, ...) to logits (B, A) and values (B,); values are in the value normaliser's units."""
        with _arithmetic(self.device, self.precision):
            features = self.actor(observations)
            value_features = features if self.critic is None else self.critic(observations)
        return self.policy_head(features.float()), self.value_head(value_features.float()).squeeze(-1)

    def frozen(self) -> "ActorCritic | FrozenCNN":
        """Return the network with its weights as they are now, as fast as it can be evaluated many times.

        On a GPU that is the network itself: recorded kernels read the weights where they are.
        """
        prepared = self.critic is None and self.precision == torch.float32 and self.device.type != "cuda"
        if prepared and isinstance(self.actor, SmallCNN | NatureCNN):
            return FrozenCNN(self.actor, self.policy_head, self.value_head)
        return self

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.policy_head.get_parameter("weight").device

    @property
    def pixel_layer(self) -> PixelConv2d | None:
        """The layer that sees pixels; None for vector observations."""
        return next((module for module in self.modules() if isinstance(module, PixelConv2d)), None)


class FrozenCNN:
    """The network for images without what need not be done again as long as no weight changes."""

    def __init__(self, encoder: SmallCNN | NatureCNN, policy_head: nn.Module, value_head: nn.Module) -> None:
        """Copy the weights of the first layer, pixel moments folded in, and of the heads; the others stay shared."""
        pixel_layer, *self._layers = encoder
        assert isinstance(pixel_layer, PixelConv2d)
        weight, self._bias = pixel_layer.folded()
        self._weight = weight.contiguous(memory_format=torch.channels_last)
        self._stride = pixel_layer.stride
        heads = (policy_head, value_head)
        self._head_weight, self._head_bias = (
            torch.cat([head.get_parameter(name) for head in heads]) for name in ("weight", "bias")
        )

    def __call__(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Map observations to logits and values as `ActorCritic` does, float rounding apart."""
        features = functional.conv2d(observations.to(torch.float32), self._weight, self._bias, self._stride)
        for layer in self._layers:
            features = layer(features)
        heads = functional.linear(features, self._head_weight, self._head_bias)
        return heads[:, :-1], heads[:, -1]


def build_model(
    observation_space: gymnasium.Space[object],
    action_space: gymnasium.Space[object],
    model_size: Literal["small", "large", "impala"],
    *,
    seed: int,
    precision: torch.dtype = torch.float32,
) -> ActorCritic:
    """Build the network for a pair of spaces, on the processor; its weights depend on the seed alone.

    Raises:
        ValueError: no network is known for these spaces.
    """
    if not isinstance(observation_space, gymnasium.spaces.Box):
        raise ValueError(f"no network for observations of {observation_space}")
    if not isinstance(action_space, gymnasium.spaces.Discrete):
        raise ValueError(f"no network for actions of {action_space}")
    shape, num_actions = observation_space.shape, int(action_space.n)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if len(shape) == 3 and shape[1:] == (84, 84):
            cnn = _ENCODERS[model_size](shape[0])
            return ActorCritic(cnn, None, cnn.num_features, num_actions, precision)
        if len(shape) == 1 and model_size in _WIDTHS:
            width = _WIDTHS[model_size]
            # Eight bits of an angle or a speed are too few, and there is no time to gain.
            return ActorCritic(MLP(shape[0], width), MLP(shape[0], width), width, num_actions)
    raise ValueError(f"no network for observations of shape {shape} of size {model_size}")


def _arithmetic(device: torch.device, precision: torch.dtype) -> contextlib.AbstractContextManager[None]:
    """Return a context in which what gains by it is computed in another precision."""
    if precision == torch.float32:
        return contextlib.nullcontext()
    # Every weight is used once: there is nothing to gain from keeping its rounding.
    return torch.autocast(device.type, precision, cache_enabled=False)
