"""Encoders: an observation in, a vector of features out. Each is a class with a line in `ENCODERS`.

An encoder takes its sizes from the observation's shape and refuses what is too small. Shapes: B minibatch, C channels,
H x W pixels. Images are numbers from 0 to 255 until an encoder scales them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ppo.config import ModelSettings
from ppo.models.inputs import PixelStatistics

# cuDNN 9 has no tensor cores for fewer: 5.8 ms of the 24 that a gradient of 1,024 samples took went to 4 channels.
_CHANNELS_OF_16_BITS = 8


def orthogonal(layer: nn.Module, gain: float = math.sqrt(2.0)) -> nn.Module:
    """Initialise a layer's weight orthogonally (Saxe et al. 2014, arXiv:1312.6120) and its bias with 0; return it."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    nn.init.orthogonal_(weight, gain)
    nn.init.zeros_(bias)
    return layer


class PixelConv2d(nn.Conv2d):
    """A convolution over uint8 pixels that absorbs the input statistics into its own, far smaller weight and bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int = 0) -> None:
        """Build a convolution; `padding` is a border of average pixels, zeros once they are centred."""
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self.in_16_bits = False
        """Whether the convolution is computed in bfloat16."""
        self.absorb(PixelStatistics(follows=False))

    def absorb(self, statistics: PixelStatistics) -> None:
        """Centre and scale pixels by these statistics from now on, whatever they become."""
        # Not a child: the statistics are the agent's, which saves and moves them.
        self._statistics = (statistics,)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, C, H, W), uint8 or the same numbers as float32, to (B, out_channels, H', W')."""
        mean, deviation = self._statistics[0].applied
        if self.padding != (0, 0):
            # A border of zeros is one of average pixels only where the average has been taken away.
            centred, weight = (pixels - mean) / deviation, self.weight
            if self.in_16_bits:
                centred, weight = (_with_channels(tensor, _CHANNELS_OF_16_BITS) for tensor in (centred, weight))
            return functional.conv2d(centred, weight, self.bias, self.stride, self.padding)
        if self.in_16_bits:
            # The large constant part of raw pixels would drown the rest; whole numbers up to 255 have 8 bits.
            nearest = mean.round()
            return functional.conv2d(pixels - nearest.bfloat16(), *self.folded(mean - nearest), self.stride)
        return functional.conv2d(pixels.to(torch.float32), *self.folded(mean), self.stride)

    def folded(self, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the weight and bias for pixels that have not been centred yet, by default raw ones.

        Args:
            mean: the average that they still hold.
        """
        assert self.bias is not None
        own_mean, deviation = self._statistics[0].applied
        weight = self.weight / deviation
        return weight, self.bias - (own_mean if mean is None else mean) * weight.sum((1, 2, 3))


class Flatten(nn.Module):
    """Flattens features (B, C, H, W), whatever their order in memory, and gives their gradient the same order.

    Left in the order of (B, C * H * W), the gradient would meet features of another order in the ReLU before: several
    times the time on a processor.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C * H * W)."""
        if not torch.is_grad_enabled():
            return features.flatten(1)
        flat: Tensor = _Flattened.apply(features)  # type: ignore[no-untyped-call]
        return flat


class _Flattened(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, features: Tensor) -> Tensor:
        context.shape = features.shape
        context.channels_last = features.is_contiguous(memory_format=torch.channels_last)
        return features.flatten(1)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        order = torch.channels_last if context.channels_last else torch.contiguous_format
        return gradient.reshape(context.shape).contiguous(memory_format=order)


def _with_channels(tensor: Tensor, multiple: int) -> Tensor:
    """Return a tensor (N, C, H, W) in bfloat16, with channels of zeros behind its own up to a multiple."""
    missing = -tensor.shape[1] % multiple
    return functional.pad(tensor.to(torch.bfloat16), (0, 0, 0, 0, 0, missing))


class Encoder(Protocol):
    """What the table below holds, and what `--network=module:Name` names."""

    num_features: int
    """F."""

    def __init__(self, shape: tuple[int, ...], settings: ModelSettings) -> None:
        """Build for observations of a shape: (C, H, W) uint8 images or (D,) float32 vectors.

        Raises:
            ValueError: it cannot serve the shape; says what it needs.
        """

    def __call__(self, observations: Tensor) -> Tensor:
        """Map observations (B, *shape) to features (B, F)."""


class CoordConv2d(nn.Module):
    """A convolution that knows where it is: it sees x and y beside its channels (Liu et al. 2018, arXiv:1807.03247).

    Both run from -1 to 1 over the image. What the convolution of them adds is the same for all images of a minibatch.
    """

    def __init__(self, convolution: nn.Conv2d, size: tuple[int, int]) -> None:
        """Let a convolution of images of a size (H, W), with a square kernel, see two more channels."""
        super().__init__()
        self.of_channels = convolution
        kernel, stride = convolution.kernel_size[0], convolution.stride[0]
        self.of_coordinates = nn.Conv2d(2, convolution.out_channels, kernel, stride, bias=False)
        y, x = torch.meshgrid(*(torch.linspace(-1.0, 1.0, number) for number in size), indexing="ij")
        # Nothing of it is learnt or saved.
        self.register_buffer("coordinates", torch.stack([x, y]).unsqueeze(0), persistent=False)
        with torch.no_grad():
            both = torch.cat([convolution.weight, self.of_coordinates.weight], dim=1)
            nn.init.orthogonal_(both, math.sqrt(2.0))
            convolution.weight.copy_(both[:, :-2])
            self.of_coordinates.weight.copy_(both[:, -2:])

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out_channels, H', W')."""
        result: Tensor = self.of_channels(features) + self.of_coordinates(self.coordinates)
        return result


