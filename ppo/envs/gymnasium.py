"""Any Gymnasium environment, by its id.

An episode is saved as its seed and its actions. Replaying them restores any environment that is deterministic after
`reset(seed=...)`, whether or not its inner state can be copied. The last observation and the return so far are saved
too, to detect environments that are not deterministic.
"""

import json
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from ppo.envs import LEAN, ArrayState, Engine, Environments, FrameListener, Spaces, StepResult
from ppo.envs.action_log import MAX_SAVED_ACTIONS, ActionLog, saved_length
from ppo.envs.actions import ActionSpace, CompositeSpace, action_space
from ppo.envs.arrays import StepArrays
from ppo.envs.blocks import Block
from ppo.envs.frames import find_render_mode, frames_per_second, render
from ppo.envs.making import Environment, cause, make_environment, refused_if_it_fails
from ppo.envs.names import names_of
from ppo.envs.observations import ObservationConverter
from ppo.envs.own_worlds import register_own_worlds
from ppo.envs.references import Reference, references_of
from ppo.families import ChannelAxis, GymnasiumSettings, WorldSettings
from ppo.random_streams import Purpose, derived_seed
from ppo.settings import MOST_STEPS, Refusal

# Far above real rewards, yet the return of a whole game stays finite, and so does a mean of returns.
_LARGEST_REWARD = 1e30
_STEPS_BETWEEN_REPORTS = 500


