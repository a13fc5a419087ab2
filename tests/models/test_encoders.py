"""Encoders and the actor-critic built on them: shapes, sizes, initial weights."""

import math
from typing import Literal

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from ppo.models import actor_critic
from ppo.models.actor_critic import ActorCritic, build_model, onednn_is_usable
from ppo.models.encoders import MLP, Flatten, ImpalaResNet, NatureCNN, PixelConv2d, ResidualBlock, SmallCNN, orthogonal

SCREENS = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
VECTOR = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def build(size: str = "small", *, space: gymnasium.Space = SCREENS, num_actions: int = 6, seed: int = 0) -> ActorCritic:
    return build_model(space, gymnasium.spaces.Discrete(num_actions), size, seed=seed)


def test_initial_weights_do_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    states = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            states.append(build().state_dict())
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize(("encoder", "features"), [(SmallCNN, 256), (NatureCNN, 512), (ImpalaResNet, 256)])
@pytest.mark.parametrize("num_screens", [1, 4])
def test_a_cnn_maps_screens_to_its_number_of_features(
    encoder: type[SmallCNN | NatureCNN | ImpalaResNet], features: int, num_screens: int
) -> None:
    cnn = encoder(num_screens)
    assert cnn(pixels(2, num_screens, 84, 84)).shape == (2, features) == (2, cnn.num_features)


def test_an_mlp_maps_vectors_to_its_number_of_features() -> None:
    assert MLP(3, 64)(torch.zeros(2, 3)).shape == (2, 64)


@pytest.mark.parametrize(
    ("size", "space"),
    [("small", SCREENS), ("large", SCREENS), ("impala", SCREENS), ("small", VECTOR), ("large", VECTOR)],
)
def test_the_network_gives_a_logit_per_action_and_a_value(size: str, space: gymnasium.spaces.Box) -> None:
    observations = torch.from_numpy(np.stack([space.sample(), space.sample()]))
    logits, values = build(size, space=space)(observations)
    assert (logits.shape, values.shape) == ((2, 6), (2,))


@pytest.mark.parametrize(
    ("size", "count"),
    [
        # 4*16*8*8 + 16, 16*32*4*4 + 32, 2592*256 + 256, 256*6 + 6, 256 + 1
        ("small", 4_112 + 8_224 + 663_808 + 1_542 + 257),
        # 4*32*8*8 + 32, 32*64*4*4 + 64, 64*64*3*3 + 64, 3136*512 + 512, 512*6 + 6, 512 + 1
        ("large", 8_224 + 32_832 + 36_928 + 1_606_144 + 3_078 + 513),
        # Stages of a convolution and 4 of residual blocks: 4*16*9 + 16 and 16*16*9 + 16, 16*32*9 + 32 and 32*32*9 + 32,
        # 32*32*9 + 32 and the same; 11*11*32*256 + 256, 256*6 + 6, 256 + 1
        ("impala", 592 + 4 * 2_320 + 4_640 + 4 * 9_248 + 9_248 + 4 * 9_248 + 991_488 + 1_542 + 257),
    ],
)
def test_the_number_of_parameters_is_that_of_the_published_network(size: str, count: int) -> None:
    assert sum(parameter.numel() for parameter in build(size).parameters()) == count


def test_the_networks_have_0_678_and_1_688_million_parameters() -> None:
    millions = [sum(p.numel() for p in build(size).parameters()) / 1e6 for size in ("small", "large")]
    assert [round(number, 3) for number in millions] == [0.678, 1.688]


def test_screens_share_one_encoder_and_vectors_have_two() -> None:
    assert build().critic is None
    vectors = build(space=VECTOR)
    assert vectors.critic is not None and vectors.critic is not vectors.actor


@pytest.mark.parametrize("gain", [0.01, 1.0, math.sqrt(2.0)])
def test_an_orthogonal_layer_has_orthogonal_rows_of_length_gain_and_no_bias(gain: float) -> None:
    layer = orthogonal(nn.Linear(64, 16), gain=gain)
    torch.testing.assert_close(layer.weight @ layer.weight.T, gain**2 * torch.eye(16), rtol=1e-4, atol=1e-6)
    assert not layer.bias.any()