class Convolutions(nn.Sequential):
    """Convolutions without padding, each behind a ReLU."""

    LAYERS: ClassVar[Sequence[tuple[int, int, int]]]
    """Channels, kernel size and stride of each convolution."""
    sees_coordinates: ClassVar[bool] = False
    num_features: int

    def __init__(self, shape: tuple[int, ...], settings: ModelSettings) -> None:
        """Build for images of a shape (C, H, W)."""
        channels, height, width = _image(shape)
        layers: list[nn.Module] = []
        for number, kernel, stride in self.LAYERS:
            if min(height, width) < kernel:
                least = _least_size(self.LAYERS)
                raise ValueError(f"images of at least {least}x{least} pixels, got {shape[2]}x{shape[1]}")
            kind = nn.Conv2d if layers else PixelConv2d
            layer = orthogonal(kind(channels, number, kernel, stride=stride))
            if self.sees_coordinates:
                assert isinstance(layer, nn.Conv2d)
                layer = CoordConv2d(layer, (height, width))
            layers += [layer, nn.ReLU(inplace=True)]
            channels, height, width = number, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        super().__init__(*layers, Flatten())
        self.num_features = channels * height * width


class ConvNet(Convolutions):
    """The six layers of github.com/xtma/pytorch_car_caring, which end in 256 features of images of 96x96."""

    LAYERS = ((8, 4, 2), (16, 3, 2), (32, 3, 2), (64, 3, 2), (128, 3, 1), (256, 3, 1))


class CoordConvNet(Convolutions):
    """The four layers of github.com/dgandiaga/CoordConvPPO, which end in 256 features of images of 48x48."""

    LAYERS = ((8, 4, 2), (16, 3, 2), (32, 3, 2), (64, 3, 2))
    sees_coordinates = True


class CNN(Convolutions):
    """Convolutions without padding and a linear layer, each behind a ReLU."""

    UNITS: ClassVar[int]
    """Of the linear layer."""

    def __init__(self, shape: tuple[int, ...], settings: ModelSettings) -> None:
        """Build for images of a shape (C, H, W)."""
        super().__init__(shape, settings)
        self.extend([orthogonal(nn.Linear(self.num_features, self.UNITS)), nn.ReLU(inplace=True)])
        self.num_features = self.UNITS


class SmallCNN(CNN):
    """The network of Mnih et al. 2013 and of A3C (arXiv:1602.01783, section 8): 16 8x8/4, 32 4x4/2, 256 units."""

    LAYERS = ((16, 8, 4), (32, 4, 2))
    UNITS = 256


