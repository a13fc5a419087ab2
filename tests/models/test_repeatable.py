"""Modules that do not act as they learn are found by what they do, whatever their type."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from ppo.models.encoders import PixelConv2d
from ppo.models.repeatable import find_unrepeatable

VECTORS = Box(-np.inf, np.inf, (16,), np.float32)
IMAGES = Box(0, 255, (4, 8, 8), np.uint8)


class Function(nn.Module):
    """A module from a function of its input and of whether it is in training mode."""

    def __init__(self, function: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, features: Tensor) -> Tensor:
        return self.function(features, self.training)


class Counting(nn.Module):
    """Counts its calls and ignores the count."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor) -> Tensor:
        self.count += 1
        return features


class OverSequence(nn.Module):
    """Attends over the parts of a vector, with torch's faster code where it only acts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features.unflatten(1, (4, 4))).flatten(1)


def find(module: nn.Module, space: Box = VECTORS) -> tuple[str, str] | None:
    """Look at a module between layers with ReLUs that overwrite their input."""
    first = nn.Linear(16, 16) if space is VECTORS else PixelConv2d(4, 16, 3, stride=1)
    last = [nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16 if space is VECTORS else 16 * 36, 2)]
    return find_unrepeatable(nn.Sequential(first, module, *last), space)


@pytest.mark.parametrize(
    "module",
    [
        nn.RReLU(),
        nn.Dropout(0.001),
        nn.AlphaDropout(0.1),
        nn.FeatureAlphaDropout(0.1),
        nn.MultiheadAttention(16, 2, dropout=0.1),
        nn.GRU(16, 16, num_layers=2, dropout=0.1),
        nn.TransformerEncoderLayer(16, 2, 16),
        Function(lambda x, training: F.dropout(x, 1e-9, training)),
        Function(lambda x, training: x + 0.0 * torch.rand_like(x)),
        Function(lambda x, training: F.gumbel_softmax(x)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_random_modules_are_found_however_small_their_effect(module: nn.Module) -> None:
    if isinstance(module, nn.MultiheadAttention):
        attention = module
        module = Function(lambda x, training: attention(x, x, x)[0])
        module.attention = attention
    if isinstance(module, nn.GRU):
        gru = module
        module = Function(lambda x, training: gru(x)[0])
        module.gru = gru
    found = find(module)
    assert found is not None
    assert found[0].startswith("1") and found[1] == "is random"


@pytest.mark.parametrize("module", [nn.Dropout2d(0.1), nn.Dropout3d(0.1)], ids=lambda module: type(module).__name__)
def test_random_modules_of_images_are_found(module: nn.Module) -> None:
    assert find(module, IMAGES) == ("1", "is random")


@pytest.mark.parametrize(
    "module, space",
    [
        (nn.BatchNorm1d(16), VECTORS),
        (nn.BatchNorm2d(16), IMAGES),
        (nn.InstanceNorm2d(16, track_running_stats=True), IMAGES),
        (Counting(), VECTORS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_modules_that_change_their_buffers_are_found(module: nn.Module, space: Box) -> None:
    assert find(module, space) == ("1", "changes its buffers")


def test_a_weight_that_changes_with_every_forward_pass_is_found_by_its_module() -> None:
    assert find(spectral_norm(nn.Linear(16, 16))) == ("1.parametrizations.weight.0", "changes its buffers")


def test_modules_that_differ_in_training_mode_are_found() -> None:
    assert find(Function(lambda x, training: 1.1 * x if training else x)) == ("1", "differs in training mode")


@pytest.mark.parametrize(
    "module, space",
    [
        (nn.BatchNorm1d(16, track_running_stats=False), VECTORS),
        (nn.BatchNorm2d(16, track_running_stats=False), IMAGES),
        (Function(lambda x, training: x - x.mean(0)), VECTORS),
        (nn.TransformerEncoderLayer(16, 2, 16, dropout=0.0), VECTORS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_modules_that_mix_the_samples_of_a_batch_are_found(module: nn.Module, space: Box) -> None:
    found = find(module, space)
    assert found is not None
    assert found[0].startswith("1") and found[1] == "mixes the samples of a batch"


@pytest.mark.parametrize(
    "module, space",
    [
        (nn.Identity(), VECTORS),
        (nn.LayerNorm(16), VECTORS),
        (nn.Dropout(0.0), VECTORS),
        (weight_norm(nn.Linear(16, 16)), VECTORS),
        (OverSequence(), VECTORS),
        (nn.GroupNorm(4, 16), IMAGES),
        (nn.InstanceNorm2d(16), IMAGES),
        (nn.Conv2d(16, 16, 3, padding=1), IMAGES),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_modules_are_welcome(module: nn.Module, space: Box) -> None:
    assert find(module, space) is None


def test_looking_leaves_no_trace() -> None:
    model, state = nn.Sequential(nn.Linear(16, 2)), torch.get_rng_state()
    VECTORS.seed(3)
    expected = VECTORS.sample()
    VECTORS.seed(3)
    find_unrepeatable(model, VECTORS)
    np.testing.assert_array_equal(VECTORS.sample(), expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
