"""Environments: `make_envs` makes a rank's block of the job's environments.

All of them are `gymnasium.vector.VectorEnv`s with SAME_STEP autoreset, stepped into preallocated arrays. `step` returns
(observations, rewards, terminated, truncated, info); the arrays belong to the environments and are overwritten by the
next step. `info` holds one array per key, never one dict per environment:

    life_lost        (N,) bool      the learner's episode ends although the game plays on (never part of `terminated`)
    final_obs        (N, ...)       the last observation, valid where an episode ended in this step
    episode_return   (N,) float64   raw return of the whole game, valid where it ended
    episode_length   (N,) int64     agent steps of the whole game, valid where it ended

`send` starts a step of one of the `groups`, and `recv` returns the results of that group, as slices of the same arrays.
Between the two, an engine with several groups steps its environments in the background.
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
    """What steps a rank's environments."""

    name: Literal["lean", "processes", "vector"]
    workers: int
    """Number of its threads or processes."""

    def describe(self) -> str:
        """Return the engine's line for the log."""
        if self.name == "vector":
            threads = "1 thread" if self.workers == 1 else f"{self.workers} threads"
            return (
                f"env_engine: vector, {threads}; a stopped run resumes with new games "
                "(use --env_engine=processes or lean to resume exactly)"
            )
        if self.name == "processes":
            processes = "1 process" if self.workers == 1 else f"{self.workers} processes"
            return f"env_engine: processes, {processes}; a stopped run resumes exactly"
        return "env_engine: lean, 1 thread; a stopped run resumes exactly"


LEAN = Engine("lean", workers=1)


class Environments(VectorEnv[NDArray[Any], NDArray[Any], NDArray[Any]], abc.ABC):
    """A block of environments whose states can be saved and restored, exactly by most kinds of block."""

    frames_per_second: float
    """Rate at which a frame listener receives the screen."""
    observations: NDArray[Any]
    """The current observations, (N, ...)."""
    processes: Sequence[int] = ()
    """Ids of the processes that step the environments; empty if this process does."""
    uncompiled: str = ""
    """What is slower because the package was installed without a compiler; empty if nothing is."""
    action_names: Sequence[str] = ()
    """Name of each category, or dimension, of an action; empty if unknown."""
    entry_names: Sequence[str] = ()
    """Name of each entry of a vector observation; empty if unknown."""
    on_replay: Callable[[], None] = staticmethod(lambda: None)
    """Called now and then while `set_states` replays episodes, which may take minutes."""
    keeps_games = False
    """Whether finished games are kept for `take_games`."""
    _sent: NDArray[Any]

    @property
    def groups(self) -> tuple[slice, ...]:
        """The slices of the block that are stepped together; one group of all environments unless overridden."""
        return (slice(0, self.num_envs),)

    def send(self, group: slice, actions: NDArray[Any]) -> None:
        """Start a step of one of the `groups`."""
        self._sent = actions

    def recv(self, group: slice) -> StepResult:
        """Wait for the step that `send` started and return its result."""
        return self.step(self._sent)

    def end_episode(self, position: int) -> float:
        """Abandon an episode, begin the next and return the raw return so far; lean engines only."""
        raise NotImplementedError

    def keep_games(self, keeps: bool) -> None:
        """Start or stop keeping finished games for `take_games`."""
        self.keeps_games = keeps

    def take_games(self) -> list[list[ArrayState | None]]:
        """Return, for each environment, the games that have ended since the last call, in order.

        A game holds its start, in arrays of fixed shapes, its `actions` (L, *action_shape) and `last_seen` (1,), a
        checksum of the last observation. It is None if it cannot be replayed. The vector engine returns no games.
        """
        return [[] for _ in range(self.num_envs)]

    def begin_again(self, position: int, game: ArrayState) -> None:
        """Restart a game from `take_games`, so that sending its actions replays it; lean engines only.

        The game may come from an untrusted file, so it is checked first.

        Raises:
            ValueError: it is not a game of this environment.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def get_states(self) -> list[dict[str, NDArray[Any]]]:
        """Return one dict of arrays per environment: what an exact resume needs, as far as it can be saved."""

    def check_states(self, states: Sequence[ArrayState]) -> None:
        """Check that `set_states` would accept the states, without changing any environment.

        Raises:
            ValueError: a state does not belong to this kind of environment.
        """

    @abc.abstractmethod
    def set_states(self, states: Sequence[ArrayState]) -> list[int]:
        """Restore every environment to its state from `get_states`, in the same order.

        The states may come from an untrusted file, so all are checked before any environment changes.

        Returns:
            The global indices of the environments that could not be restored exactly and have begun a new episode
            instead: the environment is not deterministic, or the engine cannot restore it. Normally none.

        Raises:
            ValueError: a state does not belong to this kind of environment.
        """


@dataclass(frozen=True)
class Spaces:
    """What is known about a world before a block of it is made."""

    observation_space: Box
    """The space of a block's observations: uint8 images (C, H, W) or float32 vectors (D,)."""
    action_space: Space[Any]
    notes: tuple[str, ...] = ()
    """Messages for the log."""


