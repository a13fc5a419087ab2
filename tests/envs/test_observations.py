"""Observations of every space as images or vectors, equal to those that Gymnasium itself makes of them."""

import numpy as np
import pytest
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    OneOf,
    Sequence,
    Space,
    Text,
    Tuple,
)
from gymnasium.spaces.utils import flatten, flatten_space

from ppo.envs.observations import ObservationConverter

VECTORS = {
    "float32 vectors": Box(-1, 1, (5,), np.float32),
    "float64 vectors": Box(-np.inf, np.inf, (5,), np.float64),
    "integer vectors": Box(-3, 9, (4,), np.int16),
    "uint8 vectors": Box(0, 255, (128,), np.uint8),
    "matrices": Box(0, 1, (2, 3), np.float32),
    "float images": Box(0, 1, (4, 4, 3), np.float32),
    "uint8 videos": Box(0, 255, (2, 4, 4, 3), np.uint8),
    "single numbers": Box(0, 1, (), np.float32),
    "categories": Discrete(5),
    "categories that begin elsewhere": Discrete(4, start=-2),
    "several categories": MultiDiscrete([2, 3, 4]),
    "several categories that begin elsewhere": MultiDiscrete([2, 3], start=[1, -5]),
    "a table of categories": MultiDiscrete([[2, 3], [4, 5]]),
    "bits": MultiBinary(6),
    "a table of bits": MultiBinary([2, 3]),
    "one of several": OneOf([Discrete(3), Box(0, 1, (2,), np.float32)]),
    "tuples": Tuple((Discrete(3), Box(-1, 1, (2,), np.float64))),
    "dicts": Dict({"later": Discrete(2), "earlier": Box(0, 255, (3, 3, 3), np.uint8)}),
    "nested parts": Dict({"b": Tuple((Dict({"c": MultiBinary(2)}), Discrete(2))), "a": MultiDiscrete([2, 2])}),
}


def convert(space: Space, observation: object) -> np.ndarray:
    converter = ObservationConverter(space)
    out = np.full(converter.space.shape, 77, converter.space.dtype)
    converter.convert(observation, out)
    return out


@pytest.mark.parametrize("kind", VECTORS)
def test_vectors_are_those_that_gymnasium_flattens_to(kind: str) -> None:
    space, converter = VECTORS[kind], ObservationConverter(VECTORS[kind])
    space.seed(0)
    assert converter.space.dtype == np.float32
    assert converter.space.shape == flatten_space(space).shape
    for _ in range(10):
        observation = space.sample()
        np.testing.assert_array_equal(convert(space, observation), np.float32(flatten(space, observation)))


@pytest.mark.parametrize("kind", VECTORS)
def test_vectors_are_within_the_space_that_is_reported(kind: str) -> None:
    VECTORS[kind].seed(1)
    assert convert(VECTORS[kind], VECTORS[kind].sample()) in ObservationConverter(VECTORS[kind]).space


@pytest.mark.parametrize(
    "shape, channel_first",
    [
        ((84, 96), (1, 84, 96)),
        ((84, 96, 3), (3, 84, 96)),
        ((4, 84, 96), (4, 84, 96)),
        ((7, 9, 7), (7, 7, 9)),
        ((5, 2, 3), (3, 5, 2)),
    ],
)
def test_images_are_channel_first_and_their_channels_the_smaller_outer_axis(shape, channel_first) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    out = convert(Box(0, 255, shape, np.uint8), image)
    assert (out.shape, out.dtype) == (channel_first, np.uint8)
    if len(shape) == 2:
        np.testing.assert_array_equal(out[0], image)
    elif shape[2] <= shape[0]:
        np.testing.assert_array_equal(out, np.moveaxis(image, 2, 0))
    else:
        np.testing.assert_array_equal(out, image)


@pytest.mark.parametrize("shape", [(7, 7, 20), (7, 9, 7), (20, 7, 7)])
@pytest.mark.parametrize("axis", ["first", "last"])
def test_the_channel_axis_can_be_set_where_the_shape_is_ambiguous(shape, axis) -> None:
    converter = ObservationConverter(Box(0, 255, shape, np.uint8), axis)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = image if axis == "first" else np.moveaxis(image, 2, 0)
    out = np.empty(converter.space.shape, np.uint8)
    converter.convert(image, out)
    np.testing.assert_array_equal(out, expected)
    assert converter.notes == ()


def test_guessed_channels_that_are_unusual_are_named_with_the_flag() -> None:
    assert ObservationConverter(Box(0, 255, (64, 64, 3), np.uint8)).notes == ()
    assert ObservationConverter(Box(0, 255, (7, 7, 20), np.uint8)).notes == (
        "observations (7, 7, 20) are taken as 7 channels of 7x20 pixels; "
        "if the channels are the last axis, set --channel_axis=last",
    )


def test_text_among_the_parts_is_left_out_and_named() -> None:
    space = Dict({"mission": Text(9), "x": Discrete(2), "deep": Tuple((Dict({"name": Text(3)}), MultiBinary(2)))})
    converter = ObservationConverter(space)
    assert converter.notes == ("text in its observations is ignored: deep/0/name, mission",)
    observation = {"mission": "go", "x": 1, "deep": ({"name": "a"}, np.array([1, 0], np.int8))}
    np.testing.assert_array_equal(convert(space, observation), [1, 0, 0, 1])


@pytest.mark.parametrize(
    "space",
    [
        Text(5),
        Graph(Discrete(2), None),
        Sequence(Discrete(2)),
        Dict({"a": Sequence(Discrete(2)), "b": Discrete(2)}),
        Dict({"a": Text(4)}),
        Box(0, 1, (0,)),
        Discrete(2**62),
        Space(),
    ],
    ids=lambda space: type(space).__name__,  # the last one's repr has an address, on which two workers would not agree
)
def test_spaces_without_a_fixed_length_are_refused(space: Space) -> None:
    with pytest.raises(ValueError, match="observations of"):
        ObservationConverter(space)


@pytest.mark.parametrize(
    "space, observation",
    [
        (Box(-1, 1, (4,)), np.zeros(1, np.float32)),
        (Box(-1, 1, (4,)), 0.0),
        (Box(0, 255, (8, 8, 3), np.uint8), np.zeros((8, 8, 1), np.uint8)),
        (Discrete(3), 3),
        (Discrete(3), -1),
        (MultiDiscrete([2, 2]), np.array([0, 2])),
        (MultiDiscrete([2, 2]), np.array([0])),
        (MultiBinary(3), np.zeros(2, np.int8)),
    ],
    ids=str,
)
def test_an_observation_that_is_not_of_its_space_is_refused_and_not_spread_out(space: Space, observation) -> None:
    with pytest.raises(ValueError, match="the observation"):
        convert(space, observation)


def test_bounds_beyond_float32_are_infinite() -> None:
    space = ObservationConverter(Box(-1e300, 1e300, (2,), np.float64)).space
    assert not space.is_bounded("above") and not space.is_bounded("below")