class GymnasiumEnvironments(Block):
    """A block of Gymnasium environments of one id.

    Families that need more override `make_env`, `before_reset`, `before_replayed`, `observe` or `to_actions`.
    """

    rendering_hint = ""
    """Appended to the error if an environment cannot be drawn."""

    @classmethod
    def check(cls, env_name: str, **arguments: Any) -> Spaces:
        """Make one environment and reset it, to learn its spaces and whether it works here.

        Args:
            env_name: a registered id, or `module:id` to import the module first.
            arguments: further ones of the constructor.

        Raises:
            Refusal: there is no such id, it cannot be made or reset here, or its spaces are not supported.
        """
        with refused_if_it_fails(f"env_name {env_name!r} cannot be made here"):
            block = cls(env_name, indices=range(1), seed=0, **arguments)
            try:
                block.reset()
            except RuntimeError as error:
                raise Refusal(f"env_name {env_name!r} cannot be played here: {error}") from error
            block.close()
        converter = block._converter
        notes = tuple(f"{env_name}: {note}" for note in converter.notes)
        return Spaces(converter.space, block.single_action_space, notes)

    def __init__(
        self,
        env_name: str,
        *,
        indices: range,
        seed: int,
        env_kwargs: Mapping[str, Any] = MappingProxyType({}),
        channel_axis: ChannelAxis = "auto",
        on_frame: FrameListener | None = None,
        arrays: StepArrays | None = None,
    ) -> None:
        """Make one environment per index.

        Args:
            env_name: a registered id, or `module:id` to import the module first.
            indices: global indices of the block, the addresses of its random numbers.
            seed: seed of the job.
            env_kwargs: arguments for the constructor of the environment.
            channel_axis: axis of the channels of images.
            on_frame: receives every frame that the first environment draws after a step.
            arrays: receives the step results, if given.

        Raises:
            Refusal: as from `check`, or `on_frame` is given and the environment cannot be drawn.
        """
        self._name, self._indices, self._seed, self._on_frame = env_name, indices, seed, on_frame
        self._envs = [self.make_env(env_name, env_kwargs) for _ in indices]
        if on_frame:
            render_mode = find_render_mode(env_name, self._envs[0])
            self._envs[0].close()
            self._envs[0] = self.make_env(env_name, env_kwargs, render_mode)
        self._step_one = [env.step for env in self._envs]
        self._converter = _converter(env_name, self._envs[0], channel_axis)
        shown, actions = self._converter.space, _action_space(env_name, self._envs[0])
        super().__init__(
            StepArrays.empty(len(indices), shown.shape, shown.dtype) if arrays is None else arrays,
            shown,
            actions,
            frames_per_second=frames_per_second(self._envs[0]),
        )
        self.action_names, self.entry_names = names_of(env_name, actions, math.prod(shown.shape))
        self._rows = list(self.observations)
        self._log = ActionLog(self.num_envs, actions)
        self._returns = np.zeros(self.num_envs, np.float64)
        self._episodes = [-1] * self.num_envs

    def make_env(self, env_name: str, env_kwargs: Mapping[str, Any], render_mode: str | None = None) -> Environment:
        """Make one environment; called by the constructor. See `make_environment`."""
        return make_environment(env_name, env_kwargs, render_mode)

    def before_reset(self, env: Environment) -> None:
        """Prepare an environment for `reset`, so that the episode depends only on its seed and its actions."""

    def before_replayed(self, env: Environment, left: int) -> None:
        """Prepare an environment for a step of a replay, after which `left` more steps follow."""

    def observe(self, observation: Any, out: NDArray[Any]) -> None:
        """Convert an environment's observation and write it to `out`, its row of `observations`."""
        self._converter.convert(observation, out)

    def to_actions(self, actions: NDArray[Any]) -> list[Any]:
        """Convert a batch of actions, (N, *action_shape), to what each environment's `step` takes."""
        if isinstance(self.single_action_space, Discrete):
            return list(actions.tolist())
        if isinstance(self.single_action_space, CompositeSpace):
            return [self.single_action_space.element(vector) for vector in actions]
        # A copy: environments may keep or modify their actions.
        copied = np.array(actions, self.single_action_space.dtype)
        return list(copied) if copied.ndim > 1 else [np.asarray(number) for number in copied]

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start a new episode in every environment; `seed` is ignored, since the constructor has it."""
        for position in range(self.num_envs):
            self._begin(position, self._episodes[position] + 1)
        return self.observations, {}

    def step(self, actions: NDArray[Any]) -> StepResult:
        """Take one step in every environment; see `ppo.envs` for what comes back.

        Args:
            actions: (N, *action_shape), in `single_action_space`: `set_states` would refuse any others.

        Raises:
            RuntimeError: an environment failed, or returned a value that is non-finite or outside its space.
        """
        self._log.append(actions)
        arrays, observe = self.arrays, self.observe
        rewards: list[float] = []
        terminated, truncated = [], []
        try:
            for step, row, action in zip(self._step_one, self._rows, self.to_actions(actions), strict=True):
                observation, reward, over, cut, _ = step(action)
                observe(observation, row)
                terminated.append(over)
                truncated.append(cut)
                rewards.append(float(reward))
        except Exception as error:
            raise self._failed(len(rewards), cause(error)) from error
        arrays.rewards[:], arrays.terminated[:], arrays.truncated[:] = rewards, terminated, truncated
        arrays.truncated[arrays.terminated] = False
        self._returns += arrays.rewards
        self._require_finite(slice(None))
        if self._on_frame:
            for frame in render(self._name, self._envs[0], self.rendering_hint):
                self._on_frame(frame)
        for position in np.flatnonzero(arrays.terminated | arrays.truncated).tolist():
            arrays.episode_return[position] = self._returns[position]
            arrays.episode_length[position] = self._log.lengths[position]
            arrays.final_obs[position] = self._rows[position]
            self._begin_next(position)
        return arrays.result()

    def end_episode(self, position: int) -> float:
        """Abandon an environment's episode, begin the next and return the raw return so far."""
        episode_return = float(self._returns[position])
        self._begin_next(position)
        return episode_return

    def begin_again(self, position: int, game: ArrayState) -> None:
        """Restart an episode by its number; see `Environments.begin_again`."""
        of = f"of environment {self._indices[position]}"
        if set(game) != {"episode", "actions", "last_seen"}:
            raise ValueError(
                f"the game {of} must have the keys ['actions', 'episode', 'last_seen'], got {sorted(game)}"
            )
        episode, actions, space = game["episode"], game["actions"], self.single_action_space
        if episode.shape != (1,) or episode.dtype.kind not in "iu" or not 0 <= episode[0] < MOST_STEPS:
            raise ValueError(f"the episode number {of} must be an integer, at least 0 and below 2^48")
        if actions.shape[1:] != space.shape or not self._log.could_be_sent(actions):
            raise ValueError(f"the actions {of} must be in {space}")
        self._begin(position, int(episode[0]))

    def get_states(self) -> list[dict[str, NDArray[Any]]]:
        """Return each current episode's number, length, actions, return so far and last observation."""
        return [
            {
                "episode": np.array([self._episodes[position]], np.int64),
                "episode_length": self._log.lengths[position : position + 1].copy(),
                "episode_return": self._returns[position : position + 1].copy(),
                "actions": self._log.saved(position),
                "observation": row.copy(order="C"),
            }
            for position, row in enumerate(self._rows)
        ]

    def set_states(self, states: Sequence[ArrayState]) -> list[int]:
        """Replay every current episode; see `Environments.set_states`."""
        self.check_states(states)
        restarted = []
        for position, state in enumerate(states):
            if not self._replay(position, state):
                self._begin(position, int(state["episode"][0]) + 1)
                restarted.append(self._indices[position])
        return restarted

    def check_states(self, states: Sequence[ArrayState]) -> None:
        """Raise a ValueError for states that `set_states` cannot use; no environment changes."""
        if len(states) != self.num_envs:
            raise ValueError(f"the number of states must be {self.num_envs}, one per environment, got {len(states)}")
        for index, state in zip(self._indices, states, strict=True):
            self._check(f"of environment {index}", state)

    def close(self, **kwargs: Any) -> None:
        """Close every environment."""
        for env in self._envs:
            env.close()

    def _begin_next(self, position: int) -> None:
        """Begin an environment's next episode; if games are kept, keep the finished one."""
        if self.keeps_games:
            is_known = self._log.lengths[position] <= MAX_SAVED_ACTIONS
            game = {"episode": np.array([self._episodes[position]], np.int64), "actions": self._log.saved(position)}
            self.keep_game(position, game if is_known else None, self._rows[position])
        self._begin(position, self._episodes[position] + 1)

    def _begin(self, position: int, episode: int) -> None:
        env = self._envs[position]
        self._episodes[position], self._returns[position] = episode % MOST_STEPS, 0.0
        self._log.clear(position)
        try:
            self.before_reset(env)
            observation, _ = env.reset(seed=self._episode_seed(position))
            self.observe(observation, self._rows[position])
        except Exception as error:
            raise self._failed(position, cause(error)) from error
        self._require_finite(slice(position, position + 1))

    def _episode_seed(self, position: int) -> int:
        return derived_seed(self._seed, Purpose.EPISODE_SEEDS, self._indices[position], self._episodes[position])

    def _check(self, of: str, state: ArrayState) -> None:
        """Refuse an invalid saved state."""
        counters = {"episode", "episode_length"}
        others = {"episode_return", "actions", "observation"}
        if set(state) != counters | others:
            raise ValueError(
                f"the saved state {of} must have the keys {sorted(counters | others)}, got {sorted(state)}"
            )
        for name in sorted(counters):
            _require(state, name, of, np.dtype(np.int64), (1,))
            if not 0 <= state[name][0] < MOST_STEPS:
                raise ValueError(f"the saved {name} {of} must be at least 0 and below 2^48, got {state[name][0]}")
        length, spec = int(state["episode_length"][0]), self._envs[0].spec
        if spec and spec.max_episode_steps and length >= spec.max_episode_steps:
            raise ValueError(f"the saved episode {of} has {length} steps, more than the time limit allows")
        _require(state, "episode_return", of, np.dtype(np.float64), (1,))
        _require(state, "observation", of, self.observations.dtype, self.observations.shape[1:])
        space = self.single_action_space
        assert space.shape is not None
        _require(state, "actions", of, self._log.saved_dtype, (saved_length(length), *space.shape))
        if not self._log.could_be_sent(state["actions"]):
            raise ValueError(f"the saved actions {of} must be in {space}")

    def _replay(self, position: int, state: ArrayState) -> bool:
        """Replay an episode from its start; return whether it reached the saved state exactly."""
        if len(state["actions"]) < state["episode_length"][0]:
            return False
        self._begin(position, int(state["episode"][0]))
        row, step = self._rows[position], self._step_one[position]
        actions = self.to_actions(self._log.restore(position, state["actions"]))
        for number, action in enumerate(actions):
            if number % _STEPS_BETWEEN_REPORTS == 0:
                self.on_replay()
            self.before_replayed(self._envs[position], len(actions) - number - 1)
            try:
                observation, reward, terminated, truncated, _ = step(action)
                self.observe(observation, row)
                self._returns[position] += float(reward)
            except Exception:  # it did not fail before, so it is not deterministic
                return False
            if terminated or truncated:
                return False
        episode_return = self._returns[position : position + 1]
        return (
            row.tobytes() == state["observation"].tobytes()
            and episode_return.tobytes() == state["episode_return"].tobytes()
        )

    def _require_finite(self, part: slice) -> None:
        """Raise an error for the first environment of a slice whose reward or observation is out of bounds."""
        for name, values, holds, rule in (
            ("reward", self.arrays.rewards, _is_reward, f"within {_LARGEST_REWARD:g}"),
            ("observation", self.observations, np.isfinite, "finite"),
        ):
            if values.dtype != np.uint8 and not holds(values[part]).all():
                position = next(i for i in range(*part.indices(self.num_envs)) if not holds(values[i]).all())
                raise self._failed(position, f"the {name} is not {rule}: {values[position]}")

    def _failed(self, position: int, why: str) -> RuntimeError:
        """Return an error that says how to reproduce an environment's failure."""
        return RuntimeError(
            f"environment {self._indices[position]} of {self._name} failed at step {self._log.lengths[position]} of "
            f"episode {self._episodes[position]}, begun by reset(seed={self._episode_seed(position)}): {why}"
        )


