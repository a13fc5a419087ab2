"""A process that steps some of a rank's games for it; `ppo.envs.processes` is the rank's side.

Both are at the ends of a socket. One byte, the number of a group, asks for a step of its games in that group, whose
actions are in the shared memory, and the same byte answers when the results are there. For all that is rare a byte goes
before a pickled message: the rank and its processes are one program and trust each other.

The process ends when it can no longer read from its rank, however that has ended. Signals to the whole job are the
rank's to answer, who may want to save first.
"""

import ctypes
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

import numpy as np

from ppo.envs import ArrayState
from ppo.envs.arrays import StepArrays
from ppo.envs.atari.block import AtariEnvironments
from ppo.families import AtariSettings

# Bytes on the socket that are not the number of a group.
REQUEST, ANSWER, ERROR, SIGN_OF_LIFE = 252, 253, 254, 255
SIGNALS_TO_THE_JOB = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1
_ACTION = np.dtype(np.int64)


@dataclass(frozen=True)
class Work:
    """What a process is to do."""

    rom: str
    world: AtariSettings
    indices: range
    """Global indices of all games of the rank."""
    seed: int
    blocks: tuple[range, ...]
    """Positions of its own games among them, by the number of the group; some may be empty."""


class SharedMemory:
    """The actions and the results of all games of a rank, in memory that its processes map too."""

    def __init__(self, descriptor: int, num_envs: int, depth: int) -> None:
        """Map the memory behind a descriptor."""
        self.descriptor = descriptor
        mapped = memoryview(mmap.mmap(descriptor, self.bytes_needed(num_envs, depth)))
        self.arrays = StepArrays.over(mapped, num_envs, depth)
        self.actions = np.frombuffer(mapped, _ACTION, num_envs, StepArrays.bytes_needed(num_envs, depth))

    @classmethod
    def make(cls, num_envs: int, depth: int) -> "SharedMemory":
        """Return new memory, all zeros, without a name that could be left behind."""
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("ppo")
        else:  # not Linux
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.truncate(descriptor, cls.bytes_needed(num_envs, depth))
        memory = cls(descriptor, num_envs, depth)
        weakref.finalize(memory, os.close, descriptor)
        return memory

    @staticmethod
    def bytes_needed(num_envs: int, depth: int) -> int:
        """Return how much memory it is."""
        return StepArrays.bytes_needed(num_envs, depth) + num_envs * _ACTION.itemsize


class Worker:
    """The games of a process, by group."""

    def __init__(self, work: Work, memory: SharedMemory, on_replay: Callable[[], None]) -> None:
        """Load one emulator for each game."""
        self._work, self._actions = work, memory.actions
        self._blocks: dict[int, AtariEnvironments] = {}
        for group, positions in enumerate(work.blocks):
            if len(positions) > 0:
                part = slice(positions.start, positions.stop)
                self._blocks[group] = AtariEnvironments(
                    work.rom, work.world, indices=work.indices[part], seed=work.seed, arrays=memory.arrays[part]
                )
                self._blocks[group].on_replay = on_replay

    def step(self, group: int) -> None:
        """Step the games of a group."""
        positions = self._work.blocks[group]
        self._blocks[group].step(self._actions[positions.start : positions.stop])

    # What a rank may ask for: its arguments and answers have one item for each game, in the order of `Work.blocks`.

    def num_actions(self) -> int:
        """Return how many actions a game has."""
        return next(iter(self._blocks.values())).num_actions

    def reset(self) -> None:
        """Start a new game everywhere."""
        for block in self._blocks.values():
            block.reset()

    def get_states(self) -> list[ArrayState]:
        """Return all states."""
        return [state for block in self._blocks.values() for state in block.get_states()]

    def check_states(self, states: Sequence[ArrayState]) -> None:
        """Refuse what is no state."""
        for block, own in self._split(states):
            block.check_states(own)

    def set_states(self, states: Sequence[ArrayState]) -> list[int]:
        """Play all games again; return which could not be brought back."""
        return [index for block, own in self._split(states) for index in block.set_states(own)]

    def _split(self, states: Sequence[ArrayState]) -> Iterator[tuple[AtariEnvironments, Sequence[ArrayState]]]:
        start = 0
        for block in self._blocks.values():
            yield block, states[start : start + block.num_envs]
            start += block.num_envs


def main() -> None:
    """Serve a rank; the command line has the descriptors of the socket to it and of the memory that is shared."""
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
    """Have the kernel end this process with its rank, in case it is stopped then and reads no end (Linux only)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _serve(channel: Connection, memory: int) -> None:
    descriptor = channel.fileno()
    work = channel.recv()
    worker = Worker(
        work,
        SharedMemory(memory, len(work.indices), work.world.frame_stack),
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
        except ValueError as error:  # of what is no state
            answer = error
        _write(descriptor, ANSWER)
        channel.send(answer)


def _write(descriptor: int, byte: int) -> None:
    os.write(descriptor, bytes((byte,)))
