"""Encoders: an observation in, a vector of features out. Each is a class with a line in `ENCODERS`.

An encoder takes its sizes from the observation's shape and refuses images that are too small. Shapes: B minibatch, C
channels, H x W pixels. Pixels are numbers from 0 to 255 until an encoder scales them.
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

# cuDNN 9 uses no tensor cores for fewer: a layer of 4 channels took 5.8 of the 24 ms of a gradient of 1,024 samples.
_CHANNELS_OF_16_BITS = 8


def orthogonal(layer: nn.Module, gain: float = math.sqrt(2.0)) -> nn.Module:
    """Initialise a layer's weight orthogonally (Saxe et al. 2014, arXiv:1312.6120) and its bias to 0; return it."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    nn.init.orthogonal_(weight, gain)
    nn.init.zeros_(bias)
    return layer


class PixelConv2d(nn.Conv2d):
    """A convolution over uint8 pixels that absorbs the input statistics into its far smaller weight and bias."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int = 0) -> None:
        """Build a convolution; `padding` is a border of average pixels, which are 0 once centred."""
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self.in_16_bits = False
        """Whether the convolution is computed in bfloat16."""
        self.absorb(PixelStatistics(follows=False))

    def absorb(self, statistics: PixelStatistics) -> None:
        """Centre and scale pixels by these statistics from now on, and follow their changes."""
        # The tuple keeps them from becoming a submodule: the agent owns, saves and moves them.
        self._statistics = (statistics,)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, C, H, W), uint8 or the same numbers as float32, to (B, out_channels, H', W')."""
        mean, deviation = self._statistics[0].applied
        if self.padding != (0, 0):
            # Padding with zeros is padding with average pixels only after the mean has been subtracted.
            centred, weight = (pixels - mean) / deviation, self.weight
            if self.in_16_bits:
                centred, weight = (_with_channels(tensor, _CHANNELS_OF_16_BITS) for tensor in (centred, weight))
            return functional.conv2d(centred, weight, self.bias, self.stride, self.padding)
        if self.in_16_bits:
            # The large constant part of raw pixels would drown the rest, so the rounded mean is subtracted first: whole
            # numbers up to 255 fit in 8 bits.
            nearest = mean.round()
            return functional.conv2d(pixels - nearest.bfloat16(), *self.folded(mean - nearest), self.stride)
        return functional.conv2d(pixels.to(torch.float32), *self.folded(mean), self.stride)

    def folded(self, mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the weight and bias for pixels that are not centred, by default raw ones.

        Args:
            mean: the part of the mean that is still in the pixels, by default all of it.
        """
        assert self.bias is not None
        own_mean, deviation = self._statistics[0].applied
        weight = self.weight / deviation
        return weight, self.bias - (own_mean if mean is None else mean) * weight.sum((1, 2, 3))


class Flatten(nn.Module):
    """Flattens features (B, C, H, W) of any memory format and returns their gradient in the same format.

    A gradient left in the order of (B, C * H * W) would differ in format from the features in the preceding ReLU,
    which takes several times as long on a CPU.
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
    """Return a tensor (N, C, H, W) in bfloat16, its channels padded with zeros to a multiple of `multiple`."""
    missing = -tensor.shape[1] % multiple
    return functional.pad(tensor.to(torch.bfloat16), (0, 0, 0, 0, 0, missing))


class Encoder(Protocol):
    """Interface of the classes in `ENCODERS` and of those named by `--network=module:Name`."""

    num_features: int
    """F, the length of the feature vector."""

    def __init__(self, shape: tuple[int, ...], settings: ModelSettings) -> None:
        """Build for observations of a shape: uint8 images (C, H, W) or float32 vectors (D,).

        Raises:
            ValueError: the shape is not supported; the message names what the encoder needs.
        """

    def __call__(self, observations: Tensor) -> Tensor:
        """Map observations (B, *shape) to features (B, F)."""


class CoordConv2d(nn.Module):
    """A convolution with x and y as two more input channels (Liu et al. 2018, arXiv:1807.03247).

    Both run from -1 to 1 over the image. Their convolution is computed once and added to every image of a minibatch.
    """

    def __init__(self, convolution: nn.Conv2d, size: tuple[int, int]) -> None:
        """Add the coordinate channels to a convolution with a square kernel over images of size (H, W)."""
        super().__init__()
        self.of_channels = convolution
        kernel, stride = convolution.kernel_size[0], convolution.stride[0]
        self.of_coordinates = nn.Conv2d(2, convolution.out_channels, kernel, stride, bias=False)
        y, x = torch.meshgrid(*(torch.linspace(-1.0, 1.0, number) for number in size), indexing="ij")
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
    """Convolutions without padding, each followed by a ReLU."""

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
    """The six layers of github.com/xtma/pytorch_car_caring, which give 256 features for 96x96 images."""

    LAYERS = ((8, 4, 2), (16, 3, 2), (32, 3, 2), (64, 3, 2), (128, 3, 1), (256, 3, 1))


class CoordConvNet(Convolutions):
    """The four layers of github.com/dgandiaga/CoordConvPPO, which give 256 features for 48x48 images."""

    LAYERS = ((8, 4, 2), (16, 3, 2), (32, 3, 2), (64, 3, 2))
    sees_coordinates = True


class CNN(Convolutions):
    """Convolutions without padding and a linear layer, each followed by a ReLU."""

    UNITS: ClassVar[int]
    """Units of the linear layer."""

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
    """A skip connection around two convolutions, each after a ReLU (He et al. 2016, arXiv:1603.05027, figure 4e)."""

    def __init__(self, channels: int) -> None:
        """Build for features (channels, H, W); the output has the same shape."""
        super().__init__()
        # A gain of 1 after each ReLU makes a branch a quarter of its input, so that six blocks do not blow up.
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
    """Gain of the preceding layer (He et al. 2015, arXiv:1502.01852, for ReLUs)."""


_ACTIVATIONS = {
    # PPO's reference code and its comparisons use the square root of 2, not 5/3, torch's gain for tanh.
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
"""Networks by value of the setting `network`."""


def _image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the channels, height and width of images."""
    if len(shape) != 3:
        raise ValueError(f"images, but the observations are vectors of {math.prod(shape)} entries")
    channels, height, width = shape
    return channels, height, width


def _least_size(layers: Sequence[tuple[int, int, int]]) -> int:
    """Return the smallest image side for which every convolution has an output."""
    size = 1
    for _, kernel, stride in reversed(layers):
        size = (size - 1) * stride + kernel
    return size
