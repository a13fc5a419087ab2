"""A block of Atari games with stacked screens, stepped by one thread; the protocol is in `ppo.envs.atari.game`."""

import re
from collections.abc import Sequence
from typing import Any

import ale_py
import numpy as np
from gymnasium.spaces import Discrete
from numpy.typing import NDArray

from ppo.envs import ArrayState, FrameListener, StepResult
from ppo.envs.arrays import StepArrays
from ppo.envs.atari import screen_space, screens
from ppo.envs.atari.game import VECTOR_STATE_PARTS, AtariGame, saved_episode
from ppo.envs.atari.screens import push_screens
from ppo.envs.blocks import Block
from ppo.families import AtariSettings

FRAMES_PER_SECOND = 60.0
_STEPS_BETWEEN_REPORTS = 500


class AtariEnvironments(Block):
    """A block of games stepped sequentially in this thread."""

    def __init__(
        self,
        rom: str,
        world: AtariSettings,
        *,
        indices: range,
        seed: int,
        on_frame: FrameListener | None = None,
        arrays: StepArrays | None = None,
    ) -> None:
        """Load one emulator per index; see `make_envs`. If `arrays` is given, steps write their results to it."""
        self._episodic_life = world.episodic_life
        self._games = [
            AtariGame(rom, world, index=index, seed=seed, on_frame=on_frame if position == 0 else None)
            for position, index in enumerate(indices)
        ]
        space = screen_space(world.frame_stack)
        super().__init__(
            StepArrays.empty(len(indices), space.shape, space.dtype) if arrays is None else arrays,
            space,
            Discrete(len(self._games[0].actions)),
            frames_per_second=FRAMES_PER_SECOND,
            uncompiled="" if screens.IS_COMPILED else "screens are shrunk by OpenCV",
        )
        self.action_names = [_in_words(ale_py.Action(action).name) for action in self._games[0].actions]
        self._stacks = in_memory_order(self.arrays.observations)
        self._final_stacks = in_memory_order(self.arrays.final_obs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start a new game in every environment; `seed` is ignored, since the constructor has it."""
        for position in range(self.num_envs):
            self._begin(position)
        return self.observations, {}

    def step(self, actions: NDArray[Any]) -> StepResult:
        """Take one agent step in every game; see the package's docstring for what comes back."""
        arrays = self.arrays
        for position, (game, action) in enumerate(zip(self._games, actions.tolist(), strict=True)):
            reward, terminated, truncated, life_lost = game.step(action)
            arrays.rewards[position] = reward
            arrays.terminated[position] = terminated
            arrays.truncated[position] = truncated
            arrays.life_lost[position] = life_lost and self._episodic_life
            self._push(position)
        for position in np.flatnonzero(arrays.terminated | arrays.truncated).tolist():
            game = self._games[position]
            arrays.episode_return[position] = game.episode_return
            arrays.episode_length[position] = game.episode_length
            self._final_stacks[position] = self._stacks[position]
            self._begin_next(position)
        return arrays.result()

    def end_episode(self, position: int) -> float:
        """Abandon an environment's game, begin the next and return the raw return so far."""
        episode_return = self._games[position].episode_return
        self._begin_next(position)
        return episode_return

    def begin_again(self, position: int, game: ArrayState) -> None:
        """Restart a game from its saved start; see `Environments.begin_again`."""
        self._games[position].check_game(game)
        self._games[position].rewind(game)
        self._begin(position)

    def get_states(self) -> list[dict[str, NDArray[Any]]]:
        """Return the starts of the current games, the actions since, and digests of the resulting states."""
        return [
            {**game.state(), "digest": game.digest(stack)}
            for game, stack in zip(self._games, self._stacks, strict=True)
        ]

    def check_states(self, states: Sequence[ArrayState]) -> None:
        """Raise a ValueError for states that `set_states` cannot use; no game changes."""
        if len(states) != self.num_envs:
            raise ValueError(f"the number of states must be {self.num_envs}, one per environment, got {len(states)}")
        for game, state in zip(self._games, states, strict=True):
            game.check(state)

    def set_states(self, states: Sequence[ArrayState]) -> list[int]:
        """Replay the saved games; see `Environments.set_states`."""
        self.check_states(states)
        restarted = []
        for position, state in enumerate(states):
            if not self._replay(position, state):
                self._begin(position)
                restarted.append(self._games[position].index)
        return restarted

    def _replay(self, position: int, state: ArrayState) -> bool:
        """Replay a game from its start; return whether it reached the saved state exactly."""
        game = self._games[position]
        if set(state) == VECTOR_STATE_PARTS:
            game.episode = saved_episode(state, game.index)
            return False
        game.rewind(state)
        game.muted, over = True, False
        self._begin(position)
        for step, action in enumerate(state["actions"].tolist()):
            if step % _STEPS_BETWEEN_REPORTS == 0:
                self.on_replay()
            _, terminated, truncated, _ = game.step(action)
            if over := terminated or truncated:
                break
            self._push(position)
        game.muted = False
        return not over and bool(np.array_equal(game.digest(self._stacks[position]), state["digest"]))

    def close(self, **kwargs: Any) -> None:
        """Free the emulators."""
        for game in self._games:
            game.close()
        self._games.clear()

    def _begin_next(self, position: int) -> None:
        """Begin an environment's next game; if games are kept, keep the finished one."""
        if self.keeps_games:
            self.keep_game(position, self._games[position].state(), self._stacks[position])
        self._begin(position)

    def _begin(self, position: int) -> None:
        # A new game's stack is zeros and then its first screen, as in AtariVectorEnv.
        self._games[position].reset()
        self._stacks[position] = 0
        self._push(position)

    def _push(self, position: int) -> None:
        """Push a game's newest observation onto its stack."""
        game = self._games[position]
        push_screens(self._stacks[position], game.screens, game.greys)


def in_memory_order(observations: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a view of stacked screens (N, C, 84, 84) in memory order, (N, 84, 84, C)."""
    stacks: NDArray[np.uint8] = observations.transpose(0, 2, 3, 1)
    return stacks


def _in_words(name: str) -> str:
    """Return `up left fire` for ALE's UPLEFTFIRE."""
    return re.sub(r"(?<=.)(?=left|right|fire)", " ", name.lower())
