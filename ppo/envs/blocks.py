"""What all blocks of environments share: their spaces and the arrays of step results."""

import zlib
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ppo.envs import ArrayState, Environments, StepResult
from ppo.envs.arrays import StepArrays


class Block(Environments):
    """A block of environments with one observation space and one action space."""

    def __init__(
        self,
        arrays: StepArrays,
        observation_space: Box,
        action_space: gymnasium.Space[Any],
        *,
        frames_per_second: float,
        uncompiled: str = "",
    ) -> None:
        """Describe environments whose steps write their results to `arrays`."""
        self.arrays, self.observations = arrays, arrays.observations
        self.num_envs = len(arrays.rewards)
        self.frames_per_second, self.uncompiled = frames_per_second, uncompiled
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, self.num_envs)
        self.action_space = batch_space(action_space, self.num_envs)
        self._ended: list[list[ArrayState | None]] = [[] for _ in range(self.num_envs)]

    def keep_game(self, position: int, game: ArrayState | None, last_seen: NDArray[Any]) -> None:
        """Keep a finished game for `take_games`, with a checksum of its last observation."""
        seen = np.array([zlib.crc32(last_seen.tobytes())], np.int64)
        self._ended[position].append(None if game is None else {**game, "last_seen": seen})

    def take_games(self) -> list[list[ArrayState | None]]:
        """Return the games that have ended since the last call; see `Environments.take_games`."""
        games, self._ended = self._ended, [[] for _ in range(self.num_envs)]
        return games


class BlockInHalves(Block):
    """A block in two groups: one is stepped while the network acts for the other."""

    @property
    def groups(self) -> tuple[slice, ...]:
        """Two halves, or one group if there is only one environment."""
        return halves(self.num_envs)

    def step(self, actions: NDArray[Any]) -> StepResult:
        """Take one step in every environment; see the package's docstring for what comes back."""
        for group in self.groups:
            self.send(group, actions[group])
        for group in self.groups:
            self.recv(group)
        return self.arrays.result()


def halves(num_envs: int) -> tuple[slice, ...]:
    """Return the groups of a block that is stepped in halves."""
    half = num_envs // 2
    return tuple(slice(*ends) for ends in ((0, half), (half, num_envs)) if ends[0] < ends[1])
