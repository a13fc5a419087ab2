"""Encoders: an observation in, a vector of features out.

Shapes: B minibatch, C stacked screens, 84x84 pixels. Images are numbers from 0 to 255 until an encoder scales them.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

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
    """A convolution over uint8 pixels that shifts and scales them by changing its own, far smaller weight and bias.

    It starts with pixels / 255. `set_pixel_moments` centres and scales them instead: conv((x - mean) / deviation).
    """

    pixel_moments: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int = 0) -> None:
        """Build a convolution; `padding` is a border of average pixels, zeros once they are centred."""
        super().__init__(in_channels, out_channels, kernel_size, stride, padding)
        self.in_16_bits = False
        """Whether the convolution is computed in bfloat16."""
        self.register_buffer("pixel_moments", torch.tensor([0.0, 255.0]))

    def set_pixel_moments(self, mean: float, deviation: float) -> None:
        """Centre and scale pixels by these from now on; they are saved with the weights."""
        self.pixel_moments.copy_(torch.tensor([mean, deviation]))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, C, H, W), uint8 or the same numbers as float32, to (B, out_channels, H', W')."""
        mean, deviation = self.pixel_moments
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
            mean: what they lie too high by on average.
        """
        assert self.bias is not None
        weight = self.weight / self.pixel_moments[1]
        return weight, self.bias - (self.pixel_moments[0] if mean is None else mean) * weight.sum((1, 2, 3))


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


class SmallCNN(nn.Sequential):
    """The network of Mnih et al. 2013 and of A3C (arXiv:1602.01783, section 8): 16 8x8/4, 32 4x4/2, 256 units."""

    num_features = 256

    def __init__(self, num_screens: int) -> None:
        """Build for observations of (num_screens, 84, 84)."""
        super().__init__(
            orthogonal(PixelConv2d(num_screens, 16, 8, stride=4)),
            nn.ReLU(inplace=True),
            orthogonal(nn.Conv2d(16, 32, 4, stride=2)),
            nn.ReLU(inplace=True),
            Flatten(),
            orthogonal(nn.Linear(32 * 9 * 9, self.num_features)),
            nn.ReLU(inplace=True),
        )


class NatureCNN(nn.Sequential):
    """The network of Mnih et al. 2015 (Nature 518): 32 8x8/4, 64 4x4/2, 64 3x3/1, 512 units."""

    num_features = 512

    def __init__(self, num_screens: int) -> None:
        """Build for observations of (num_screens, 84, 84)."""
        super().__init__(
            orthogonal(PixelConv2d(num_screens, 32, 8, stride=4)),
            nn.ReLU(inplace=True),
            orthogonal(nn.Conv2d(32, 64, 4, stride=2)),
            nn.ReLU(inplace=True),
            orthogonal(nn.Conv2d(64, 64, 3, stride=1)),
            nn.ReLU(inplace=True),
            Flatten(),
            orthogonal(nn.Linear(64 * 7 * 7, self.num_features)),
            nn.ReLU(inplace=True),
        )


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

    def __init__(self, num_screens: int) -> None:
        """Build for observations of (num_screens, 84, 84)."""
        stages: list[nn.Module] = []
        channels = num_screens
        for width in (16, 32, 32):
            kind = nn.Conv2d if stages else PixelConv2d
            stages += [
                orthogonal(kind(channels, width, 3, stride=1, padding=1), gain=1.0),
                nn.MaxPool2d(3, stride=2, padding=1),
                ResidualBlock(width),
                ResidualBlock(width),
            ]
            channels = width
        super().__init__(
            *stages,
            nn.ReLU(inplace=True),
            Flatten(),
            orthogonal(nn.Linear(32 * 11 * 11, self.num_features)),
            nn.ReLU(inplace=True),
        )


class MLP(nn.Sequential):
    """Two tanh layers, the network of Schulman et al. 2017 for vector observations."""

    def __init__(self, num_inputs: int, num_features: int) -> None:
        """Build for observations of (num_inputs,)."""
        super().__init__(
            orthogonal(nn.Linear(num_inputs, num_features)),
            nn.Tanh(),
            orthogonal(nn.Linear(num_features, num_features)),
            nn.Tanh(),
        )
        self.num_features = num_features
