"""Worlds with vector observations and discrete actions: CartPole and its like, made by Gymnasium.

An episode is its seed and its actions: that pair is all that is saved of it, and replaying it restores any environment
that is deterministic after `reset(seed=...)`, whether its inner state can be copied or not.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ppo.config import Refusal
from ppo.envs import ArrayState, Environments, FrameListener
from ppo.random_streams import Purpose, derived_seed


def check(env_name: str) -> None:
    """Refuse a registered id that cannot be made or has other spaces than this module serves.

    Raises:
        Refusal: says which of these it is.
    """
    try:
        env = gymnasium.make(env_name)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise Refusal(f"env_name {env_name!r} cannot be made here: {error}") from error
    observations, actions = env.observation_space, env.action_space
    env.close()
    if not (isinstance(observations, gymnasium.spaces.Box) and len(observations.shape) == 1):
        raise Refusal(f"env_name must have vector observations, {env_name} has {observations}; try CartPole-v1")
    if not isinstance(actions, gymnasium.spaces.Discrete):
        raise Refusal(f"env_name must have discrete actions, {env_name} has {actions}; try CartPole-v1")


class ControlEnvironments(Environments):
    """A block of Gymnasium environments with vector observations."""

    def __init__(self, env_name: str, *, indices: range, seed: int, on_frame: FrameListener | None = None) -> None:
        """Make one environment per index; see `ppo.envs.make_envs`."""
        self._indices, self._seed, self._on_frame = indices, seed, on_frame
        self._envs = [
            gymnasium.make(env_name, render_mode="rgb_array" if on_frame and position == 0 else None)
            for position in range(len(indices))
        ]
        self.num_envs = len(indices)
        self.frames_per_second = float(self._envs[0].metadata.get("render_fps", 30))
        self.metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}
        box, discrete = self._envs[0].observation_space, self._envs[0].action_space
        assert isinstance(box, gymnasium.spaces.Box) and isinstance(discrete, gymnasium.spaces.Discrete)
        self.single_observation_space, self.single_action_space = box, discrete
        self._first_action, self._num_actions = int(discrete.start), int(discrete.n)
        self.observation_space = batch_space(box, self.num_envs)
        self.action_space = batch_space(discrete, self.num_envs)

        self.observations = np.zeros((self.num_envs, *box.shape), np.float32)
        self._rewards = np.zeros(self.num_envs, np.float64)
        self._terminated, self._truncated = np.zeros((2, self.num_envs), np.bool_)
        self._returns = np.zeros(self.num_envs, np.float64)
        self._episodes = [-1] * self.num_envs
        self._actions: list[list[int]] = [[] for _ in range(self.num_envs)]
        self._info = {
            "life_lost": np.zeros(self.num_envs, np.bool_),
            "final_obs": np.zeros_like(self.observations),
            "episode_return": np.zeros(self.num_envs, np.float64),
            "episode_length": np.zeros(self.num_envs, np.int64),
        }

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start a new episode everywhere; the seed was given once, at construction."""
        for position in range(self.num_envs):
            self._begin(position, self._episodes[position] + 1)
        return self.observations, {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Take one step in every environment; see the package's docstring for what comes back."""
        for position, action in enumerate(actions.tolist()):
            terminated, truncated = self._advance(position, action)
            self._terminated[position], self._truncated[position] = terminated, truncated
            if terminated or truncated:
                self._info["episode_return"][position] = self._returns[position]
                self._info["episode_length"][position] = len(self._actions[position])
                self._info["final_obs"][position] = self.observations[position]
                self._begin(position, self._episodes[position] + 1)
        return self.observations, self._rewards, self._terminated, self._truncated, self._info

    def get_states(self) -> list[dict[str, NDArray[Any]]]:
        """Return each current episode's number and the actions taken in it."""
        return [
            {"episode": np.array([episode], np.int64), "actions": np.array(actions, np.int64)}
            for episode, actions in zip(self._episodes, self._actions, strict=True)
        ]

    def set_states(self, states: Sequence[ArrayState]) -> None:
        """Replay every current episode; see `Environments.set_states`."""
        if len(states) != self.num_envs:
            raise ValueError(f"there must be a state for each of {self.num_envs} environments, got {len(states)}")
        for position, state in enumerate(states):
            if set(state) != {"episode", "actions"}:
                raise ValueError(f"a control state cannot consist of {sorted(state)}")
            if not state["episode"].size or not np.isin(state["actions"], np.arange(self._num_actions)).all():
                raise ValueError(f"the saved episode of environment {self._indices[position]} is not one of this kind")
            self._begin(position, int(state["episode"][0]))
            for action in state["actions"].tolist():
                ended = self._advance(position, action)
                if any(ended):
                    raise ValueError(f"the saved episode of environment {self._indices[position]} cannot be replayed")

    def close(self, **kwargs: Any) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def _begin(self, position: int, episode: int) -> None:
        self._episodes[position] = episode
        self._actions[position] = []
        self._returns[position] = 0.0
        seed = derived_seed(self._seed, Purpose.EPISODE_SEEDS, self._indices[position], episode)
        self.observations[position], _ = self._envs[position].reset(seed=seed)

    def _advance(self, position: int, action: int) -> tuple[bool, bool]:
        observation, reward, terminated, truncated, _ = self._envs[position].step(action + self._first_action)
        self.observations[position] = observation
        self._rewards[position] = reward
        self._returns[position] += float(reward)
        self._actions[position].append(action)
        self._show(position)
        return terminated, truncated and not terminated

    def _show(self, position: int) -> None:
        if self._on_frame and position == 0:
            frame = self._envs[0].render()
            assert isinstance(frame, np.ndarray)
            self._on_frame(frame)
