"""Observations as arrays: images stay images, everything else becomes a float32 vector.

An image is a uint8 Box of two or three axes. By default its channel axis is the smaller of the first and the last, the
last if both are equal; small images of many channels need `channel_axis`.
Vectors are those of `gymnasium.spaces.utils.flatten`: boxes are flattened, discrete values are one-hot, and the parts
of a Dict or Tuple are concatenated. Text among those parts is left out.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Box, Space
from gymnasium.spaces.utils import flatdim, flatten, flatten_space
from numpy.typing import NDArray

from ppo.families import ChannelAxis

Writer = Callable[[Any, NDArray[Any]], None]
Path = tuple[Any, ...]

# A first layer of 64 units then has 4 GiB of weights. One-hot vectors of hashes would be far longer.
_MOST_ENTRIES = 2**24
# Grey, RGB, RGBA, or four stacked greys. A larger number may be the height of a small image with channels last.
_USUAL_CHANNELS = 4


class ObservationConverter:
    """Writes observations of a space into rows of an array."""

    space: Box
    """The space of the rows: uint8 images (C, H, W) or float32 vectors."""
    convert: Writer
    """Takes an observation and the array to write it to; raises ValueError if the observation is not in the space."""
    notes: tuple[str, ...] = ()
    """What a user should know about the conversion: text that is left out, or a guessed channel axis."""

    def __init__(self, space: Space[Any], channel_axis: ChannelAxis = "auto") -> None:
        """Prepare for observations of a space; `channel_axis` applies to images of three axes.

        Raises:
            ValueError: the observations cannot become images or vectors of a fixed length above 0.
        """
        if is_image(space):
            assert space.shape is not None
            is_last = len(space.shape) == 3 and _channels_are_last(space.shape, channel_axis)
            self.space, self.convert = _image_space(space.shape, is_last), _image_writer(space.shape, is_last)
            if channel_axis == "auto" and self.space.shape[0] > _USUAL_CHANNELS:
                self.notes = (_guess(self.space.shape, space.shape, is_last),)
            return
        lows, highs, writers, left_out, length = [], [], [], [], 0
        for path, leaf in leaves(space):
            if _is_text(leaf):
                left_out.append("/".join(map(str, path)))
                continue
            flat = _flat(leaf)
            part = slice(length, length := length + flat.shape[0])
            writers.append((path, _leaf_writer(leaf, part)))
            lows.append(flat.low)
            highs.append(flat.high)
        if length == 0:
            raise ValueError(f"observations of {space} contain no numbers")
        with np.errstate(over="ignore"):  # bounds beyond float32 become infinite
            low, high = (np.concatenate(bounds).astype(np.float32) for bounds in (lows, highs))
        self.space = Box(low, high, dtype=np.float32)
        if left_out:
            self.notes = (f"text in its observations is ignored: {', '.join(left_out)}",)
        self.convert = writers[0][1] if not writers[0][0] else _composite_writer(writers)


def is_image(space: Space[Any]) -> bool:
    """Return whether observations of a space are images."""
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)


def _image_space(shape: tuple[int, ...], is_last: bool) -> Box:
    if len(shape) == 2:
        shape = (1, *shape)
    elif is_last:
        shape = (shape[2], *shape[:2])
    return Box(0, 255, shape, np.uint8)


def _image_writer(shape: tuple[int, ...], is_last: bool) -> Writer:
    def write(observation: Any, out: NDArray[Any]) -> None:
        image = _shaped(observation, shape)
        out[...] = image.transpose(2, 0, 1) if is_last else image

    return write


def _channels_are_last(shape: tuple[int, ...], channel_axis: ChannelAxis) -> bool:
    return shape[2] <= shape[0] if channel_axis == "auto" else channel_axis == "last"


def _guess(image: tuple[int, ...], shape: tuple[int, ...], is_last: bool) -> str:
    channels, height, width = image
    other = "first" if is_last else "last"
    return (
        f"observations {shape} are taken as {channels} channels of {height}x{width} pixels; "
        f"if the channels are the {other} axis, set --channel_axis={other}"
    )


def leaves(space: Space[Any], path: Path = ()) -> Iterator[tuple[Path, Space[Any]]]:
    """Yield the leaves of a nested space, each after the path of keys that leads to it."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in parts:
            yield from leaves(part, (*path, key))
    else:
        yield path, space


def _is_text(space: Space[Any]) -> bool:
    # By dtype, since MiniGrid's missions are not `spaces.Text`.
    return space.dtype is not None and space.dtype.kind == "U"


def _flat(space: Space[Any]) -> Box:
    with contextlib.suppress(NotImplementedError):  # a kind of space unknown to Gymnasium
        if space.is_np_flattenable and flatdim(space) > _MOST_ENTRIES:
            raise ValueError(f"observations of {space} become vectors of more than {_MOST_ENTRIES:,} entries")
        flat = flatten_space(space)
        if isinstance(flat, Box):
            return flat
    raise ValueError(f"observations of {space} do not become vectors of a fixed length")


def _composite_writer(parts: list[tuple[Path, Writer]]) -> Writer:
    def write(observation: Any, out: NDArray[Any]) -> None:
        for path, write_part in parts:
            value = observation
            for key in path:
                value = value[key]
            write_part(value, out)

    return write


def _leaf_writer(space: Space[Any], part: slice) -> Writer:
    """Return a function that writes an observation to a part of a vector."""
    if isinstance(space, Box | spaces.MultiBinary):
        return _box_writer(space.shape, part)
    if isinstance(space, spaces.Discrete):
        return _discrete_writer(space, part)
    if isinstance(space, spaces.MultiDiscrete):
        return _multi_discrete_writer(space, part)

    def write(observation: Any, out: NDArray[Any]) -> None:
        out[part] = flatten(space, observation)

    return write


def _box_writer(shape: tuple[int, ...], part: slice) -> Writer:
    def write(observation: Any, out: NDArray[Any]) -> None:
        out[part] = _shaped(observation, shape).ravel()

    return write


def _discrete_writer(space: spaces.Discrete, part: slice) -> Writer:
    first, size, start = int(space.start), int(space.n), part.start

    def write(observation: Any, out: NDArray[Any]) -> None:
        category = int(observation) - first
        if not 0 <= category < size:
            raise ValueError(f"the observation {observation} is not in {space}")
        out[part] = 0
        out[start + category] = 1

    return write


def _multi_discrete_writer(space: spaces.MultiDiscrete, part: slice) -> Writer:
    sizes = space.nvec.ravel()
    starts = part.start + np.cumsum(sizes) - sizes

    def write(observation: Any, out: NDArray[Any]) -> None:
        categories = (_shaped(observation, space.shape) - space.start).ravel()
        if ((categories < 0) | (categories >= sizes)).any():
            raise ValueError(f"the observation {observation} is not in {space}")
        out[part] = 0
        out[starts + categories] = 1

    return write


def _shaped(observation: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return an observation as an array of this shape; numpy alone would broadcast one that is too small."""
    array = np.asarray(observation)
    if array.shape != shape:
        raise ValueError(f"the observation has shape {array.shape}, its space {shape}")
    return array
