"""Networks and policies that a command line can name as tests.models.outside:Name."""

import math
from collections.abc import Callable

from torch import nn

from ppo.models.distributions.categories import Categorical
from ppo.models.encoders import MLP, NatureCNN, SmallCNN


class Linear(nn.Module):
    """One linear layer, which remembers what it was built for."""

    num_features = 8

    def __init__(self, shape, settings):
        super().__init__()
        self.built_for = shape, settings.activation
        self.layer = nn.Linear(math.prod(shape), self.num_features)

    def forward(self, observations):
        return self.layer(observations.float().flatten(1))


class WideOnly(Linear):
    def __init__(self, shape, settings):
        raise ValueError(f"vectors of at least 100 entries, got {shape[0]}")


class _With(MLP):
    """An MLP with one more module behind it."""

    make_extra: Callable[[], nn.Module]

    def __init__(self, shape, settings):
        super().__init__(shape, settings)
        self.append(self.make_extra())


class WithRReLU(_With):
    make_extra = nn.RReLU


class WithFrozenWeight(_With):
    @staticmethod
    def make_extra():
        layer = nn.Linear(64, 64)
        layer.weight.requires_grad_(False)
        return layer


class WithUnusedLayer(Linear):
    def __init__(self, shape, settings):
        super().__init__(shape, settings)
        self.unused = nn.Linear(2, 2)


class Dimmed(SmallCNN):
    """Uses half of its input."""

    def forward(self, observations):
        return super().forward(observations // 2)


class Longer(NatureCNN):
    """Has one more layer, of a known type."""

    def __init__(self, shape, settings):
        super().__init__(shape, settings)
        self.append(nn.Linear(self.num_features, self.num_features))
        self.append(nn.ReLU(inplace=True))


class HalfConv2d(nn.Conv2d):
    def forward(self, features):
        return 0.5 * super().forward(features)


class OtherLayer(SmallCNN):
    """Has a layer of a subclass of a known type."""

    def __init__(self, shape, settings):
        super().__init__(shape, settings)
        self[2] = HalfConv2d(16, 32, 4, stride=2)


class Padded(SmallCNN):
    """Has a border of zeros around its features."""

    def __init__(self, shape, settings):
        super().__init__(shape, settings)
        self[2] = nn.Conv2d(16, 32, 4, stride=2, padding=1)
        self[5] = nn.Linear(32 * 10 * 10, 256)


class Greedy(Categorical):
    """A custom policy with sharper probabilities than its logits."""

    name = "greedy"

    def sample(self, outputs, noise):
        return super().sample(3.0 * outputs, noise)


class WithDropoutInItsHead(Categorical):
    name = "with_dropout"

    def head(self, num_features):
        return nn.Sequential(nn.Dropout(0.1), super().head(num_features))
