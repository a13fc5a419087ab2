"""Atari 2600 games on all cores of a rank, stepped by the threads of ALE's own `AtariVectorEnv` (ale-py 0.12.1).

Pixels, rewards, lost lives, terminations and truncations equal those of the engine `lean` (`block.py`); tests compare
them. The differences:

* FIRE (at the start of a game, after a lost life and when a game waits for it) is a step of its own: the next step
  holds FIRE whatever action it is given. ALE steps all of its games or none, so FIRE cannot be pressed within a step.
  The learner sees the step as one in which its action had no effect. The screen before it is part of the stack, and the
  step counts in the length of the game.
* A game begins with 0 to noop_max no-ops, not 1 to noop_max. ALE draws their number, and sticky actions, in sequence,
  from generators seeded by (seed, environment, game) when `reset` or a resume begins a game. Rewards during no-ops are
  unknown and missing from returns.
* A game cannot be saved: a state is the number of the game, and `set_states` begins the next one.
* There is no frame listener: playing, recording and evaluating use `lean`.

Lost lives follow the rule of `game.py`, from ALE's count of lives: ALE's `episodic_life` would start a new game, and
its `life_loss_info` would report `terminated`. This class enforces the time limit, since ALE would not read the last
screen of a truncated game.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ppo.envs import ArrayState, StepResult
from ppo.envs.arrays import StepArrays
from ppo.envs.atari import screen_space
from ppo.envs.atari.block import FRAMES_PER_SECOND, in_memory_order
from ppo.envs.atari.fire import FIRE_ACTIONS, FireWatch
from ppo.envs.atari.game import FRAME_SKIP, AtariGame, saved_episode
from ppo.envs.atari.screens import SCREEN_SIZE, push
from ppo.envs.blocks import BlockInHalves, halves
from ppo.families import AtariSettings
from ppo.random_streams import Purpose, derived_seed
from ppo.settings import MOST_STEPS

# ALE's own time limit in frames, never reached: a year of play.
_NO_LIMIT = 2**31 - 8
# Marks a step in which no action overrides the policy's.
_NO_PRESS = -1


class AtariVectorEnvironments(BlockInHalves):
    """A block of games of one ROM, each half of it an `AtariVectorEnv`."""

    def __init__(self, rom: str, world: AtariSettings, *, indices: range, seed: int, threads: int) -> None:
        """Load one emulator per index; see `make_envs`.

        Args:
            rom: name of the ROM.
            world: the protocol.
            indices: global indices of the block.
            seed: seed of the job.
            threads: emulator threads of a group.
        """
        self._indices, self._seed, self._max_frames = indices, seed, world.max_frames
        self._episodic_life = world.episodic_life
        self._engines = {
            group.start: _make_engine(rom, world, group.stop - group.start, threads) for group in halves(len(indices))
        }
        game = AtariGame(rom, world, index=indices[0], seed=seed)
        self._presses_fire = game.presses_fire
        self._fires = [game.actions.index(action) for action in game.fires]
        self._is_fire = np.isin(game.actions, list(FIRE_ACTIONS))
        space = screen_space(world.frame_stack)
        # ALE resizes its screens itself, so `uncompiled` stays empty.
        super().__init__(
            StepArrays.empty(len(indices), space.shape, space.dtype),
            space,
            Discrete(len(game.actions)),
            frames_per_second=FRAMES_PER_SECOND,
        )
        self._stacks = in_memory_order(self.arrays.observations)
        self._final_stacks = in_memory_order(self.arrays.final_obs)
        self._lives = np.zeros(self.num_envs, np.int32)
        self._press_next = np.full(self.num_envs, _NO_PRESS)
        self._fired = np.zeros(self.num_envs, np.bool_)
        self._fire_watches = [FireWatch(self._fires) for _ in indices]
        self._returns = np.zeros(self.num_envs, np.float64)
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._episodes = np.full(self.num_envs, -1)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start a new game in every environment; `seed` is ignored, since the constructor has it."""
        self._episodes[:] = (self._episodes + 1) % MOST_STEPS
        seeds = [
            derived_seed(self._seed, Purpose.EMULATOR, index, episode)
            for index, episode in zip(self._indices, self._episodes.tolist(), strict=True)
        ]
        self._stacks[:] = 0
        for group in self.groups:
            screens, info = self._engines[group.start].reset(seed=np.array(seeds[group]))
            push(self._stacks[group], screens[:, 0])
            self._lives[group] = info["lives"]
        self._begin_with_fire(range(self.num_envs))
        self._returns[:], self._lengths[:] = 0.0, 0
        return self.observations, {}

    def send(self, group: slice, actions: NDArray[Any]) -> None:
        """Start a step of a group's emulators."""
        if self._presses_fire:
            press = self._press_next[group]
            self._fired[group] = self._is_fire[actions]
            actions = np.where(press == _NO_PRESS, actions, press)
        self._engines[group.start].send(actions)

    def recv(self, group: slice) -> StepResult:
        """Wait for the emulators of a group."""
        engine, arrays = self._engines[group.start], self.arrays[group]
        screens, rewards, terminated, _, ale = engine.recv()
        truncated = (ale["episode_frame_number"] >= self._max_frames) & ~terminated
        lives = ale["lives"]  # those of the next game where a game is over
        arrays.rewards[:], arrays.terminated[:], arrays.truncated[:] = rewards, terminated, truncated
        life_lost = (lives > 0) & (lives < self._lives[group]) & ~terminated
        arrays.life_lost[:] = life_lost & self._episodic_life
        self._returns[group] += rewards
        self._lengths[group] += 1
        if terminated.any():
            push(self._stacks[group], np.where(terminated[:, None, None], ale["final_obs"][:, 0], screens[:, 0]))
        else:
            push(self._stacks[group], screens[:, 0])
        if self._presses_fire:
            happened = self._fired[group] | (rewards != 0.0) | (lives != self._lives[group])
            self._choose_presses(group, happened, life_lost)
        ended = terminated | truncated
        if ended.any():
            if truncated.any():
                screens, ale = engine.reset(options={"reset_mask": truncated})
                lives = ale["lives"]
            self._begin_after(group, ended, screens[:, 0])
        self._lives[group] = lives
        return arrays.result()

    def get_states(self) -> list[dict[str, NDArray[Any]]]:
        """Return the number of each environment's game, which is all that can be saved."""
        return [{"episode": np.array([episode], np.int64)} for episode in self._episodes.tolist()]

    def set_states(self, states: Sequence[ArrayState]) -> list[int]:
        """Begin the game after the saved one in every environment; see `Environments.set_states`."""
        if len(states) != self.num_envs:
            raise ValueError(f"the number of states must be {self.num_envs}, one per environment, got {len(states)}")
        self._episodes[:] = [saved_episode(state, index) for state, index in zip(states, self._indices, strict=True)]
        self.reset()
        return list(self._indices)

    def close(self, **kwargs: Any) -> None:
        """End the emulator threads."""
        self._engines.clear()

    def _begin_after(self, group: slice, ended: NDArray[np.bool_], screens: NDArray[np.uint8]) -> None:
        """Record the games of a group that ended and observe the first screens of the next ones."""
        arrays, positions = self.arrays, group.start + np.flatnonzero(ended)
        for results, values in ((arrays.episode_return, self._returns), (arrays.episode_length, self._lengths)):
            results[positions] = values[positions]
            values[positions] = 0
        self._final_stacks[positions] = self._stacks[positions]
        self._stacks[positions] = 0
        self._stacks[positions, ..., -1] = screens[ended]
        self._episodes[positions] = (self._episodes[positions] + 1) % MOST_STEPS
        self._begin_with_fire(positions.tolist())

    def _begin_with_fire(self, positions: Iterable[int]) -> None:
        """Press FIRE in the first step of games that use it."""
        for position in positions:
            self._fire_watches[position] = FireWatch(self._fires)
            self._press_next[position] = self._fires[0] if self._presses_fire else _NO_PRESS

    def _choose_presses(self, group: slice, happened: NDArray[np.bool_], life_lost: NDArray[np.bool_]) -> None:
        """Choose the overriding actions of a group's next step from the events and lost lives of this one."""
        presses, stacks = self._press_next[group], self._stacks[group]
        pressed = presses != _NO_PRESS
        presses[:] = np.where(life_lost, self._fires[0], _NO_PRESS)
        steps = zip(self._fire_watches[group], pressed.tolist(), happened.tolist(), strict=True)
        for position, (watch, was_pressed, happened_here) in enumerate(steps):
            # A step with an overriding action does not count for the watch: in `lean` it is part of the step before.
            if not was_pressed and watch.should_check(happened_here):
                press = watch.check(stacks[position, ..., -1].copy())
                presses[position] = _NO_PRESS if press is None else press


def _make_engine(rom: str, world: AtariSettings, num_envs: int, threads: int) -> AtariVectorEnv:
    """Make the emulators of a group; results are in the order of the environments."""
    return AtariVectorEnv(
        rom,
        num_envs,
        num_threads=min(threads, num_envs),
        max_num_frames_per_episode=_NO_LIMIT,
        repeat_action_probability=world.sticky_actions,
        full_action_space=world.full_action_space,
        autoreset_mode=AutoresetMode.SAME_STEP,
        img_height=SCREEN_SIZE,
        img_width=SCREEN_SIZE,
        stack_num=1,
        frameskip=FRAME_SKIP,
        noop_max=world.noop_max + 1,
        reward_clipping=False,
        use_fire_reset=False,
    )
