"""Networks prepared for acting: work that depends only on weights is done once per rollout.

A network is prepared only if every layer is recognised by its exact type; otherwise it is used as it is.
"""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppo.models.actor_critic import ActorCritic, Policy, Prediction
from ppo.models.bare import bare
from ppo.models.encoders import CNN, Flatten, NatureCNN, PixelConv2d, SmallCNN
from ppo.models.inputs import PixelStatistics


def freeze(model: ActorCritic) -> Policy:
    """Return the form of the network that is fastest to evaluate many times with its current weights.

    On a GPU this is the network itself, since recorded kernels read the weights in place.
    """
    if model.device.type == "cpu" and model.precision == torch.float32 and _is_recognised(model):
        assert isinstance(model.actor, CNN)
        assert isinstance(model.policy_head, nn.Linear) and isinstance(model.value_head, nn.Linear)
        return FrozenCNN(model.actor, model.policy_head, model.value_head)
    return bare(model) or model


def _is_recognised(model: ActorCritic) -> bool:
    """Return whether every layer of a network is one of ours; a subclass may compute something else."""
    encoder = model.actor
    if type(model) is not ActorCritic or not isinstance(encoder, CNN) or type(encoder) not in (SmallCNN, NatureCNN):
        return False
    first, others = [PixelConv2d, nn.ReLU], [nn.Conv2d, nn.ReLU] * (len(encoder.LAYERS) - 1)
    return (
        [type(layer) for layer in encoder] == [*first, *others, Flatten, nn.Linear, nn.ReLU]
        and type(model.inputs) is PixelStatistics
        and model.critic is model.policy_layer is None
        and type(model.policy_head) is type(model.value_head) is nn.Linear
    )


class FrozenCNN:
    """An image network with weight-only work precomputed; valid until weights or input statistics change."""

    def __init__(self, encoder: CNN, policy_head: nn.Linear, value_head: nn.Linear) -> None:
        """Copy the weights of convolutions (pixel statistics folded in) and heads; share those of the linear layer."""
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

    def __call__(self, observations: Tensor) -> Prediction:
        """Predict as `ActorCritic` does, up to rounding."""
        features = observations.to(torch.float32)
        for convolution in self._convolutions:
            features = convolution(features)
        features = self._linear(features.flatten(1))
        heads = functional.linear(features, self._head_weight, self._head_bias)
        return Prediction(heads[:, :-1], heads[:, -1])


class FrozenConvolution:
    """A convolution without padding, followed by a ReLU, on the CPU.

    With oneDNN both are one call on a weight in oneDNN's preferred layout, as in `torch.compile`. Nature CNN, 4
    observations between steps of their emulators: 1.3 ms instead of 1.6, with bit-identical results.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...]) -> None:
        """Copy a weight (O, I, K, K)."""
        self._weight = weight.detach().clone(memory_format=torch.channels_last)
        self._bias, self._stride = None if bias is None else bias.detach().clone(), list(stride)
        # The best layout depends on the number of observations.
        self._reordered: dict[torch.Size, Tensor] = {}

    def __call__(self, features: Tensor) -> Tensor:
        """Map (B, I, H, W) float to (B, O, H', W')."""
        if not onednn_is_usable():
            return functional.conv2d(features, self._weight, self._bias, self._stride).relu_()
        if features.shape not in self._reordered:
            self._reordered[features.shape] = _reordered(self._weight, self._stride, features.shape)
        return _convolution_and_relu(features, self._reordered[features.shape], self._bias, self._stride)


class FrozenLinear:
    """A linear layer, followed by a ReLU, on the CPU; one call of oneDNN like `FrozenConvolution`.

    Results equal those of PyTorch's own call up to rounding. Most of the time goes into reading the weight: for 4
    observations 0.15 ms instead of 0.31 (Nature CNN) and 0.08 instead of 0.13 (small CNN).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        """Share a weight (O, I), which must not change while this layer is in use."""
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
    """Return whether this PyTorch has the calls below, which are private and may change with any version."""
    pixels, weight, bias = torch.zeros(1, 4, 8, 8), torch.zeros(2, 4, 4, 4), torch.zeros(2)
    features, matrix = torch.zeros(1, 4), torch.zeros(2, 4)
    try:
        _convolution_and_relu(pixels, _reordered(weight, [1, 1], pixels.shape), bias, [1, 1])
        _linear_and_relu(features, torch.ops.mkldnn._reorder_linear_weight(matrix, 1), bias)
    except (AttributeError, TypeError, RuntimeError):
        return False
    return True


def _reordered(weight: Tensor, stride: list[int], shape: torch.Size) -> Tensor:
    """Return a weight in the best layout for features of a shape."""
    result: Tensor = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]
        weight.to_mkldnn(), [0, 0], stride, [1, 1], 1, shape
    )
    return result


def _convolution_and_relu(features: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int]) -> Tensor:
    """Convolve features with a reordered weight and apply a ReLU."""
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(
        features, weight, bias, [0, 0], stride, [1, 1], 1, "relu", [], ""
    )
    return result


def _linear_and_relu(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Multiply features by a reordered weight, add the bias and apply a ReLU."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(features, weight, bias, "relu", [], "")
    return result
