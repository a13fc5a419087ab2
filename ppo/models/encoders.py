"""Encoders: an observation in, a vector of features out.

Shapes: B minibatch, C stacked screens, 84x84 pixels. Images are uint8 until an encoder scales them.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


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
        # A border cannot be folded into the bias. In 16 bits the large constant part of raw pixels drowns the rest:
        # whoever computes in them switches it off.
        self.folds = padding == 0
        self.register_buffer("pixel_moments", torch.tensor([0.0, 255.0]))

    def set_pixel_moments(self, mean: float, deviation: float) -> None:
        """Centre and scale pixels by these from now on; they are saved with the weights."""
        self.pixel_moments.copy_(torch.tensor([mean, deviation]))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (B, C, H, W) uint8 to (B, out_channels, H', W') float32."""
        if not self.folds:
            mean, deviation = self.pixel_moments
            centred = (pixels.to(torch.float32) - mean) / deviation
            return functional.conv2d(centred, self.weight, self.bias, self.stride, self.padding)
        return functional.conv2d(pixels.to(torch.float32), *self.folded(), self.stride)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Return the weight and bias for raw pixels."""
        mean, deviation = self.pixel_moments
        assert self.bias is not None
        weight = self.weight / deviation
        return weight, self.bias - mean * weight.sum((1, 2, 3))


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
            nn.Flatten(),
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
            nn.Flatten(),
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
            nn.Flatten(),
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