@pytest.mark.parametrize("size", ["small", "large"])
def test_every_layer_of_the_network_is_orthogonal(size: str) -> None:
    model = build(size)
    gains = {model.policy_head: 0.01, model.value_head: 1.0}
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert len(layers) == (5 if size == "small" else 6)
    for layer in layers:
        flat = layer.weight.detach().flatten(1)
        lengths = torch.linalg.svdvals(flat)
        torch.testing.assert_close(
            lengths, torch.full_like(lengths, gains.get(layer, math.sqrt(2.0))), rtol=1e-3, atol=0
        )


def test_the_first_policy_is_nearly_uniform() -> None:
    probabilities = build()(pixels(8, 4, 84, 84))[0].softmax(-1)
    torch.testing.assert_close(probabilities, torch.full((8, 6), 1 / 6), atol=0.01, rtol=0)


def test_a_pixel_convolution_starts_as_a_convolution_of_pixels_scaled_to_one() -> None:
    layer = orthogonal(PixelConv2d(4, 16, 8, stride=4))
    nn.init.normal_(layer.bias)
    screens = pixels(2, 4, 84, 84)
    expected = nn.functional.conv2d(screens.float() / 255.0, layer.weight, layer.bias, stride=4)
    torch.testing.assert_close(layer(screens), expected, rtol=1e-4, atol=1e-5)


def test_a_pixel_convolution_with_moments_is_a_convolution_of_centred_and_scaled_pixels() -> None:
    layer = orthogonal(PixelConv2d(4, 16, 8, stride=4))
    nn.init.normal_(layer.bias)
    layer.set_pixel_moments(73.5, 41.25)
    screens = pixels(2, 4, 84, 84)
    expected = nn.functional.conv2d((screens.float() - 73.5) / 41.25, layer.weight, layer.bias, stride=4)
    torch.testing.assert_close(layer(screens), expected, rtol=1e-4, atol=1e-4)


def test_pixel_moments_are_saved_with_the_weights() -> None:
    saved, restored = build(), build(seed=1)
    assert saved.pixel_layer is not None and restored.pixel_layer is not None
    saved.pixel_layer.set_pixel_moments(73.5, 41.25)
    restored.load_state_dict(saved.state_dict())
    assert restored.pixel_layer.pixel_moments.tolist() == [73.5, 41.25]


@pytest.mark.parametrize("size", ["small", "large", "impala"])
def test_the_order_of_the_axes_in_memory_changes_nothing(size: str) -> None:
    model = build(size)
    contiguous = pixels(3, 4, 84, 84)
    channels_last = contiguous.to(memory_format=torch.channels_last)
    assert channels_last.stride() != contiguous.stride()
    for actual, expected in zip(model(channels_last), model(contiguous), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build(seed=3)
    torch.manual_seed(2)
    again, other = build(seed=3), build(seed=4)
    for name, tensor in first.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
    assert not torch.equal(other.policy_head.weight, first.policy_head.weight)


def test_building_a_network_does_not_disturb_the_global_random_numbers() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build()
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("observations", "actions"),
    [
        (gymnasium.spaces.Discrete(4), gymnasium.spaces.Discrete(2)),
        (gymnasium.spaces.Box(0, 1, (4, 64, 64)), gymnasium.spaces.Discrete(2)),
        (VECTOR, gymnasium.spaces.Box(-1, 1, (2,))),
    ],
)
def test_spaces_without_a_network_are_refused(observations: gymnasium.Space, actions: gymnasium.Space) -> None:
    with pytest.raises(ValueError, match="no network for"):
        build_model(observations, actions, "small", seed=0)


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


def test_a_padded_pixel_convolution_has_a_border_of_zeros_after_centring() -> None:
    layer = orthogonal(PixelConv2d(4, 16, 3, stride=1, padding=1))
    nn.init.normal_(layer.bias)
    layer.set_pixel_moments(73.5, 41.25)
    screens = pixels(2, 4, 84, 84)
    expected = nn.functional.conv2d((screens.float() - 73.5) / 41.25, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(screens), expected, rtol=1e-4, atol=1e-4)


