"""Worlds with vector observations and discrete actions: CartPole and its like, made by Gymnasium.

An episode is its seed and its actions: that pair is saved of it, and replaying it restores any environment that is
deterministic after `reset(seed=...)`, whether its inner state can be copied or not. The observation and the return so
far are saved beside it, to tell an environment that is not.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ppo.envs import ArrayState, Engine, Environments, FrameListener, unknown_environment
from ppo.families import WorldSettings
from ppo.random_streams import Purpose, derived_seed
from ppo.settings import Refusal

# Far above what any run counts, far below what overflows.
_EPISODE_LIMIT = 2**48


def check(env_name: str, world: WorldSettings) -> None:
    """Refuse a registered id that cannot be made or has other spaces than this module serves.

    Raises:
        Refusal: says which of these it is.
    """
    spec = gymnasium.registry.get(env_name)
    if spec is None or _is_of_ale(spec):
        raise _refusal(env_name)
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


def make_block(
    env_name: str,
    world: WorldSettings,
    *,
    indices: range,
    seed: int,
    engine: Engine,
    on_frame: FrameListener | None,
) -> Environments:
    """Make a block of environments; see `ppo.envs.make_envs`."""
    return GymnasiumEnvironments(env_name, indices=indices, seed=seed, on_frame=on_frame)


def same_world(first: str, second: str) -> bool:
    """Tell whether two ids name the same world: every id has its own."""
    return first == second


def facts(env_name: str, world: WorldSettings, return_mean: float) -> dict[str, Any]:
    """Return nothing: no published scores are known here."""
    return {}


def _refusal(env_name: str) -> Refusal:
    """Return why there is no such world here: unknown, or one of ALE's under another protocol than this package's."""
    from ppo.envs import atari  # registers ALE's ids

    if env_name in gymnasium.registry:
        return atari.other_protocol(env_name)
    known = [i for i, spec in gymnasium.registry.items() if not _is_of_ale(spec)]
    return unknown_environment(env_name, [*known, *atari.accepted_names()])


def _is_of_ale(spec: EnvSpec) -> bool:
    return str(spec.entry_point).startswith("ale_py")


class GymnasiumEnvironments(Environments):
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
        self._muted = False
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
        """Return each current episode's number, the actions taken in it and what they led to."""
        return [
            {
                "episode": np.array([self._episodes[position]], np.int64),
                "actions": np.array(self._actions[position], np.int64),
                "observation": self.observations[position].copy(),
                "episode_return": self._returns[position : position + 1].copy(),
            }
            for position in range(self.num_envs)
        ]

    def set_states(self, states: Sequence[ArrayState]) -> list[int]:
        """Replay every current episode; see `Environments.set_states`."""
        if len(states) != self.num_envs:
            raise ValueError(f"there must be a state for each of {self.num_envs} environments, got {len(states)}")
        for position, state in enumerate(states):
            self._check(position, state)
        restarted = []
        for position, state in enumerate(states):
            self.on_replay()
            if not self._replay(position, state):
                self._begin(position, self._episodes[position] + 1)
                restarted.append(self._indices[position])
        return restarted

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

    def _check(self, position: int, state: ArrayState) -> None:
        """Refuse what no state of an environment can be."""
        of = f"of environment {self._indices[position]}"
        observation = self.observations[position]
        expected = {"episode": ("int64", (1,)), "actions": ("int64", None), "episode_return": ("float64", (1,))}
        expected |= {"observation": (observation.dtype.name, observation.shape)}
        if set(state) != set(expected):
            raise ValueError(f"the saved state {of} must be {sorted(expected)}, got {sorted(state)}")
        for name, (dtype, shape) in expected.items():
            array = state[name]
            if array.dtype.name != dtype or array.shape != (shape or (array.size,)):
                raise ValueError(f"the saved {name} {of} must be {dtype} {shape}, got {array.dtype} {array.shape}")
        if not 0 <= state["episode"][0] <= _EPISODE_LIMIT:
            raise ValueError(f"the saved episode {of} must be from 0 to 2^48, got {state['episode'][0]}")
        actions, spec = state["actions"], self._envs[position].spec
        if (actions < 0).any() or (actions >= self._num_actions).any():
            raise ValueError(f"the saved actions {of} must be from 0 to {self._num_actions - 1}")
        if spec and spec.max_episode_steps and actions.size >= spec.max_episode_steps:
            raise ValueError(f"{actions.size} saved actions {of} are more than the time limit allows")

    def _replay(self, position: int, state: ArrayState) -> bool:
        """Play an episode again; tell whether it led to where it was saved."""
        self._muted, ended = True, False
        self._begin(position, int(state["episode"][0]))
        for action in state["actions"].tolist():
            if ended := any(self._advance(position, action)):
                break
        self._muted = False
        observation, episode_return = self.observations[position], self._returns[position : position + 1]
        return (
            not ended
            and observation.tobytes() == state["observation"].tobytes()
            and episode_return.tobytes() == state["episode_return"].tobytes()
        )

    def _advance(self, position: int, action: int) -> tuple[bool, bool]:
        observation, reward, terminated, truncated, _ = self._envs[position].step(action + self._first_action)
        self.observations[position] = observation
        self._rewards[position] = reward
        self._returns[position] += float(reward)
        self._actions[position].append(action)
        self._show(position)
        return terminated, truncated and not terminated

    def _show(self, position: int) -> None:
        if self._on_frame and position == 0 and not self._muted:
            frame = self._envs[0].render()
            assert isinstance(frame, np.ndarray)
            self._on_frame(frame)
