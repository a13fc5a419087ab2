"""Logs the actions of a block's current episodes, so that a checkpoint can save them for replay."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo.envs.actions import ActionSpace, bounds

MAX_SAVED_ACTIONS = 100_000
"""Longer episodes are not replayed: a resumed run begins new ones."""
_FIRST_CAPACITY = 256


class ActionLog:
    """The actions that N environments have been sent since their episodes began."""

    def __init__(self, num_envs: int, space: ActionSpace) -> None:
        """Start with empty episodes."""
        assert space.shape is not None
        self._space = space
        # The actions of environment i are the first lengths[i] of row i, unless there were too many.
        self._actions = np.zeros((num_envs, _FIRST_CAPACITY, *space.shape), space.dtype)
        self._positions = np.arange(num_envs)
        self.lengths = np.zeros(num_envs, np.int64)
        """Steps of the current episodes, (N,)."""

    @property
    def saved_dtype(self) -> np.dtype[Any]:
        """The dtype in which actions are saved: checkpoints hold no small integers or floats."""
        dtype = self._actions.dtype
        if dtype.kind != "f":
            return np.dtype(np.int64)
        return np.dtype(np.float64 if dtype.itemsize > np.dtype(np.float32).itemsize else np.float32)

    def append(self, actions: NDArray[Any]) -> None:
        """Add one action for every environment, (N, *action_shape)."""
        self._make_room(int(self.lengths.max()) + 1)
        # Beyond MAX_SAVED_ACTIONS every action overwrites the last place.
        self._actions[self._positions, np.minimum(self.lengths, self._actions.shape[1] - 1)] = actions
        self.lengths += 1

    def clear(self, position: int) -> None:
        """Forget the episode of an environment."""
        self.lengths[position] = 0

    def saved(self, position: int) -> NDArray[Any]:
        """Return the actions of an episode, (L, *action_shape), or none if there were more than MAX_SAVED_ACTIONS."""
        return self._actions[position, : saved_length(int(self.lengths[position]))].astype(self.saved_dtype)

    def restore(self, position: int, saved: NDArray[Any]) -> NDArray[Any]:
        """Replace an environment's episode with `saved` actions; return them in the dtype of the space."""
        self._make_room(len(saved))
        self._actions[position, : len(saved)] = saved
        self.lengths[position] = len(saved)
        return self._actions[position, : len(saved)]

    def could_be_sent(self, saved: NDArray[Any]) -> bool:
        """Return whether all actions, (L, *action_shape), are in the action space."""
        low, high = bounds(self._space)
        return bool(((saved >= low) & (saved <= high) & np.isfinite(saved)).all())

    def _make_room(self, length: int) -> None:
        """Grow the memory to hold an episode of this length, up to MAX_SAVED_ACTIONS."""
        before = self._actions
        capacity = before.shape[1]
        if capacity < min(length, MAX_SAVED_ACTIONS):
            larger = min(max(2 * capacity, length), MAX_SAVED_ACTIONS)
            self._actions = np.zeros((before.shape[0], larger, *before.shape[2:]), before.dtype)
            self._actions[:, :capacity] = before


def saved_length(episode_length: int) -> int:
    """Return how many actions of an episode are saved."""
    return episode_length if episode_length <= MAX_SAVED_ACTIONS else 0