class World(Protocol):
    """The behaviour of a family, implemented by `WORLD` in this package's module of the same name."""

    def check(self, env_name: str, world: WorldSettings) -> Spaces:
        """Return the spaces of an id, or refuse one that cannot be made."""

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
        """Make the environments with these global indices, for any engine but `processes`, which serves all families.

        `arrays` receives the step results of a lean engine.
        """

    def same_world(self, first: str, second: str) -> bool:
        """Return whether two ids of the family name the same world under this program's protocol."""

    def facts(self, env_name: str, return_mean: float) -> dict[str, Any]:
        """Return what an evaluation reports about the world besides returns."""

    def references(self, env_name: str) -> list[Reference]:
        """Return the reference scores of the world."""


def world_of(env_name: str) -> World:
    """Return the `World` of an id's family.

    Raises:
        Refusal: a library that the family needs cannot be imported.
    """
    from ppo.envs.making import refused_if_it_fails

    with refused_if_it_fails(f"env_name {env_name!r} cannot be used here"):
        world: World = importlib.import_module(f"ppo.envs.{family_of(env_name).name}").WORLD
    return world


def check_environment(config: Config, explicit: Collection[str] = ()) -> Spaces:
    """Return the spaces of an environment, or refuse one that cannot be made, before a block of it is made.

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
    """Return a rank's engine; its name is the same on all ranks.

    Args:
        env_name: a checked Gymnasium id.
        settings: the user's choice; auto takes the family's engine if every rank has several cores, but a run begun
            with lean stays with lean, since half-blocks round differently.
        cores: number of cores of every rank.
        rank: the rank whose engine is returned.
        before: name of the engine saved with the run to resume, if any.
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

    Environment i is the same at any number of ranks: its random numbers are addressed by (seed, i). `on_frame` receives
    every screen that a step of the first environment shows, (H, W, 3) RGB at `frames_per_second`; lean engine only.
    """
    assert on_frame is None or engine.name == "lean"
    of_family = world_of(env_name)
    if engine.name == "processes":
        from ppo.envs.processes import ProcessEnvironments

        spaces = of_family.check(env_name, world)
        return ProcessEnvironments(env_name, world, spaces, indices=indices, seed=seed, num_processes=engine.workers)
    return of_family.make_block(env_name, world, indices=indices, seed=seed, engine=engine, on_frame=on_frame)


def same_world(first: str, second: str) -> bool:
    """Return whether two ids name the same environment under this program's protocol."""
    same_family = family_of(first) == family_of(second)
    return first == second or (same_family and world_of(first).same_world(first, second))


def unknown_environment(env_name: str, known: Sequence[str]) -> Refusal:
    """Build the error for an id that is not registered."""
    return Refusal(f"env_name {env_name!r} is not a known environment{did_you_mean(env_name, known)}")