class NatureCNN(CNN):
    """The network of Mnih et al. 2015 (Nature 518): 32 8x8/4, 64 4x4/2, 64 3x3/1, 512 units."""

    LAYERS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
    UNITS = 512


class ResidualBlock(nn.Module):
    """Two convolutions beside an identity, each behind a ReLU (He et al. 2016, arXiv:1603.05027, figure 4e)."""

    def __init__(self, channels: int) -> None:
        """Build for features of (channels, H, W), whose shape stays."""
        super().__init__()
        # A gain of 1 behind a ReLU makes a branch a quarter of its input: six blocks do not blow up.
        self.first = orthogonal(nn.Conv2d(channels, channels, 3, padding=1), gain=1.0)
        self.second = orthogonal(nn.Conv2d(channels, channels, 3, padding=1), gain=1.0)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        branch: Tensor = self.first(functional.relu(features))
        change: Tensor = self.second(functional.relu(branch))
        return features + change


class ImpalaResNet(nn.Sequential):
    """The larger network of IMPALA, Espeholt et al. 2018 (arXiv:1802.01561, figure 3, right) without its LSTM.

    Three stages of a 3x3 convolution, 3x3/2 max-pooling and two residual blocks; 16, 32 and 32 channels; 256 units.
    """

    num_features = 256

    def __init__(self, shape: tuple[int, ...], settings: ModelSettings) -> None:
        """Build for images of a shape (C, H, W)."""
        channels, height, width = _image(shape)
        stages: list[nn.Module] = []
        for number in (16, 32, 32):
            kind = nn.Conv2d if stages else PixelConv2d
            stages += [
                orthogonal(kind(channels, number, 3, stride=1, padding=1), gain=1.0),
                nn.MaxPool2d(3, stride=2, padding=1),
                ResidualBlock(number),
                ResidualBlock(number),
            ]
            channels, height, width = number, (height + 1) // 2, (width + 1) // 2
        super().__init__(
            *stages,
            nn.ReLU(inplace=True),
            Flatten(),
            orthogonal(nn.Linear(channels * height * width, self.num_features)),
            nn.ReLU(inplace=True),
        )


class MLP(nn.Sequential):
    """Linear layers, by default the two tanh layers of Schulman et al. 2017; images are flattened."""

    def __init__(self, shape: tuple[int, ...], settings: ModelSettings) -> None:
        """Build for observations of any shape."""
        activation = _ACTIVATIONS[settings.activation]
        layers: list[nn.Module] = [nn.Flatten()] if len(shape) > 1 else []
        width = math.prod(shape)
        for number in settings.widths:
            layers += [orthogonal(nn.Linear(width, number), activation.gain), activation.make()]
            width = number
        super().__init__(*layers)
        self.num_features = width


@dataclass(frozen=True)
class _Activation:
    make: Callable[[], nn.Module]
    gain: float
    """Of the layer before it (He et al. 2015, arXiv:1502.01852, for ReLUs)."""


_ACTIVATIONS = {
    # Not 5/3, torch's gain for tanh: PPO's reference code and its comparisons have the root of 2.
    "tanh": _Activation(nn.Tanh, math.sqrt(2.0)),
    "relu": _Activation(nn.ReLU, math.sqrt(2.0)),
    "leaky_relu": _Activation(partial(nn.LeakyReLU, 0.1), math.sqrt(2.0 / 1.01)),
}

ENCODERS: Mapping[str, type[Encoder]] = {
    "a3c": SmallCNN,
    "nature": NatureCNN,
    "impala": ImpalaResNet,
    "convnet": ConvNet,
    "coordconv": CoordConvNet,
    "mlp": MLP,
}
"""The networks that the setting `network` names."""


def _image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the channels, height and width of images."""
    if len(shape) != 3:
        raise ValueError(f"images, got vectors of {math.prod(shape)} entries")
    channels, height, width = shape
    return channels, height, width


def _least_size(layers: Sequence[tuple[int, int, int]]) -> int:
    """Return the smallest side of an image from which each convolution has a pixel to see."""
    size = 1
    for _, kernel, stride in reversed(layers):
        size = (size - 1) * stride + kernel
    return size
