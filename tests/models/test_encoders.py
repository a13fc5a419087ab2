"""Encoders: sizes for any image, initial weights, and layers compared with the operations they implement."""

import math

import pytest
import torch
from torch import nn

from ppo.config import ModelSettings
from ppo.models.encoders import (
    ENCODERS,
    MLP,
    ConvNet,
    CoordConv2d,
    CoordConvNet,
    Flatten,
    ImpalaResNet,
    NatureCNN,
    PixelConv2d,
    ResidualBlock,
    SmallCNN,
    orthogonal,
)
from ppo.models.inputs import PixelStatistics

CNNS = {"a3c": SmallCNN, "nature": NatureCNN, "impala": ImpalaResNet}
SETTINGS = ModelSettings()


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def statistics(mean: float, deviation: float) -> PixelStatistics:
    fixed = PixelStatistics(follows=False)
    fixed.applied.copy_(torch.tensor([mean, deviation]))
    return fixed


def pixel_layer(kernel: int, *, stride: int = 1, padding: int = 0) -> PixelConv2d:
    layer = PixelConv2d(4, 16, kernel, stride=stride, padding=padding)
    orthogonal(layer)
    assert layer.bias is not None
    nn.init.normal_(layer.bias)
    return layer


def test_the_table_names_every_encoder() -> None:
    assert {**CNNS, "convnet": ConvNet, "coordconv": CoordConvNet, "mlp": MLP} == ENCODERS


# Features that are left for the linear layer, from (size - kernel) // stride + 1 of each convolution, or from halving
# and rounding up three times.
@pytest.mark.parametrize(
    ("shape", "left"),
    [
        ((1, 64, 64), {"a3c": 32 * 6 * 6, "nature": 64 * 4 * 4, "impala": 32 * 8 * 8}),
        ((3, 96, 96), {"a3c": 32 * 10 * 10, "nature": 64 * 8 * 8, "impala": 32 * 12 * 12}),
        ((4, 84, 84), {"a3c": 32 * 9 * 9, "nature": 64 * 7 * 7, "impala": 32 * 11 * 11}),
        ((3, 96, 64), {"a3c": 32 * 10 * 6, "nature": 64 * 8 * 4, "impala": 32 * 12 * 8}),
        ((2, 36, 37), {"a3c": 32 * 3 * 3, "nature": 64 * 1 * 1, "impala": 32 * 5 * 5}),
    ],
)
@pytest.mark.parametrize("name", CNNS)
def test_a_cnn_takes_its_sizes_from_the_shape_of_images(
    name: str, shape: tuple[int, int, int], left: dict[str, int]
) -> None:
    cnn = CNNS[name](shape, SETTINGS)
    (linear,) = (layer for layer in cnn if isinstance(layer, nn.Linear))
    assert linear.in_features == left[name]
    assert cnn(pixels(2, *shape)).shape == (2, cnn.num_features) == (2, 512 if name == "nature" else 256)


@pytest.mark.parametrize(("name", "least"), [("a3c", 20), ("nature", 36)])
def test_images_that_are_too_small_are_refused_with_the_least_size(name: str, least: int) -> None:
    assert CNNS[name]((3, least, least), SETTINGS)(pixels(1, 3, least, least)).isfinite().all()
    for height, width in ((least - 1, least), (least, least - 1), (1, 1)):
        with pytest.raises(ValueError, match=f"at least {least}x{least} pixels, got {width}x{height}"):
            CNNS[name]((3, height, width), SETTINGS)


@pytest.mark.parametrize("name", CNNS)
def test_a_cnn_refuses_vectors(name: str) -> None:
    with pytest.raises(ValueError, match="images, but the observations are vectors of 17 entries"):
        CNNS[name]((17,), SETTINGS)


