"""The world: `make_envs` builds this rank's block of a job's environments.

All of them are `gymnasium.vector.VectorEnv`s with SAME_STEP autoreset, stepped into preallocated arrays. `step` returns
(observations, rewards, terminated, truncated, info); the arrays belong to the environments and are overwritten by the
next step. `info` holds one array per key, never one dict per environment:

    life_lost        (N,) bool      the learner's episode ends although the game plays on (never part of `terminated`)
    final_obs        (N, ...)       the last observation, valid where an episode ended in this step
    episode_return   (N,) float64   raw return of the whole game, valid where it ended
    episode_length   (N,) int64     agent steps of the whole game, valid where it ended

`send` hands one of the `groups` its actions, and `recv` returns what `step` would for that group alone, as parts of the
same arrays. Between the two the emulators of an engine with several groups run by themselves.
"""

import abc
import importlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

from ppo.config import Config, MachineSettings
from ppo.envs.references import Reference
from ppo.families import WorldSettings, family_of
from ppo.machine import SEVERAL_CORES
from ppo.settings import Refusal, did_you_mean

if TYPE_CHECKING:
    from ppo.envs.arrays import StepArrays

FrameListener = Callable[[NDArray[np.uint8]], None]
"""Receives a frame (H, W, 3) RGB, which it may keep."""
ArrayState = Mapping[str, NDArray[Any]]
StepResult = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]


@dataclass(frozen=True)
class Engine:
    """What steps a rank's Atari games."""

    name: Literal["lean", "processes", "vector"]
    workers: int
    """Its threads, or processes."""

    def describe(self) -> str:
        """Return the line that a log has of it."""
        if self.name == "vector":
            threads = "1 thread" if self.workers == 1 else f"{self.workers} threads"
            return (
                f"env_engine: vector, {threads}; it cannot resume exactly: a stopped run resumes with new "
                "games (with --env_engine=processes or lean it resumes exactly)"
            )
        if self.name == "processes":
            processes = "1 process" if self.workers == 1 else f"{self.workers} processes"
            return f"env_engine: processes, {processes}; a run that is stopped resumes exactly"
        return "env_engine: lean, 1 thread; a run that is stopped resumes exactly"


LEAN = Engine("lean", workers=1)


class Environments(VectorEnv[NDArray[Any], NDArray[Any], NDArray[Any]], abc.ABC):
    """A block of environments whose state can be taken out and put back, by most kinds exactly."""

    frames_per_second: float
    """Rate at which a frame listener receives the screen."""
    observations: NDArray[Any]
    """The current observations, (N, ...)."""
    processes: Sequence[int] = ()
    """Ids of the processes that step them; none if it is this one."""
    uncompiled: str = ""
    """What is slow about it where the package was installed without a compiler; empty where nothing is."""
    action_names: Sequence[str] = ()
    """What each category, or dimension, of an action is called; none where it is not known."""
    entry_names: Sequence[str] = ()
    """What each entry of a vector is called; none where it is not known."""
    on_replay: Callable[[], None] = staticmethod(lambda: None)
    """Called now and then while `set_states` plays episodes again, which may take minutes."""
    keeps_games = False
    """Whether games that end are kept for `take_games`."""
    _sent: NDArray[Any]

    @property
    def groups(self) -> tuple[slice, ...]:
        """The environments that are stepped together, as parts of the block; one group of all unless overridden."""
        return (slice(0, self.num_envs),)

    def send(self, group: slice, actions: NDArray[Any]) -> None:
        """Begin a step of one of the `groups`."""
        self._sent = actions

    def recv(self, group: slice) -> StepResult:
        """Wait for the step that `send` began and return its result."""
        return self.step(self._sent)

    def end_episode(self, position: int) -> float:
        """Begin the next episode of one environment and return the raw return of the one given up; of lean engines."""
        raise NotImplementedError

    def keep_games(self, keeps: bool) -> None:
        """Keep games that end from now on for `take_games`, or no more."""
        self.keeps_games = keeps

    def take_games(self) -> list[list[ArrayState | None]]:
        """Return, for each environment, the games that have ended since the last call, in order.

        A game is how it began, in arrays of fixed shapes, its `actions` (L, *action_shape) and `last_seen` (1,), a
        checksum of the last observation. It is None where it cannot be played again; the vector engine returns none.
        """
        return [[] for _ in range(self.num_envs)]

    def begin_again(self, position: int, game: ArrayState) -> None:
        """Begin a game of `take_games` again: its actions, sent one by one, lead to what they led to; lean engines.

        The game may come from a file that anyone wrote: it is checked first.

        Raises:
            ValueError: it is no game of this environment.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def get_states(self) -> list[dict[str, NDArray[Any]]]:
        """Return one dict of arrays per environment: all that continuing exactly needs, as far as it can be had."""

    def check_states(self, states: Sequence[ArrayState]) -> None:
        """Refuse what `set_states` would, and leave every environment as it is.

        Raises:
            ValueError: a state does not belong to this kind of environment.
        """

    @abc.abstractmethod
    def set_states(self, states: Sequence[ArrayState]) -> list[int]:
        """Put every environment back to a state from `get_states`, in the same order.

        The states may come from a file that anyone wrote: they are checked before any environment is touched.

        Returns:
            The global indices of the environments that could not be brought back exactly and have begun a new episode
            instead: the world did not do again what it did before, or the engine cannot. None, normally.

        Raises:
            ValueError: a state does not belong to this kind of environment.
        """


@dataclass(frozen=True)
class Spaces:
    """What is known of a world before a block of it is made."""

    observation_space: Box
    """Of what a block shows: uint8 images (C, H, W) or float32 vectors (D,)."""
    action_space: Space[Any]
    notes: tuple[str, ...] = ()
    """What the log should say."""


class World(Protocol):
    """What acts for a family: `WORLD` of the module of this package that has the family's name."""

    def check(self, env_name: str, world: WorldSettings) -> Spaces:
        """Refuse an id that cannot be made, and return its spaces."""

    def make_block(
        self,
        env_name: str,
        world: WorldSettings,
        *,
        indices: range,
        seed: int,
        engine: Engine = LEAN,
        on_frame: FrameListener | None = None,
        arrays: "StepArrays | None" = None,
    ) -> Environments:
        """Make the environments with these global indices; `arrays` receives the results of a lean engine's steps."""

    def same_world(self, first: str, second: str) -> bool:
        """Return whether two ids of the family name the same world under this program's protocol."""

    def facts(self, env_name: str, return_mean: float) -> dict[str, Any]:
        """Return what an evaluation says of the world besides returns."""

    def references(self, env_name: str) -> list[Reference]:
        """Return the scores of others in the world."""