def test_a_residual_block_adds_to_its_input_what_two_convolutions_make_of_it() -> None:
    block, features = ResidualBlock(3), torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    for layer in (block.first, block.second):
        nn.init.normal_(layer.bias)
    branch = block.second(torch.relu(block.first(torch.relu(features))))
    torch.testing.assert_close(block(features), features + branch)
    nn.init.zeros_(block.second.weight)
    nn.init.zeros_(block.second.bias)
    assert torch.equal(block(features), features)


def test_the_residual_network_neither_blows_up_nor_dies_out_at_the_start() -> None:
    model = build("impala")
    assert model.pixel_layer is not None
    model.pixel_layer.set_pixel_moments(127.5, 74.0)
    assert 0.1 < model.actor(pixels(4, 4, 84, 84)).detach().std() < 10.0


@pytest.mark.parametrize("with_onednn", [True, False])
@pytest.mark.parametrize("size", ["small", "large", "impala"])
def test_a_frozen_network_is_the_network_as_it_was(
    size: str, with_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_onednn:
        monkeypatch.setattr(actor_critic, "onednn_is_usable", lambda: False)
    model, screens = build(size), pixels(3, 4, 84, 84)
    assert model.pixel_layer is not None
    model.pixel_layer.set_pixel_moments(73.5, 41.25)
    nn.init.normal_(model.value_head.bias)
    with torch.no_grad():
        expected, frozen = model(screens), model.frozen()
        for count in (3, 1, 3):
            for actual, value in zip(frozen(screens[:count]), expected, strict=True):
                torch.testing.assert_close(actual, value[:count], rtol=1e-4, atol=1e-5)


def test_this_pytorch_has_the_calls_that_make_acting_faster() -> None:
    assert onednn_is_usable() == torch.backends.mkldnn.is_available()


def test_vectors_are_seen_in_32_bits_whatever_the_precision() -> None:
    spaces = (VECTOR, gymnasium.spaces.Discrete(2))
    exact, asked = (build_model(*spaces, "small", seed=0, precision=p) for p in (torch.float32, torch.bfloat16))
    observations = torch.randn(8, 3)
    for expected, got in zip(exact(observations), asked(observations), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("size", ["small", "large", "impala"])
def test_encoders_in_16_bits_say_the_same_within_rounding_from_float32_weights_and_heads(
    size: Literal["small", "large", "impala"],
) -> None:
    models = [
        build_model(SCREENS, gymnasium.spaces.Discrete(6), size, seed=0, precision=precision)
        for precision in (torch.float32, torch.bfloat16)
    ]
    observations = pixels(8, 4, 84, 84)
    for network in ("forward", "frozen"):
        exact, rounded = (
            model(observations) if network == "forward" else model.frozen()(observations) for model in models
        )
        for expected, got in zip(exact, rounded, strict=True):
            assert got.dtype == torch.float32
            assert not torch.equal(got, expected)
            torch.testing.assert_close(got, expected, rtol=0.05, atol=0.02)
            # Heads in 16 bits would give numbers that 16 bits can hold.
            assert not torch.equal(got, got.bfloat16().float())
    logits, values = models[1](observations)
    (logits.square().sum() + values.square().sum()).backward()
    for parameter in models[1].parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32


@pytest.mark.parametrize("mean", [200.0, 200.4])
def test_16_bits_see_small_differences_between_bright_pixels(mean: float) -> None:
    model = build_model(SCREENS, gymnasium.spaces.Discrete(6), "small", seed=0, precision=torch.bfloat16)
    layer = model.pixel_layer
    assert layer is not None
    layer.set_pixel_moments(mean, 5.0)
    bright = 190 + pixels(2, 4, 84, 84) % 20
    layer.in_16_bits = False
    expected = layer(bright)
    layer.in_16_bits = True
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(bright).float()
    assert (got - expected).std() < 0.01 * expected.std()
