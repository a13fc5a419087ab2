"""A process that steps some of a rank's environments; `ppo.envs.processes` is the rank's side.

The two are connected by a socket. One byte, the number of a group, requests a step of that group's environments: their
actions are in shared memory, and the process returns the same byte once the results are there too. All rarer requests
are a byte followed by a pickled message: the rank and its processes are one program and trust each other.

The process ends when it can no longer read from its rank, however the rank ended. It ignores signals to the whole job,
since the rank may want to save first.
"""

import ctypes
import math
import mmap
import os
import signal
import sys
import tempfile
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ppo.envs import ArrayState, Environments, Spaces, world_of
from ppo.envs.arrays import StepArrays
from ppo.families import WorldSettings

# Bytes on the socket that are not group numbers.
REQUEST, ANSWER, ERROR, SIGN_OF_LIFE = 252, 253, 254, 255
SIGNALS_TO_THE_JOB = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Layout:
    """The layout of the memory that a rank shares with its processes."""

    num_envs: int
    observation_shape: tuple[int, ...]
    observation_dtype: str
    action_shape: tuple[int, ...]
    action_dtype: str

    @classmethod
    def of(cls, spaces: Spaces, num_envs: int) -> "Layout":
        """Return the layout for environments of these spaces."""
        shown, actions = spaces.observation_space, spaces.action_space
        assert actions.shape is not None and actions.dtype is not None
        return cls(num_envs, shown.shape, np.dtype(shown.dtype).str, actions.shape, np.dtype(actions.dtype).str)

    @property
    def bytes_of_arrays(self) -> int:
        """Return how many bytes the step results take."""
        return StepArrays.bytes_needed(self.num_envs, self.observation_shape, self.observation_dtype)

    @property
    def bytes_needed(self) -> int:
        """Return how many bytes the step results and the actions after them take."""
        return (
            self.bytes_of_arrays + self.num_envs * math.prod(self.action_shape) * np.dtype(self.action_dtype).itemsize
        )


@dataclass(frozen=True)
class Work:
    """What a process needs to make its environments."""

    env_name: str
    world: WorldSettings
    indices: range
    """Global indices of all of the rank's environments."""
    seed: int
    blocks: tuple[range, ...]
    """Positions in `indices` of the process's environments, one range per group; some may be empty."""
    layout: Layout


class SharedMemory:
    """The actions and the results of all environments of a rank, in memory that its processes map too."""

    def __init__(self, descriptor: int, layout: Layout) -> None:
        """Map the memory behind a descriptor."""
        self.descriptor = descriptor
        mapped = memoryview(mmap.mmap(descriptor, layout.bytes_needed))
        self.arrays = StepArrays.over(mapped, layout.num_envs, layout.observation_shape, layout.observation_dtype)
        shape = (layout.num_envs, *layout.action_shape)
        actions = np.frombuffer(mapped, layout.action_dtype, math.prod(shape), layout.bytes_of_arrays)
        self.actions = actions.reshape(shape)

    @classmethod
    def make(cls, layout: Layout) -> "SharedMemory":
        """Return new, zeroed memory; it has no name in the file system that could be left behind."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("ppo")
        else:  # not Linux
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.truncate(descriptor, layout.bytes_needed)
        memory = cls(descriptor, layout)
        weakref.finalize(memory, os.close, descriptor)
        return memory


class Worker:
    """The environments of a process, by group."""

    def __init__(self, work: Work, memory: SharedMemory, on_replay: Callable[[], None]) -> None:
        """Make the environments."""
        self._work, self._actions = work, memory.actions
        self._blocks: dict[int, Environments] = {}
        for group, positions in enumerate(work.blocks):
            if len(positions) > 0:
                part = slice(positions.start, positions.stop)
                self._blocks[group] = world_of(work.env_name).make_block(
                    work.env_name,
                    work.world,
                    indices=work.indices[part],
                    seed=work.seed,
                    arrays=memory.arrays[part],
                )
                self._blocks[group].on_replay = on_replay

    def keep_games(self, keeps: bool) -> None:
        """Start or stop keeping finished games in all environments."""
        for block in self._blocks.values():
            block.keep_games(keeps)

    def step(self, group: int) -> None:
        """Step the environments of a group."""
        positions = self._work.blocks[group]
        self._blocks[group].step(self._actions[positions.start : positions.stop])

    # Called on request of the rank. Arguments and answers per environment are in the order of `Work.blocks`.

    def describe(self) -> dict[str, Any]:
        """Return what a rank cannot know about its environments before one is made."""
        block = next(iter(self._blocks.values()))
        return {
            "action_space": block.single_action_space,
            "frames_per_second": block.frames_per_second,
            "uncompiled": block.uncompiled,
        }

    def reset(self) -> None:
        """Start a new episode in every environment."""
        for block in self._blocks.values():
            block.reset()

    def get_states(self) -> list[ArrayState]:
        """Return all states."""
        return [state for block in self._blocks.values() for state in block.get_states()]

    def take_games(self) -> list[list[ArrayState | None]]:
        """Return all games that have ended."""
        return [games for block in self._blocks.values() for games in block.take_games()]

    def check_states(self, states: Sequence[ArrayState]) -> None:
        """Refuse invalid states."""
        for block, own in self._split(states):
            block.check_states(own)

    def set_states(self, states: Sequence[ArrayState]) -> list[int]:
        """Replay all episodes; return the indices of the environments that could not be restored."""
        return [index for block, own in self._split(states) for index in block.set_states(own)]

    def _split(self, states: Sequence[ArrayState]) -> Iterator[tuple[Environments, Sequence[ArrayState]]]:
        start = 0
        for block in self._blocks.values():
            yield block, states[start : start + block.num_envs]
            start += block.num_envs


def main() -> None:
    """Serve a rank; the command line gives the descriptors of the socket and of the shared memory."""
    for number in SIGNALS_TO_THE_JOB:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS_TO_THE_JOB)
    _end_with_the_rank()
    descriptor, memory = map(int, sys.argv[1:])
    with Connection(descriptor) as channel:
        try:
            _serve(channel, memory)
        except (EOFError, ConnectionError):
            pass  # the rank has ended
        except Exception:
            _write(descriptor, ERROR)
            channel.send(traceback.format_exc())
            sys.exit(1)


def _end_with_the_rank() -> None:
    """Have the kernel kill this process with its rank, in case it is stopped and cannot read (Linux only)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _serve(channel: Connection, memory: int) -> None:
    descriptor = channel.fileno()
    work = channel.recv()
    worker = Worker(
        work,
        SharedMemory(memory, work.layout),
        on_replay=lambda: _write(descriptor, SIGN_OF_LIFE),
    )
    os.close(memory)
    while byte := os.read(descriptor, 1):
        if byte[0] != REQUEST:
            worker.step(byte[0])
            os.write(descriptor, byte)
            continue
        name, *arguments = channel.recv()
        try:
            answer = getattr(worker, name)(*arguments)
        except ValueError as error:  # an invalid state
            answer = error
        _write(descriptor, ANSWER)
        channel.send(answer)


def _write(descriptor: int, byte: int) -> None:
    os.write(descriptor, bytes((byte,)))