class GymnasiumWorld:
    """The behaviour of a family of worlds made by Gymnasium; see `ppo.envs.World`."""

    def __init__(self, block: type[GymnasiumEnvironments]) -> None:
        """Use blocks of this type."""
        self._block = block

    def check(self, env_name: str, world: WorldSettings) -> Spaces:
        """Return the spaces of an id, or refuse one that cannot be made here or has unsupported spaces."""
        register_own_worlds()
        return self._block.check(env_name, **self.arguments(world))

    def make_block(
        self,
        env_name: str,
        world: WorldSettings,
        *,
        indices: range,
        seed: int,
        engine: Engine = LEAN,
        on_frame: FrameListener | None = None,
        arrays: StepArrays | None = None,
    ) -> Environments:
        """Make a block of environments."""
        assert engine.name == "lean"
        register_own_worlds()
        arguments = self.arguments(world)
        return self._block(env_name, indices=indices, seed=seed, on_frame=on_frame, arrays=arrays, **arguments)

    def arguments(self, world: WorldSettings) -> dict[str, Any]:
        """Return the settings as arguments of a block and of its `check`."""
        assert isinstance(world, GymnasiumSettings)
        return {"env_kwargs": json.loads(world.env_kwargs), "channel_axis": world.channel_axis}

    def same_world(self, first: str, second: str) -> bool:
        """Return whether two ids are equal: each names a different world."""
        return first == second

    def facts(self, env_name: str, return_mean: float) -> dict[str, Any]:
        """Return nothing: these worlds have no normalised score."""
        return {}

    def references(self, env_name: str) -> list[Reference]:
        """Return the world's reference scores, first the one from which its authors call it solved, if any."""
        register_own_worlds()
        spec = gymnasium.registry.get(env_name)
        solved = None if spec is None else spec.reward_threshold
        own = [] if solved is None else [Reference("solved", float(solved), "reward threshold of the world's authors")]
        return own + references_of(env_name)


def _converter(env_name: str, env: Environment, channel_axis: ChannelAxis) -> ObservationConverter:
    try:
        return ObservationConverter(env.observation_space, channel_axis)
    except ValueError as error:
        raise Refusal(f"env_name {env_name!r} is not supported: {error}") from error


def _action_space(env_name: str, env: Environment) -> ActionSpace:
    try:
        return action_space(env.action_space)
    except ValueError as error:
        raise Refusal(f"env_name {env_name!r} is not supported: {error}") from error


def _is_reward(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.abs(values) <= _LARGEST_REWARD


def _require(state: ArrayState, name: str, of: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Refuse an array of a state that does not have this dtype and shape, or is non-finite."""
    array = state[name]
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"the saved {name} {of} must be {dtype} {shape}, got {array.dtype} {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"the saved {name} {of} must be finite")


WORLD = GymnasiumWorld(GymnasiumEnvironments)
