"""The arrays that a step of a block leaves its results in, laid out over one piece of memory."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ppo.envs import StepResult
from ppo.envs.atari.screens import SCREEN_SIZE

FRAMES_PER_SECOND = 60.0
_CACHE_LINE = 64


@dataclass(frozen=True)
class StepArrays:
    """Results of a step of N games with C stacked screens; `ppo.envs` says what they mean.

    Observations are channel-first, (N, C, 84, 84) uint8, on memory ordered (N, 84, 84, C): convolutions are fastest so
    on a CPU, and no later stage has to move a pixel.
    """

    stacks: NDArray[np.uint8]
    """(N, 84, 84, C); what follows is (N, ...) too."""
    final_stacks: NDArray[np.uint8]
    """Like `stacks`, valid where a game ended."""
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    life_lost: NDArray[np.bool_]
    episode_return: NDArray[np.float64]
    episode_length: NDArray[np.int64]

    @classmethod
    def over(cls, memory: memoryview, num_envs: int, depth: int) -> "StepArrays":
        """Lay the arrays out over memory of the size that `bytes_needed` says."""
        arrays = {}
        for name, shape, dtype, start in _layout(num_envs, depth):
            arrays[name] = np.frombuffer(memory, dtype, int(np.prod(shape)), start).reshape(shape)
        return cls(**arrays)

    @classmethod
    def empty(cls, num_envs: int, depth: int) -> "StepArrays":
        """Return arrays of zeros in memory of this process."""
        return cls.over(memoryview(bytearray(cls.bytes_needed(num_envs, depth))), num_envs, depth)

    @staticmethod
    def bytes_needed(num_envs: int, depth: int) -> int:
        """Return how much memory the arrays take."""
        return sum(_padded(shape, dtype) for _, shape, dtype, _ in _layout(num_envs, depth))

    def __getitem__(self, part: slice) -> "StepArrays":
        """Return the arrays of a part of the games, in the same memory."""
        return StepArrays(*(getattr(self, field.name)[part] for field in dataclasses.fields(self)))

    @property
    def observations(self) -> NDArray[np.uint8]:
        """The current observations, (N, C, 84, 84)."""
        observations: NDArray[np.uint8] = self.stacks.transpose(0, 3, 1, 2)
        return observations

    def result(self) -> StepResult:
        """Return them as `step` does."""
        info = {
            "life_lost": self.life_lost,
            "final_obs": self.final_stacks.transpose(0, 3, 1, 2),
            "episode_return": self.episode_return,
            "episode_length": self.episode_length,
        }
        return self.observations, self.rewards, self.terminated, self.truncated, info


def halves(num_envs: int) -> tuple[slice, ...]:
    """Return the groups of a block that is stepped in halves."""
    half = num_envs // 2
    return tuple(slice(*ends) for ends in ((0, half), (half, num_envs)) if ends[0] < ends[1])


def _layout(num_envs: int, depth: int) -> Iterator[tuple[str, tuple[int, ...], type[np.generic], int]]:
    """Yield the name, shape, type and first byte of every array."""
    stacks = (num_envs, SCREEN_SIZE, SCREEN_SIZE, depth)
    start = 0
    for name, shape, dtype in (
        ("stacks", stacks, np.uint8),
        ("final_stacks", stacks, np.uint8),
        ("rewards", (num_envs,), np.float64),
        ("terminated", (num_envs,), np.bool_),
        ("truncated", (num_envs,), np.bool_),
        ("life_lost", (num_envs,), np.bool_),
        ("episode_return", (num_envs,), np.float64),
        ("episode_length", (num_envs,), np.int64),
    ):
        yield name, shape, dtype, start
        start += _padded(shape, dtype)


def _padded(shape: tuple[int, ...], dtype: type[np.generic]) -> int:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return -(-size // _CACHE_LINE) * _CACHE_LINE
