"""Actions as arrays; the parts of a Dict or Tuple are concatenated in one vector."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from numpy.typing import NDArray

from ppo.envs.observations import leaves

ActionSpace = Discrete | MultiDiscrete | MultiBinary | Box


class CompositeSpace(Box):
    """Vectors (D,) of float64 that hold one element of every part of a Dict or Tuple, nested or not."""

    parts: tuple[ActionSpace, ...]

    def __init__(self, space: Space[Any]) -> None:
        """Lay the parts out in the order of the space.

        Raises:
            ValueError: a part is of a kind that is not supported on its own, or there are no parts.
        """
        self._composite = space
        self.parts = tuple(action_space(part) for _, part in leaves(space))
        if not self.parts:
            raise ValueError(f"actions of {space} have no parts")
        sides = zip(*(bounds(part) for part in self.parts), strict=True)
        low, high = (
            np.concatenate(
                [np.broadcast_to(limit, shape_of(part)).ravel() for part, limit in zip(self.parts, side, strict=True)]
            )
            for side in sides
        )
        super().__init__(low.astype(np.float64), high.astype(np.float64), dtype=np.float64)
        self._ends = np.cumsum([math.prod(shape_of(part)) for part in self.parts])

    def element(self, vector: NDArray[np.float64]) -> Any:
        """Return the element of the Dict or Tuple that a vector encodes."""
        return _element(self._composite, iter(np.split(vector, self._ends[:-1])))


def action_space(space: Space[Any]) -> ActionSpace:
    """Return the space of the arrays in which actions are chosen, logged and saved.

    Raises:
        ValueError: the space is not supported.
    """
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return CompositeSpace(space)
    if not isinstance(space, ActionSpace):
        raise ValueError(
            "the action space must be Discrete, MultiDiscrete, MultiBinary or Box, or a Dict or Tuple of these, "
            f"got {space}"
        )
    return space


def bounds(space: ActionSpace) -> tuple[Any, Any]:
    """Return the lowest and the highest value of a space's elements, or of each of their entries."""
    if isinstance(space, Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    return (0, 1) if isinstance(space, MultiBinary) else (space.low, space.high)


def shape_of(space: ActionSpace) -> tuple[int, ...]:
    """Return the shape of a space's elements."""
    assert space.shape is not None
    return space.shape


def _element(space: Space[Any], parts: Iterator[NDArray[np.float64]]) -> Any:
    """Build an element of a space from the vectors of its parts."""
    if isinstance(space, spaces.Dict):
        return {key: _element(part, parts) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_element(part, parts) for part in space.spaces)
    numbers = next(parts)
    assert space.shape is not None and space.dtype is not None
    if space.dtype.kind != "f":
        numbers = np.rint(numbers)
    array = numbers.astype(space.dtype).reshape(space.shape)
    return array.item() if isinstance(space, Discrete) else array