@pytest.mark.parametrize(
    ("settings", "widths"),
    [
        ({}, (64, 64)),
        ({"model_size": "large"}, (256, 256)),
        ({"hidden_sizes": "5"}, (5,)),
        ({"hidden_sizes": "7,300,2", "model_size": "large"}, (7, 300, 2)),
    ],
)
def test_an_mlp_has_the_given_widths(settings: dict[str, str], widths: tuple[int, ...]) -> None:
    mlp = MLP((3,), ModelSettings(**settings))  # type: ignore[arg-type]
    linear = [layer for layer in mlp if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == list(widths)
    assert [layer.in_features for layer in linear] == [3, *widths[:-1]]
    assert mlp(torch.zeros(2, 3)).shape == (2, widths[-1]) == (2, mlp.num_features)


@pytest.mark.parametrize(
    ("activation", "function", "gain"),
    [
        ("tanh", math.tanh, math.sqrt(2.0)),
        ("relu", lambda x: max(x, 0.0), math.sqrt(2.0)),
        ("leaky_relu", lambda x: max(x, 0.1 * x), math.sqrt(2.0 / (1.0 + 0.1**2))),
    ],
)
def test_every_layer_of_an_mlp_has_the_activation_and_its_gain(activation, function, gain) -> None:  # type: ignore[no-untyped-def]
    mlp = MLP((8,), ModelSettings(activation=activation, hidden_sizes="4,4"))
    features = torch.randn(5, 8)
    for number, layer in enumerate(mlp):
        if number % 2:
            expected = torch.tensor([[function(x) for x in row] for row in features.tolist()])
            torch.testing.assert_close(layer(features), expected)
        else:
            torch.testing.assert_close(layer.weight @ layer.weight.T, gain**2 * torch.eye(4), rtol=1e-4, atol=1e-6)
        features = layer(features).detach()
    assert len(mlp) == 4


def test_an_mlp_flattens_images() -> None:
    screens = pixels(2, 3, 8, 8).float() / 255.0
    mlp = MLP((3, 8, 8), SETTINGS)
    vectors = MLP((3 * 8 * 8,), SETTINGS)
    vectors.load_state_dict({f"{int(n[0]) - 1}{n[1:]}": tensor for n, tensor in mlp.state_dict().items()})
    torch.testing.assert_close(mlp(screens), vectors(screens.flatten(1)))


@pytest.mark.parametrize("gain", [0.01, 1.0, math.sqrt(2.0)])
def test_an_orthogonal_layer_has_orthogonal_rows_of_length_gain_and_no_bias(gain: float) -> None:
    layer = nn.Linear(64, 16)
    assert orthogonal(layer, gain=gain) is layer
    torch.testing.assert_close(layer.weight @ layer.weight.T, gain**2 * torch.eye(16), rtol=1e-4, atol=1e-6)
    assert not layer.bias.any()


def test_a_pixel_convolution_starts_as_a_convolution_of_pixels_scaled_to_one() -> None:
    layer = pixel_layer(8, stride=4)
    screens = pixels(2, 4, 84, 84)
    expected = nn.functional.conv2d(screens.float() / 255.0, layer.weight, layer.bias, stride=4)
    torch.testing.assert_close(layer(screens), expected, rtol=1e-4, atol=1e-5)


def test_a_pixel_convolution_with_statistics_is_a_convolution_of_centred_and_scaled_pixels() -> None:
    layer = pixel_layer(8, stride=4)
    layer.absorb(statistics(73.5, 41.25))
    screens = pixels(2, 4, 84, 84)
    expected = nn.functional.conv2d((screens.float() - 73.5) / 41.25, layer.weight, layer.bias, stride=4)
    torch.testing.assert_close(layer(screens), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer(screens.float()), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        nn.functional.conv2d(screens.float(), *layer.folded(), 4), expected, rtol=1e-4, atol=1e-4
    )
    half = nn.functional.conv2d(screens.float() - 70.0, *layer.folded(torch.tensor(3.5)), 4)
    torch.testing.assert_close(half, expected, rtol=1e-4, atol=1e-4)


def test_a_padded_pixel_convolution_has_a_border_of_zeros_after_centring() -> None:
    layer = pixel_layer(3, padding=1)
    layer.absorb(statistics(73.5, 41.25))
    screens = pixels(2, 4, 84, 84)
    expected = nn.functional.conv2d((screens.float() - 73.5) / 41.25, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(screens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format])
def test_flattening_is_that_of_torch_and_its_gradient_lies_as_the_features_do(order: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 5, 4, 2, generator=generator).contiguous(memory_format=order).requires_grad_()
    weights = torch.randn(3, 40, generator=generator)
    flat = Flatten()(features)
    assert torch.equal(flat, torch.flatten(features, 1))
    # `features.grad` would be a copy in the order of the features anyway.
    (gradient,) = torch.autograd.grad((flat * weights).sum(), features)
    assert torch.equal(gradient, weights.view(3, 5, 4, 2))
    assert gradient.stride() == features.stride()
    with torch.inference_mode():
        assert torch.equal(Flatten()(features), flat)


@pytest.mark.parametrize("first", [nn.Conv2d, PixelConv2d])
def test_a_convolution_with_coordinates_is_one_of_an_image_with_two_more_channels(first: type[nn.Conv2d]) -> None:
    layer = CoordConv2d(first(3, 5, 3, stride=2), (7, 9))
    images = pixels(2, 3, 7, 9).float()
    seen = images / 255.0 if first is PixelConv2d else images
    x = torch.linspace(-1.0, 1.0, 9).expand(2, 1, 7, 9)
    y = torch.linspace(-1.0, 1.0, 7).view(7, 1).expand(2, 1, 7, 9)
    weight = torch.cat([layer.of_channels.weight, layer.of_coordinates.weight], 1)
    expected = nn.functional.conv2d(torch.cat([seen, x, y], 1), weight, layer.of_channels.bias, 2)
    torch.testing.assert_close(layer(images), expected, rtol=1e-4, atol=1e-4)
    rows = weight.flatten(1)
    torch.testing.assert_close(rows @ rows.T, 2.0 * torch.eye(5), rtol=1e-4, atol=1e-5)


def test_coordinates_are_neither_learnt_nor_saved() -> None:
    layer = CoordConv2d(nn.Conv2d(3, 5, 3), (7, 9))
    assert [name for name, _ in layer.named_buffers()] == ["coordinates"]
    assert "coordinates" not in layer.state_dict()


@pytest.mark.parametrize(
    ("kind", "size", "features", "least"),
    [(ConvNet, 96, 256, 96), (ConvNet, 128, 256 * 9, 96), (CoordConvNet, 48, 256, 32), (CoordConvNet, 32, 64, 32)],
)
def test_networks_of_the_racing_car_end_in_features_of_pixels(
    kind: type[ConvNet | CoordConvNet], size: int, features: int, least: int
) -> None:
    encoder = kind((4, size, size), SETTINGS)
    assert encoder(pixels(2, 4, size, size)).shape == (2, features) == (2, encoder.num_features)
    with pytest.raises(ValueError, match=f"images of at least {least}x{least} pixels"):
        kind((4, least, least - 1), SETTINGS)


def test_a_residual_block_adds_to_its_input_what_two_convolutions_make_of_it() -> None:
    block, features = ResidualBlock(3), torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    for layer in (block.first, block.second):
        nn.init.normal_(layer.bias)
    branch = block.second(torch.relu(block.first(torch.relu(features))))
    torch.testing.assert_close(block(features), features + branch)
    nn.init.zeros_(block.second.weight)
    nn.init.zeros_(block.second.bias)
    assert torch.equal(block(features), features)
