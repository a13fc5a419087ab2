"""The arrays of a block's step results, laid out over one piece of memory that may be shared."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ppo.envs import StepResult

_CACHE_LINE = 64


@dataclass(frozen=True)
class StepArrays:
    """Results of a step of N environments; documented in `ppo.envs`.

    Images, that is uint8 observations of three axes, are channel-first, (N, C, H, W), over memory ordered (N, H, W, C):
    CPU convolutions are fastest with that layout, and no later stage has to move a pixel.
    """

    observations: NDArray[Any]
    """(N, *shape)."""
    final_obs: NDArray[Any]
    """Like `observations`, valid where an episode ended; the fields below are (N,)."""
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    life_lost: NDArray[np.bool_]
    episode_return: NDArray[np.float64]
    episode_length: NDArray[np.int64]

    @classmethod
    def over(cls, memory: memoryview, num_envs: int, shape: tuple[int, ...], dtype: DTypeLike) -> "StepArrays":
        """Lay the arrays out over memory of `bytes_needed` bytes.

        Args:
            memory: writable bytes.
            num_envs: number of environments.
            shape: shape of one observation.
            dtype: dtype of one observation.
        """
        arrays, start = {}, 0
        for name, stored, kind in _layout(num_envs, shape, dtype):
            array = np.frombuffer(memory, kind, math.prod(stored), start).reshape(stored)
            arrays[name] = array.transpose(0, 3, 1, 2) if array.ndim == 4 and kind == np.uint8 else array
            start += _padded(stored, kind)
        return cls(**arrays)

    @classmethod
    def empty(cls, num_envs: int, shape: tuple[int, ...], dtype: DTypeLike) -> "StepArrays":
        """Return arrays of zeros in this process's memory."""
        memory = memoryview(bytearray(cls.bytes_needed(num_envs, shape, dtype)))
        return cls.over(memory, num_envs, shape, dtype)

    @staticmethod
    def bytes_needed(num_envs: int, shape: tuple[int, ...], dtype: DTypeLike) -> int:
        """Return how many bytes the arrays take."""
        return sum(_padded(stored, kind) for _, stored, kind in _layout(num_envs, shape, dtype))

    def __getitem__(self, part: slice) -> "StepArrays":
        """Return views of the arrays for a slice of the environments."""
        return StepArrays(*(getattr(self, field.name)[part] for field in dataclasses.fields(self)))

    def result(self) -> StepResult:
        """Return the arrays in the form that `step` returns."""
        info = {
            "life_lost": self.life_lost,
            "final_obs": self.final_obs,
            "episode_return": self.episode_return,
            "episode_length": self.episode_length,
        }
        return self.observations, self.rewards, self.terminated, self.truncated, info


def _layout(
    num_envs: int, shape: tuple[int, ...], dtype: DTypeLike
) -> Iterator[tuple[str, tuple[int, ...], np.dtype[Any]]]:
    """Yield every array's name, shape in memory and dtype."""
    observation = np.dtype(dtype)
    if observation == np.uint8 and len(shape) == 3:
        channels, height, width = shape
        shape = (height, width, channels)
    yield from (
        ("observations", (num_envs, *shape), observation),
        ("final_obs", (num_envs, *shape), observation),
        ("rewards", (num_envs,), np.dtype(np.float64)),
        ("terminated", (num_envs,), np.dtype(np.bool_)),
        ("truncated", (num_envs,), np.dtype(np.bool_)),
        ("life_lost", (num_envs,), np.dtype(np.bool_)),
        ("episode_return", (num_envs,), np.dtype(np.float64)),
        ("episode_length", (num_envs,), np.dtype(np.int64)),
    )


def _padded(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return -(-math.prod(shape) * dtype.itemsize // _CACHE_LINE) * _CACHE_LINE
