"""The actor-critic built for spaces and settings: sizes, initial weights, arithmetic, and what is refused."""

import math
from typing import Any, Literal

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from ppo.config import ModelSettings
from ppo.models.actor_critic import ActorCritic, build_distribution, build_model
from ppo.models.frozen import freeze
from ppo.settings import Refusal
from tests.models import outside
from tests.models.test_encoders import pixels

Size = Literal["small", "large", "impala"]
SCREENS = spaces.Box(0, 255, (4, 84, 84), np.uint8)
VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)
BOX = spaces.Box(-1.0, 1.0, (2,))
CAR = spaces.Box(np.array([-1.0, 0.0, 0.0], np.float32), np.ones(3, np.float32))


def build(
    size: Any = "small",
    *,
    space: gymnasium.Space[Any] = SCREENS,
    num_actions: int = 6,
    seed: int = 0,
    precision: torch.dtype = torch.float32,
    **settings: Any,
) -> ActorCritic:
    actions = spaces.Discrete(num_actions)
    return build_model(space, actions, ModelSettings(model_size=size, **settings), seed=seed, precision=precision)


def set_pixel_moments(model: ActorCritic, mean: float, deviation: float) -> None:
    model.inputs.applied.copy_(torch.tensor([mean, deviation]))


def test_initial_weights_do_not_depend_on_the_number_of_threads() -> None:
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


@pytest.mark.parametrize(
    ("size", "space"),
    [("small", SCREENS), ("large", SCREENS), ("impala", SCREENS), ("small", VECTOR), ("large", VECTOR)],
)
def test_the_network_gives_an_output_per_action_and_a_value(size: Size, space: spaces.Box) -> None:
    observations = torch.from_numpy(np.stack([space.sample(), space.sample()]))
    prediction = build(size, space=space)(observations)
    assert (prediction.action.shape, prediction.values.shape) == ((2, 6), (2,))


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
def test_the_number_of_parameters_is_that_of_the_published_network(size: Size, count: int) -> None:
    assert sum(parameter.numel() for parameter in build(size).parameters()) == count


def test_the_networks_have_0_678_and_1_688_million_parameters() -> None:
    millions = [sum(p.numel() for p in build(size).parameters()) / 1e6 for size in ("small", "large")]
    assert [round(number, 3) for number in millions] == [0.678, 1.688]


@pytest.mark.parametrize(("size", "network"), [("small", "a3c"), ("large", "nature"), ("impala", "impala")])
def test_the_size_of_a_network_for_images_is_another_name_of_it(size: Size, network: str) -> None:
    by_size, by_name = build(size), build("small", network=network)
    assert by_size.state_dict().keys() == by_name.state_dict().keys()
    assert all(torch.equal(tensor, by_name.state_dict()[name]) for name, tensor in by_size.state_dict().items())


@pytest.mark.parametrize("space", [SCREENS, VECTOR])
@pytest.mark.parametrize("trunk", ["auto", "shared", "separate"])
def test_images_share_one_encoder_and_vectors_have_two_unless_set_otherwise(space: spaces.Box, trunk: str) -> None:
    model = build(space=space, trunk=trunk)
    is_shared = space is SCREENS if trunk == "auto" else trunk == "shared"
    assert (model.critic is None) == is_shared
    if model.critic is not None:
        own, other = (torch.cat([p.flatten() for p in part.parameters()]) for part in (model.actor, model.critic))
        assert own.data_ptr() != other.data_ptr() and not torch.equal(own, other)


def test_with_an_encoder_each_policy_and_values_learn_apart_and_with_one_they_do_not() -> None:
    observations = torch.randn(4, 3)
    for trunk in ("shared", "separate"):
        model = build(space=VECTOR, trunk=trunk)
        gradients = torch.autograd.grad(
            model(observations).values.sum(), list(model.actor.parameters()), allow_unused=True
        )
        assert all(gradient is None for gradient in gradients) == (trunk == "separate")


@pytest.mark.parametrize("size", ["small", "large"])
def test_every_layer_of_the_network_is_orthogonal(size: Size) -> None:
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