def world_of(env_name: str) -> World:
    """Return what acts for the family of an id.

    Raises:
        Refusal: a library that the family needs cannot be imported.
    """
    from ppo.envs.making import refused_if_it_fails

    with refused_if_it_fails(f"env_name {env_name!r} cannot be served here"):
        world: World = importlib.import_module(f"ppo.envs.{family_of(env_name).name}").WORLD
    return world


def check_environment(config: Config, explicit: Collection[str] = ()) -> Spaces:
    """Refuse an environment that cannot be made, before a block of it is, and return its spaces.

    Args:
        config: its id and settings.
        explicit: names of the settings that the user has set.

    Raises:
        Refusal: an unknown id (with the nearest known one), an unsupported kind, or settings that do not apply.
    """
    env_name, engines = config.run.env_name, config.family.engines
    engine = config.machine.env_engine
    if "env_engine" in explicit and engine not in ("auto", *engines):
        names = " or ".join(("auto", *engines))
        raise Refusal(f"env_engine must be {names} for {env_name}, got {engine}")
    return world_of(env_name).check(env_name, config.world)


def choose_engine(
    env_name: str, settings: MachineSettings, cores: Sequence[int], rank: int, before: str | None = None
) -> Engine:
    """Return a rank's engine; of the same name on all ranks.

    Args:
        env_name: a Gymnasium id that has been checked.
        settings: the user's wish; auto takes that of the family where every rank has several cores, but stays with
            lean in a run begun with it: half-blocks would round otherwise.
        cores: of every rank.
        rank: whose engine it is.
        before: name of the engine with which a run that is to be resumed was saved.
    """
    name = settings.env_engine
    if name == "auto":
        name = family_of(env_name).auto_engine if min(cores) >= SEVERAL_CORES and before != "lean" else "lean"
    if name == "lean" or name not in family_of(env_name).engines:
        return LEAN
    return Engine(name, workers=cores[rank])


def make_envs(
    env_name: str,
    world: WorldSettings,
    *,
    indices: range,
    seed: int,
    on_frame: FrameListener | None = None,
    engine: Engine = LEAN,
) -> Environments:
    """Make the environments with these global indices.

    Environment i is the same at any rank count: its random numbers are addressed by (seed, i). `on_frame` receives
    every screen that a step of the first environment shows, (H, W, 3) RGB at `frames_per_second`; for the lean engine
    only.
    """
    assert on_frame is None or engine.name == "lean"
    return world_of(env_name).make_block(env_name, world, indices=indices, seed=seed, engine=engine, on_frame=on_frame)


def same_world(first: str, second: str) -> bool:
    """Return whether two ids name the same environment under this program's protocol."""
    same_family = family_of(first) == family_of(second)
    return first == second or (same_family and world_of(first).same_world(first, second))


def unknown_environment(env_name: str, known: Sequence[str]) -> Refusal:
    """Build the error for an id that is not registered."""
    return Refusal(f"env_name {env_name!r} is not a known environment{did_you_mean(env_name, known)}")
