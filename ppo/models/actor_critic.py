"""The actor-critic network: a policy head and a value head over an encoder.

Images share one encoder between actor and critic, as in the PPO paper's Atari experiments; vectors have one each.
"""

import contextlib
import functools
from collections.abc import Iterator
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
        prepared = self.critic is None and self.precision == torch.float32 and self.device.type == "cpu"
        if prepared and isinstance(self.actor, SmallCNN | NatureCNN):
            return FrozenCNN(self.actor, self.policy_head, self.value_head)
        return self

    @property
    def precision_name(self) -> str:
        """The setting that stands for the arithmetic of the encoders."""
        return str(self.precision).removeprefix("torch.")

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
        """Copy the weights of convolutions, pixel moments folded in, and of the heads; the large layer is shared."""
        self._convolutions = [
            FrozenConvolution(*layer.folded(), layer.stride)
            if isinstance(layer, PixelConv2d)
            else FrozenConvolution(layer.weight, layer.bias, layer.stride)
            for layer in encoder
            if isinstance(layer, nn.Conv2d)
        ]
        (linear,) = (layer for layer in encoder if isinstance(layer, nn.Linear))
        self._linear = FrozenLinear(linear.weight, linear.bias)
        heads = (policy_head, value_head)
        self._head_weight, self._head_bias = (
            torch.cat([head.get_parameter(name) for head in heads]) for name in ("weight", "bias")
        )

    def __call__(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Map observations to logits and values as `ActorCritic` does, float rounding apart."""
        features = observations.to(torch.float32)
        for convolution in self._convolutions:
            features = convolution(features)
        features = self._linear(features.flatten(1))
        heads = functional.linear(features, self._head_weight, self._head_bias)
        return heads[:, :-1], heads[:, -1]


class FrozenConvolution:
    """A convolution without padding and the ReLU behind it, on a processor.

    With oneDNN both are one call, on a weight in the order that it likes best, as `torch.compile` does it. Nature CNN,
    4 observations between steps of their emulators: 1.3 ms instead of 1.6, the same to the last bit.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...]) -> None:
        """Copy a weight (O, I, K, K)."""
        self._weight = weight.detach().clone(memory_format=torch.channels_last)
        self._bias, self._stride = None if bias is None else bias.detach().clone(), list(stride)
        # The best order depends on the number of observations.
        self._reordered: dict[torch.Size, Tensor] = {}

    def __call__(self, features: Tensor) -> Tensor:
        """Map (B, I, H, W) float to (B, O, H', W')."""
        if not onednn_is_usable():
            return functional.conv2d(features, self._weight, self._bias, self._stride).relu_()
        if features.shape not in self._reordered:
            self._reordered[features.shape] = _reordered(self._weight, self._stride, features.shape)
        return _convolution_and_relu(features, self._reordered[features.shape], self._bias, self._stride)


class FrozenLinear:
    """A linear layer and the ReLU behind it, on a processor; one call of oneDNN as `FrozenConvolution` is.

    Its sums are those of PyTorch's own call up to rounding. Most of its time is that of reading the weight: 4
    observations 0.15 ms instead of 0.31 (Nature CNN) and 0.08 instead of 0.13 (small CNN).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Share a weight (O, I), which nobody must change as long as this is used."""
        self._weight, self._bias = weight.detach(), bias.detach()
        self._reordered: dict[int, Tensor] = {}

    def __call__(self, features: Tensor) -> Tensor:
        """Map (B, I) to (B, O)."""
        if not onednn_is_usable():
            return functional.linear(features, self._weight, self._bias).relu_()
        if len(features) not in self._reordered:
            self._reordered[len(features)] = torch.ops.mkldnn._reorder_linear_weight(self._weight, len(features))
        return _linear_and_relu(features, self._reordered[len(features)], self._bias)


@functools.cache
def onednn_is_usable() -> bool:
    """Tell whether this PyTorch has the calls below: they are its own, and no version promises them to the next."""
    pixels, weight, bias = torch.zeros(1, 4, 8, 8), torch.zeros(2, 4, 4, 4), torch.zeros(2)
    features, matrix = torch.zeros(1, 4), torch.zeros(2, 4)
    try:
        _convolution_and_relu(pixels, _reordered(weight, [1, 1], pixels.shape), bias, [1, 1])
        _linear_and_relu(features, torch.ops.mkldnn._reorder_linear_weight(matrix, 1), bias)
    except (AttributeError, TypeError, RuntimeError):
        return False
    return True


def _reordered(weight: Tensor, stride: list[int], shape: torch.Size) -> Tensor:
    """Return a weight in the order that is best for features of a shape."""
    result: Tensor = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
        weight.to_mkldnn(), [0, 0], stride, [1, 1], 1, shape
    )
    return result


def _convolution_and_relu(features: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int]) -> Tensor:
    """Map features by a reordered weight."""
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(
        features, weight, bias, [0, 0], stride, [1, 1], 1, "relu", [], ""
    )
    return result


def _linear_and_relu(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Map features by a reordered weight."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(features, weight, bias, "relu", [], "")
    return result


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
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(seed)
        if len(shape) == 3 and shape[1:] == (84, 84):
            cnn = _ENCODERS[model_size](shape[0])
            return ActorCritic(cnn, None, cnn.num_features, num_actions, precision)
        if len(shape) == 1 and model_size in _WIDTHS:
            width = _WIDTHS[model_size]
            # Eight bits of an angle or a speed are too few, and there is no time to gain.
            return ActorCritic(MLP(shape[0], width), MLP(shape[0], width), width, num_actions)
    raise ValueError(f"no network for observations of shape {shape} of size {model_size}")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch use one thread: several round an orthogonal matrix otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _arithmetic(device: torch.device, precision: torch.dtype) -> contextlib.AbstractContextManager[None]:
    """Return a context in which what gains by it is computed in another precision."""
    if precision == torch.float32:
        return contextlib.nullcontext()
    # Every weight is used once: there is nothing to gain from keeping its rounding.
    return torch.autocast(device.type, precision, cache_enabled=False)