@pytest.mark.parametrize("space", [SCREENS, VECTOR])
def test_default_initialisation_is_that_of_torch_for_every_layer(space: spaces.Box) -> None:
    model = build(space=space, initialization="default")
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    assert len(layers) == (5 if space is SCREENS else 6)
    for layer in layers:
        # Uniform within the root of 1 / number of inputs, biases too.
        bound = 1.0 / math.sqrt(layer.weight[0].numel())
        for numbers in (layer.weight.detach(), layer.bias.detach()):
            assert numbers.abs().max() <= bound and numbers.any()
        spread = layer.weight.detach().std() / bound
        assert layer.weight.numel() < 100 or spread.item() == pytest.approx(1.0 / math.sqrt(3.0), rel=0.1)
    first, again = (build(space=space, initialization="default", seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_the_first_policy_is_nearly_uniform() -> None:
    probabilities = build()(pixels(8, 4, 84, 84)).action.softmax(-1)
    torch.testing.assert_close(probabilities, torch.full((8, 6), 1 / 6), atol=0.01, rtol=0)


@pytest.mark.parametrize("size", ["small", "large", "impala"])
def test_the_order_of_the_axes_in_memory_changes_nothing(size: Size) -> None:
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


def test_the_residual_network_neither_blows_up_nor_dies_out_at_the_start() -> None:
    model = build("impala")
    set_pixel_moments(model, 127.5, 74.0)
    assert 0.1 < model.actor(pixels(4, 4, 84, 84)).detach().std() < 10.0


# Spaces and settings.


@pytest.mark.parametrize(
    "observations",
    [
        spaces.Discrete(4),
        spaces.Dict({"a": VECTOR}),
        spaces.Box(0, 1, (4, 64, 64)),
        spaces.Box(0, 1, (7, 7)),
        spaces.Box(0, 255, (7, 7), np.uint8),
        spaces.Box(0, 1, ()),
    ],
)
def test_observations_without_a_network_are_refused(observations: gymnasium.Space[Any]) -> None:
    with pytest.raises(Refusal, match="observations must be uint8 images or vectors, got"):
        build(space=observations)


def test_actions_without_a_policy_are_refused() -> None:
    with pytest.raises(Refusal, match="no policy supports the action space Text"):
        build_model(VECTOR, spaces.Text(3), ModelSettings(), seed=0)
    with pytest.raises(Refusal, match="policy=beta needs a Box with finite bounds, got Discrete"):
        build(policy="beta")
    with pytest.raises(Refusal, match="policy must be one of auto, categorical"):
        build(policy="softmax")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": "large"}, "model_size must fit the observations: large needs images of at least 36x36 pixels"),
        ({"network": "nature"}, "network must fit the observations: nature needs images of at least 36x36 pixels"),
    ],
)
def test_an_image_that_is_too_small_is_refused_with_the_setting_and_the_least_size(
    changes: dict[str, str], words: str
) -> None:
    with pytest.raises(Refusal, match=f"{words}, got 40x30"):
        build(space=spaces.Box(0, 255, (3, 30, 40), np.uint8), **changes)


def test_a_network_for_images_refuses_vectors() -> None:
    message = "network must fit the observations: a3c needs images, but the observations are vectors of 3 entries"
    with pytest.raises(Refusal, match=message):
        build(space=VECTOR, network="a3c")
    with pytest.raises(Refusal, match="model_size must be small or large unless observations are images"):
        build("impala", space=VECTOR)


def test_an_unknown_network_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(Refusal, match=r"network must be one of auto, a3c, .*got 'natur'; did you mean 'nature'"):
        build(network="natur")


def test_the_settings_of_a_gaussian_policy_reach_it() -> None:
    for is_dependent in (False, True):
        settings = ModelSettings(log_deviation_init=-1.5, state_dependent_deviation=is_dependent)
        model = build_model(VECTOR, BOX, settings, seed=0)
        log_deviations = model(torch.randn(5, 3)).action[:, 2:]
        assert ((log_deviations - log_deviations[:1]).abs().max() > 0.0) == is_dependent
        torch.testing.assert_close(log_deviations, torch.full((5, 2), -1.5), atol=0.1, rtol=0.0)


