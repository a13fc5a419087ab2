"""Environments on all cores of a rank, stepped by processes that each have some of them.

Observations, ends and saved states are those of the lean engine to the last bit, whatever the number of processes: each
of them has blocks of that engine's environments (`ppo.envs.worker`), which leave the results of their steps in memory
that all share.

Threads of the rank would hand the interpreter's lock to and fro. ALE's own, `ppo.envs.atari.vector`, take longer to
make a picture of a screen, cannot be saved, and load their emulators one after the other.
"""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from numpy.typing import NDArray

from ppo.envs import ArrayState, Spaces, StepResult
from ppo.envs.blocks import BlockInHalves, halves
from ppo.envs.worker import ANSWER, ERROR, REQUEST, SIGN_OF_LIFE, SIGNALS_TO_THE_JOB, Layout, SharedMemory, Work
from ppo.families import WorldSettings

_SECONDS_TO_END = 5.0
_PROGRAM = "from ppo.envs.worker import main; main()"


class ProcessEnvironments(BlockInHalves):
    """A block of environments, shared out among processes."""

    def __init__(
        self, env_name: str, world: WorldSettings, spaces: Spaces, *, indices: range, seed: int, num_processes: int
    ) -> None:
        """Make one environment per index; see `ppo.envs.make_envs`.

        Args:
            env_name: a Gymnasium id.
            world: the protocol.
            spaces: the shape and type of its observations and actions.
            indices: global indices of the block.
            seed: seed of the job.
            num_processes: how many share the environments out among themselves; at most one for each is started.

        Raises:
            ChildProcessError: a process has ended. So does every method that needs it.
        """
        layout = Layout.of(spaces, len(indices))
        memory = SharedMemory.make(layout)
        self._actions = memory.actions
        self._processes = [
            _Process(Work(env_name, world, indices, seed, blocks, layout), memory)
            for blocks in shared_out(len(indices), min(num_processes, len(indices)))
        ]
        self.processes = [process.pid for process in self._processes]
        described = self._ask("describe")[0]
        super().__init__(memory.arrays, spaces.observation_space, **described)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start a new episode everywhere; the seed was given once, at construction."""
        self._ask("reset")
        return self.observations, {}

    def send(self, group: slice, actions: NDArray[Any]) -> None:
        """Wake the processes for a group."""
        self._actions[group] = actions
        position = self.groups.index(group)
        for process in self._processes:
            process.begin_step(position)

    def recv(self, group: slice) -> StepResult:
        """Wait until all processes have stepped their environments of a group."""
        position = self.groups.index(group)
        for process in self._processes:
            process.finish_step(position)
        return self.arrays[group].result()

    def get_states(self) -> list[dict[str, NDArray[Any]]]:
        """Return what the lean engine does."""
        return self._ask_for_each("get_states")

    def keep_games(self, keeps: bool) -> None:
        """Do what the lean engine does."""
        self._ask("keep_games", [keeps] * len(self._processes))

    def take_games(self) -> list[list[ArrayState | None]]:
        """Return what the lean engine does."""
        return self._ask_for_each("take_games")

    def set_states(self, states: Sequence[ArrayState]) -> list[int]:
        """Play every current episode again, each process its own; see `Environments.set_states`."""
        if len(states) != self.num_envs:
            raise ValueError(f"there must be a state for each of {self.num_envs} environments, got {len(states)}")
        own = [[states[position] for position in process.positions] for process in self._processes]
        self._ask("check_states", own)
        return sorted(index for restarted in self._ask("set_states", own) for index in restarted)

    def close(self, **kwargs: Any) -> None:
        """End the processes."""
        for process in self._processes:
            process.hang_up()
        for process in self._processes:
            process.end()

    def _ask_for_each(self, name: str) -> list[Any]:
        """Return what the processes answer, an item for each environment, in the order of the environments."""
        items: dict[int, Any] = {}
        for process, own in zip(self._processes, self._ask(name), strict=True):
            items |= dict(zip(process.positions, own, strict=True))
        return [items[position] for position in range(self.num_envs)]

    def _ask(self, name: str, *arguments: Sequence[Any]) -> list[Any]:
        """Let all processes do something at once, each with its own item of the arguments, and return the answers."""
        for process, *own in zip(self._processes, *arguments, strict=True):
            process.request(name, *own)
        # All are read before an error of one is raised, so that the next question gets its own answers.
        answers = [process.answer(self.on_replay) for process in self._processes]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


def shared_out(num_envs: int, num_processes: int) -> list[tuple[range, ...]]:
    """Return for every process the positions of its environments, by group: of each group, and of all, as many to one.

    What is left over of the first group goes to the first processes, and of the second to the last.
    """
    of_groups = []
    for number, group in enumerate(halves(num_envs)):
        each, left_over = divmod(group.stop - group.start, num_processes)
        sizes = [each + 1] * left_over + [each] * (num_processes - left_over)
        ends = list(itertools.accumulate(sizes if number == 0 else sizes[::-1], initial=group.start))
        of_groups.append([range(*pair) for pair in itertools.pairwise(ends)])
    return list(zip(*of_groups, strict=True))


class _Process:
    """A process with some of a rank's environments, as the rank sees it."""

    def __init__(self, work: Work, memory: SharedMemory) -> None:
        """Start it; it makes its environments while this goes on."""
        self.positions = [position for block in work.blocks for position in block]
        ours, theirs = socket.socketpair()
        with theirs:
            # It begins with these signals held back, until it can ignore them.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS_TO_THE_JOB)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), str(memory.descriptor)],
                    pass_fds=(theirs.fileno(), memory.descriptor),
                    stdin=subprocess.DEVNULL,
                    # The terminal's Ctrl-C and what mpirun sends to a rank's group are not for it.
                    start_new_session=True,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.pid = self._process.pid
        self._descriptor = ours.detach()
        self._channel = Connection(self._descriptor)
        self._environments = ", ".join(str(work.indices[position]) for position in self.positions)
        self._has_any = [len(block) > 0 for block in work.blocks]
        self.end = weakref.finalize(self, _end, self._process, self._channel)
        self._send(work)

    def begin_step(self, group: int) -> None:
        """Let it step its environments of a group."""
        if self._has_any[group]:
            self._write(group)

    def finish_step(self, group: int) -> None:
        """Wait until it has."""
        if self._has_any[group]:
            self._read(group)

    def request(self, name: str, *arguments: Any) -> None:
        """Let it do something with all of its environments."""
        self._write(REQUEST)
        self._send((name, *arguments))

    def answer(self, on_sign_of_life: Callable[[], None]) -> Any:
        """Wait for what it answers to that, or for the ValueError that it ended in, which is returned."""
        while self._read(ANSWER, SIGN_OF_LIFE) == SIGN_OF_LIFE:
            on_sign_of_life()
        try:
            return self._channel.recv()
        except (OSError, EOFError):
            raise self._what_happened() from None

    def hang_up(self) -> None:
        """Let it end."""
        self._channel.close()
        self._descriptor = -1  # the number may be that of another file soon

    def _write(self, byte: int) -> None:
        try:
            os.write(self._descriptor, bytes((byte,)))
        except OSError:
            raise self._what_happened() from None

    def _read(self, *expected: int) -> int:
        try:
            byte = os.read(self._descriptor, 1)
        except OSError:
            raise self._what_happened() from None
        if not byte or byte[0] not in expected:
            raise self._what_happened(byte)
        return byte[0]

    def _send(self, message: object) -> None:
        try:
            self._channel.send(message)
        except OSError:
            raise self._what_happened() from None

    def _what_happened(self, byte: bytes = b"") -> ChildProcessError:
        """Return the error of a process that has ended, given what was read of it last."""
        # What it answered before, and maybe why it ended, can still be read.
        with contextlib.suppress(OSError, EOFError):
            while byte != bytes((ERROR,)) and (byte := os.read(self._descriptor, 1)):
                pass
            if byte:
                return ChildProcessError(
                    f"the process that steps environments {self._environments} failed:\n{self._channel.recv()}"
                )
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_END)
        return ChildProcessError(
            f"the process {self._process.pid} that steps environments {self._environments} has ended (exit code "
            f"{self._process.returncode})"
        )


def _end(process: subprocess.Popen[bytes], channel: Connection) -> None:
    channel.close()
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
