"""Environments on all cores of a rank, stepped by processes that each have some of them.

Observations, episode ends and saved states are bit-identical to those of the lean engine, whatever the number of
processes: each process has blocks of that engine's environments (`ppo.envs.worker`), which write their step results to
shared memory.

Threads of the rank would contend for the interpreter lock. ALE's own threads (`ppo.envs.atari.vector`) take longer to
make a picture of a screen, cannot save their games, and load their emulators one after the other.
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
            spaces: its observation and action spaces.
            indices: global indices of the block.
            seed: seed of the job.
            num_processes: number of processes; at most one per environment is started.

        Raises:
            ChildProcessError: a process has ended; every method that needs the process raises this too.
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
        """Start a new episode in every environment; `seed` is ignored, since the constructor has it."""
        self._ask("reset")
        return self.observations, {}

    def send(self, group: slice, actions: NDArray[Any]) -> None:
        """Start a step of a group in all processes."""
        self._actions[group] = actions
        position = self.groups.index(group)
        for process in self._processes:
            process.begin_step(position)

    def recv(self, group: slice) -> StepResult:
        """Wait until all processes have stepped their environments in a group."""
        position = self.groups.index(group)
        for process in self._processes:
            process.finish_step(position)
        return self.arrays[group].result()

    def get_states(self) -> list[dict[str, NDArray[Any]]]:
        """Return the states that the lean engine would."""
        return self._ask_for_each("get_states")

    def keep_games(self, keeps: bool) -> None:
        """Start or stop keeping finished games for `take_games`."""
        self._ask("keep_games", [keeps] * len(self._processes))

    def take_games(self) -> list[list[ArrayState | None]]:
        """Return the games that the lean engine would."""
        return self._ask_for_each("take_games")

    def set_states(self, states: Sequence[ArrayState]) -> list[int]:
        """Replay every current episode in its process; see `Environments.set_states`."""
        if len(states) != self.num_envs:
            raise ValueError(f"the number of states must be {self.num_envs}, one per environment, got {len(states)}")
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
        """Call a `Worker` method in all processes; return one item per environment, in the block's order."""
        items: dict[int, Any] = {}
        for process, own in zip(self._processes, self._ask(name), strict=True):
            items |= dict(zip(process.positions, own, strict=True))
        return [items[position] for position in range(self.num_envs)]

    def _ask(self, name: str, *arguments: Sequence[Any]) -> list[Any]:
        """Call a `Worker` method in all processes in parallel; arguments and answers have one item per process."""
        for process, *own in zip(self._processes, *arguments, strict=True):
            process.request(name, *own)
        # Read every answer before raising an error, so that none is left for the next request.
        answers = [process.answer(self.on_replay) for process in self._processes]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers


def shared_out(num_envs: int, num_processes: int) -> list[tuple[range, ...]]:
    """Return each process's environment positions by group; counts differ by at most 1, per group and in total.

    The remainder of the first group goes to the first processes, that of the second group to the last.
    """
    of_groups = []
    for number, group in enumerate(halves(num_envs)):
        each, left_over = divmod(group.stop - group.start, num_processes)
        sizes = [each + 1] * left_over + [each] * (num_processes - left_over)
        ends = list(itertools.accumulate(sizes if number == 0 else sizes[::-1], initial=group.start))
        of_groups.append([range(*pair) for pair in itertools.pairwise(ends)])
    return list(zip(*of_groups, strict=True))


class _Process:
    """The rank's side of a process that steps some of its environments."""

    def __init__(self, work: Work, memory: SharedMemory) -> None:
        """Start the process, which makes its environments while this one continues."""
        self.positions = [position for block in work.blocks for position in block]
        ours, theirs = socket.socketpair()
        with theirs:
            # The process starts with these signals blocked, until it can ignore them.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS_TO_THE_JOB)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), str(memory.descriptor)],
                    pass_fds=(theirs.fileno(), memory.descriptor),
                    stdin=subprocess.DEVNULL,
                    # Ctrl-C in the terminal and mpirun's signals to the rank's process group must not reach it.
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
        """Start a step of its environments in a group."""
        if self._has_any[group]:
            self._write(group)

    def finish_step(self, group: int) -> None:
        """Wait for the step that `begin_step` started."""
        if self._has_any[group]:
            self._read(group)

    def request(self, name: str, *arguments: Any) -> None:
        """Request a call of a `Worker` method."""
        self._write(REQUEST)
        self._send((name, *arguments))

    def answer(self, on_sign_of_life: Callable[[], None]) -> Any:
        """Wait for the answer to `request`; a ValueError that the method raised is returned."""
        while self._read(ANSWER, SIGN_OF_LIFE) == SIGN_OF_LIFE:
            on_sign_of_life()
        try:
            return self._channel.recv()
        except (OSError, EOFError):
            raise self._what_happened() from None

    def hang_up(self) -> None:
        """Close the connection, which ends the process."""
        self._channel.close()
        self._descriptor = -1  # the number may soon belong to another file

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
        """Return the error for a process that has ended, given the last byte read from it."""
        # Earlier answers, and perhaps the cause of its end, can still be read.
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
