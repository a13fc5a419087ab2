"""The world: `make_envs` builds this rank's block of a job's environments.

All of them are `gymnasium.vector.VectorEnv`s with SAME_STEP autoreset, stepped into preallocated arrays. `step` returns
(observations, rewards, terminated, truncated, info); the arrays belong to the environments and are overwritten by the
next step. `info` holds one array per key, never one dict per environment:

    life_lost        (N,) bool      a life was lost and the game plays on (never part of `terminated`)
    final_obs        (N, ...)       the last observation, valid where an episode ended in this step
    episode_return   (N,) float64   raw return of the whole game, valid where it ended
    episode_length   (N,) int64     agent steps of the whole game, valid where it ended

`send` hands one of the `groups` its actions, and `recv` returns what `step` would for that group alone, as parts of the
same arrays. Between the two the emulators of an engine with several groups run by themselves.
"""

import abc
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ppo.config import MachineSettings, Refusal, WorldSettings, did_you_mean
from ppo.envs.blended_colours import leave_out_blended_colours
from ppo.machine import SEVERAL_CORES

leave_out_blended_colours()  # before any module of this package imports ALE

FrameListener = Callable[[NDArray[np.uint8]], None]
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
                f"env_engine: vector, {threads}; it cannot resume exactly: a run that is stopped goes on with new "
                "games (with --env_engine=processes or lean it resumes exactly)"
            )
        if self.name == "processes":
            processes = "1 process" if self.workers == 1 else f"{self.workers} processes"
            return f"env_engine: processes, {processes}; the games of a run that is stopped go on exactly"
        return "env_engine: lean, 1 thread; a run that is stopped resumes exactly"


LEAN = Engine("lean", workers=1)


class Environments(gymnasium.vector.VectorEnv[NDArray[Any], NDArray[Any], NDArray[Any]], abc.ABC):
    """A block of environments whose state can be taken out and put back, by most kinds exactly."""

    frames_per_second: float
    """Rate at which a frame listener receives the screen."""
    observations: NDArray[Any]
    """The current observations, (N, ...)."""
    on_replay: Callable[[], None] = staticmethod(lambda: None)
    """Called now and then while `set_states` plays episodes again, which may take minutes."""
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

    @abc.abstractmethod
    def get_states(self) -> list[dict[str, NDArray[Any]]]:
        """Return one dict of arrays per environment: what is needed to go on as if never stopped, as far as it can."""

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


def check_environment(env_name: str, explicit: Collection[str] = (), model_size: str = "small") -> None:
    """Refuse an environment that cannot be made, before any is.

    Args:
        env_name: a Gymnasium id.
        explicit: names of the settings that the user has set.
        model_size: the network that is to see it.

    Raises:
        Refusal: an unknown id (with the nearest known one), an unsupported kind, or settings that do not apply.
    """
    from ppo.envs import atari, control

    if atari.is_atari_name(env_name):
        atari.rom_name(env_name)
        return
    if env_name not in gymnasium.registry:
        known = [i for i in gymnasium.registry if not atari.is_atari_name(i)]
        raise unknown_environment(env_name, [*known, *atari.accepted_names()])
    control.check(env_name)
    for setting in (*(field.name for field in dataclasses.fields(WorldSettings)), "env_engine", "precision"):
        if setting in explicit:
            raise Refusal(f"{setting} must not be set for {env_name}: it applies to Atari games only")
    if model_size not in ("small", "large"):
        raise Refusal(f"model_size must be small or large for {env_name}, which shows no images, got {model_size}")


def choose_engine(
    env_name: str, settings: MachineSettings, cores: Sequence[int], rank: int, before: str | None = None
) -> Engine:
    """Return a rank's engine; of the same name on all ranks.

    Args:
        env_name: a Gymnasium id that has been checked.
        settings: the user's wish; auto takes processes where every rank has several cores, but not for a run that was
            begun with lean: the network would act for half of the games at a time from then on, which rounds otherwise.
        cores: of every rank.
        rank: whose engine it is.
        before: name of the engine with which a run that is to be resumed was saved.
    """
    from ppo.envs import atari

    name = settings.env_engine
    if name == "auto":
        name = "processes" if min(cores) >= SEVERAL_CORES and before != "lean" else "lean"
    if name == "lean" or not atari.is_atari_name(env_name):
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
    from ppo.envs import atari, atari_processes, atari_vector, control

    if not atari.is_atari_name(env_name):
        return control.ControlEnvironments(env_name, indices=indices, seed=seed, on_frame=on_frame)
    rom = atari.rom_name(env_name)
    if engine.name == "lean":
        return atari.AtariEnvironments(rom, world, indices=indices, seed=seed, on_frame=on_frame)
    assert on_frame is None
    if engine.name == "processes":
        return atari_processes.AtariProcessEnvironments(
            rom, world, indices=indices, seed=seed, num_processes=engine.workers
        )
    return atari_vector.AtariVectorEnvironments(rom, world, indices=indices, seed=seed, threads=engine.workers)


def unknown_environment(env_name: str, known: Sequence[str]) -> Refusal:
    """Build the error for an id that is not registered."""
    return Refusal(f"env_name {env_name!r} is not a known environment{did_you_mean(env_name, known)}")