@pytest.mark.parametrize("is_dependent", [False, True])
def test_the_first_deviation_is_the_chosen_one_with_default_initial_weights_too(is_dependent: bool) -> None:
    settings = ModelSettings(log_deviation_init=-5.0, state_dependent_deviation=is_dependent, initialization="default")
    means, log_deviations = build_model(VECTOR, BOX, settings, seed=0)(torch.randn(100, 3)).action.chunk(2, -1)
    assert log_deviations.mean().item() == pytest.approx(-5.0, abs=0.3)
    assert means.mean().abs() < 0.5


def test_settings_of_a_gaussian_policy_are_no_trouble_to_another() -> None:
    settings = ModelSettings(log_deviation_init=-1.5, policy="beta")
    assert build_distribution(BOX, settings).name == "beta"


@pytest.mark.parametrize(
    ("network", "size", "count"),
    # Without the 24,824 parameters of CoordConvPPO's that nothing reads.
    [("coordconv", 48, 104_027 - 24_824), ("convnet", 96, 445_955)],
)
def test_networks_of_the_racing_car_have_the_published_parameters_and_all_of_them_learn(
    network: str, size: int, count: int
) -> None:
    settings = ModelSettings(network=network, head_units=100, policy="beta", action_start="0.5,0.5,0.1")
    model = build_model(spaces.Box(0, 255, (4, size, size), np.uint8), CAR, settings, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    prediction = model(pixels(8, 4, size, size))
    (prediction.action.square().sum() + prediction.values.square().sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("initialization", ["orthogonal", "default"])
@pytest.mark.parametrize("policy", ["gaussian", "beta"])
def test_the_first_brake_is_where_it_is_told(policy: str, initialization: Any) -> None:
    settings = ModelSettings(
        network="coordconv",
        head_units=100,
        policy=policy,
        action_start="0.5,0.4,0.1",
        initialization=initialization,
        log_deviation_init=-3.0,
    )
    model = build_model(spaces.Box(0, 255, (4, 48, 48), np.uint8), CAR, settings, seed=0)
    with torch.no_grad():
        mean = model.distribution.mean(model(pixels(8, 4, 48, 48)).action)
    actions = model.distribution.to_environment(mean.numpy()).mean(0)
    np.testing.assert_allclose(actions, (0.0, 0.4, 0.1), atol=0.05 if initialization == "orthogonal" else 0.15)


def test_a_layer_stands_before_each_head_of_any_network() -> None:
    model = build_model(VECTOR, BOX, ModelSettings(head_units=5, trunk="shared"), seed=0)
    observations = torch.randn(4, 3)
    features = model.actor(observations)
    assert model.policy_layer is not None and model.value_layer is not None
    expected = model.value_head(torch.relu(model.value_layer[0](features)))  # type: ignore[index]
    torch.testing.assert_close(model(observations).values, expected.squeeze(-1))
    outputs = model.policy_head(torch.relu(model.policy_layer[0](features)))  # type: ignore[index]
    torch.testing.assert_close(model(observations).action, outputs)
    assert not torch.equal(model.policy_layer[0].weight, model.value_layer[0].weight)  # type: ignore[index]


# Networks and policies from outside.


def test_a_network_from_outside_is_named_by_its_module() -> None:
    for space, shape in ((SCREENS, (4, 84, 84)), (VECTOR, (3,))):
        model = build(space=space, network="tests.models.outside:Linear", activation="relu")
        assert type(model.actor) is outside.Linear
        assert model.actor.built_for == (shape, "relu")
        prediction = model(torch.from_numpy(np.stack([space.sample(), space.sample()])))
        assert (prediction.action.shape, prediction.values.shape) == ((2, 6), (2,))


def test_a_network_from_outside_says_what_it_needs() -> None:
    with pytest.raises(Refusal, match=r"network must fit the observations: .*:WideOnly needs vectors of at least 100"):
        build(space=VECTOR, network="tests.models.outside:WideOnly")


def test_a_network_with_frozen_weights_is_refused_by_name() -> None:
    with pytest.raises(
        Refusal, match=r"a gradient for every parameter, but actor\.4\.weight has none; make it a buffer"
    ):
        build(space=VECTOR, network="tests.models.outside:WithFrozenWeight")


def test_a_network_with_unused_weights_is_refused_by_name() -> None:
    with pytest.raises(Refusal, match=r"no output depends on actor\.unused\.weight; remove it"):
        build(space=VECTOR, network="tests.models.outside:WithUnusedLayer")


def test_modules_that_do_not_act_as_they_learn_are_refused_by_name() -> None:
    rule = "must behave the same in acting and learning"
    with pytest.raises(Refusal, match=rf"network {rule}: RReLU \(actor.4\) is random; remove it"):
        build(space=VECTOR, network="tests.models.outside:WithRReLU")
    with pytest.raises(Refusal, match=rf"policy {rule}: Dropout \(policy_head.0\) is random"):
        build(space=VECTOR, policy="tests.models.outside:WithDropoutInItsHead")


@pytest.mark.parametrize("name", ["tests.models.nowhere:Linear", "tests.models.outside:Nothing"])
@pytest.mark.parametrize("setting", ["network", "policy"])
def test_a_class_that_cannot_be_imported_is_refused(setting: str, name: str) -> None:
    with pytest.raises(Refusal, match=f"{setting} must name an importable class, got '{name}'"):
        build(**{setting: name})


def test_a_policy_from_outside_is_named_by_its_module() -> None:
    model = build(policy="tests.models.outside:Greedy")
    assert type(model.distribution) is outside.Greedy
    assert model(pixels(2, 4, 84, 84)).action.shape == (2, 6)


def test_a_policy_from_outside_says_what_it_needs() -> None:
    with pytest.raises(Refusal, match=r"policy=tests.models.outside:Greedy needs a Discrete space, got Box"):
        build_model(VECTOR, BOX, ModelSettings(policy="tests.models.outside:Greedy"), seed=0)


# Arithmetic.


def test_vectors_are_seen_in_32_bits_whatever_the_precision() -> None:
    exact, asked = (build(space=VECTOR, precision=precision) for precision in (torch.float32, torch.bfloat16))
    observations = torch.randn(8, 3)
    for expected, got in zip(exact(observations), asked(observations), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("trunk", ["shared", "separate"])
@pytest.mark.parametrize("size", ["small", "large", "impala"])
def test_encoders_in_16_bits_say_the_same_within_rounding_from_float32_weights_and_heads(
    size: Size, trunk: str
) -> None:
    models = [build(size, precision=precision, trunk=trunk) for precision in (torch.float32, torch.bfloat16)]
    observations = pixels(8, 4, 84, 84)
    for network in ("forward", "frozen"):
        exact, rounded = (
            model(observations) if network == "forward" else freeze(model)(observations) for model in models
        )
        for expected, got in zip(exact, rounded, strict=True):
            assert got.dtype == torch.float32
            assert not torch.equal(got, expected)
            torch.testing.assert_close(got, expected, rtol=0.05, atol=0.02)
            # Heads in 16 bits would give numbers that 16 bits can hold.
            assert not torch.equal(got, got.bfloat16().float())
    prediction = models[1](observations)
    (prediction.action.square().sum() + prediction.values.square().sum()).backward()
    for parameter in models[1].parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32


def test_coordinates_in_16_bits_give_the_same_within_rounding() -> None:
    settings: dict[str, Any] = {"network": "coordconv", "head_units": 100}
    exact, rounded = (build(precision=precision, **settings) for precision in (torch.float32, torch.bfloat16))
    observations = pixels(8, 4, 84, 84)
    for expected, got in zip(exact(observations), rounded(observations), strict=True):
        assert not torch.equal(got, expected)
        torch.testing.assert_close(got, expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("mean", [200.0, 200.4])
def test_16_bits_see_small_differences_between_bright_pixels(mean: float) -> None:
    model = build(precision=torch.bfloat16)
    layer = model.pixel_layer
    assert layer is not None and layer.in_16_bits
    set_pixel_moments(model, mean, 5.0)
    bright = 190 + pixels(2, 4, 84, 84) % 20
    layer.in_16_bits = False
    expected = layer(bright)
    layer.in_16_bits = True
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(bright).float()
    assert (got - expected).std() < 0.01 * expected.std()


@pytest.mark.parametrize(("precision", "name"), [(torch.float32, "float32"), (torch.bfloat16, "bfloat16")])
def test_the_precision_has_the_name_of_its_setting(precision: torch.dtype, name: str) -> None:
    assert build(precision=precision).precision_name == name
    assert build(space=VECTOR, precision=precision).precision_name == "float32"
