"""What all engines for Atari games have in common: the spaces, and the arrays that a step leaves its results in."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ppo.envs import Environments, StepResult
from ppo.envs.screens import SCREEN_SIZE

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


class AtariBlock(Environments):
    """A block of games of one ROM with stacked screens."""

    def __init__(self, arrays: StepArrays, num_actions: int) -> None:
        """Describe games that have so many actions and leave the results of their steps in `arrays`."""
        self.arrays, self.num_actions = arrays, num_actions
        self.num_envs, depth = len(arrays.stacks), arrays.stacks.shape[-1]
        self.observations = arrays.observations
        self.frames_per_second = FRAMES_PER_SECOND
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = gymnasium.spaces.Box(0, 255, (depth, SCREEN_SIZE, SCREEN_SIZE), np.uint8)
        self.single_action_space = gymnasium.spaces.Discrete(num_actions)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)


class AtariBlockInHalves(AtariBlock):
    """A block in two groups: the emulators of one run while the network acts for the other."""

    @property
    def groups(self) -> tuple[slice, ...]:
        """Two halves, or one group if there is one game."""
        return halves(self.num_envs)

    def step(self, actions: NDArray[Any]) -> StepResult:
        """Take one agent step in every game; see the package's docstring for what comes back."""
        for group in self.groups:
            self.send(group, actions[group])
        for group in self.groups:
            self.recv(group)
        return self.arrays.result()


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
