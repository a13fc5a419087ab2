"""Atari 2600 games on all cores of a rank, stepped by processes that each have some of the emulators.

Games, pixels, ends and saved states are those of `ppo.envs.atari` to the last bit, whatever the number of processes:
each of them has blocks of that module's games (`ppo.envs.atari_worker`), which leave the results of their steps in
memory that all share.

Threads of the rank would hand the interpreter's lock to and fro. ALE's own, `ppo.envs.atari_vector`, take longer to
make a picture of a screen, cannot be saved, and load their emulators one after the other.
"""

import contextlib
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from numpy.typing import NDArray

from ppo.collectives import share
from ppo.config import WorldSettings
from ppo.envs import ArrayState, StepResult
from ppo.envs.atari_block import AtariBlockInHalves, halves
from ppo.envs.atari_worker import ANSWER, ERROR, REQUEST, SIGN_OF_LIFE, SharedMemory, Work

_SECONDS_TO_END = 5.0
_PROGRAM = "from ppo.envs.atari_worker import main; main()"


class AtariProcessEnvironments(AtariBlockInHalves):
    """A block of games of one ROM, shared out among processes."""

    def __init__(self, rom: str, world: WorldSettings, *, indices: range, seed: int, processes: int) -> None:
        """Start as many processes, at most one for each game; see `make_envs` for the other arguments."""
        self._indices = indices
        memory = SharedMemory.make(len(indices), world.frame_stack)
        self._actions = memory.actions
        number = min(processes, len(indices))
        self._processes = [
            _Process(Work(rom, world, indices, seed, _blocks(len(indices), worker, number)), memory)
            for worker in range(number)
        ]
        super().__init__(memory.arrays, self._ask("num_actions")[0])

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start a new game everywhere; the seed was given once, at construction."""
        self._ask("reset")
        return self.observations, {}

    def send(self, group: slice, actions: NDArray[Any]) -> None:
        """Wake the processes for a group."""
        self._actions[group] = actions
        number = self.groups.index(group)
        for process in self._processes:
            process.begin_step(number)

    def recv(self, group: slice) -> StepResult:
        """Wait until all processes have stepped their games of a group."""
        number = self.groups.index(group)
        for process in self._processes:
            process.finish_step(number)
        return self.arrays[group].result()

    def get_states(self) -> list[dict[str, NDArray[Any]]]:
        """Return what `AtariEnvironments` does."""
        states: dict[int, dict[str, NDArray[Any]]] = {}
        for process, own in zip(self._processes, self._ask("get_states"), strict=True):
            states |= dict(zip(process.positions, own, strict=True))
        return [states[position] for position in range(self.num_envs)]

    def set_states(self, states: Sequence[ArrayState]) -> list[int]:
        """Play every current game again, each process its own; see `Environments.set_states`."""
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


def _blocks(num_envs: int, worker: int, size: int) -> tuple[range, ...]:
    """Return the positions of a process's games in every group; who has one more in the first has none more after."""
    blocks = []
    for number, group in enumerate(halves(num_envs)):
        own = share(group.stop - group.start, worker if number == 0 else size - 1 - worker, size)
        blocks.append(range(group.start + own.start, group.start + own.stop))
    return tuple(blocks)


class _Process:
    """A process with some of a rank's games, as the rank sees it."""

    def __init__(self, work: Work, memory: SharedMemory) -> None:
        """Start it; it loads its games while this goes on."""
        self.positions = [position for block in work.blocks for position in block]
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), str(memory.descriptor)],
                pass_fds=(theirs.fileno(), memory.descriptor),
                stdin=subprocess.DEVNULL,
                # The terminal's Ctrl-C and what mpirun sends to a rank's group are not for it.
                start_new_session=True,
            )
        self._descriptor = ours.detach()
        self._channel = Connection(self._descriptor)
        self._games = ", ".join(str(work.indices[position]) for position in self.positions)
        self._has_games = [len(block) > 0 for block in work.blocks]
        self.end = weakref.finalize(self, _end, self._process, self._channel)
        self._send(work)

    def begin_step(self, group: int) -> None:
        """Let it step its games of a group."""
        if self._has_games[group]:
            self._write(group)

    def finish_step(self, group: int) -> None:
        """Wait until it has."""
        if self._has_games[group]:
            self._read(group)

    def request(self, name: str, *arguments: Any) -> None:
        """Let it do something with all of its games."""
        self._write(REQUEST)
        self._send((name, *arguments))

    def answer(self, on_sign_of_life: Callable[[], None]) -> Any:
        """Wait for what it answers to that, or for the exception that it ended in, which is returned."""
        while self._read(ANSWER, SIGN_OF_LIFE) == SIGN_OF_LIFE:
            on_sign_of_life()
        return self._channel.recv()

    def hang_up(self) -> None:
        """Let it end."""
        self._channel.close()

    def _write(self, byte: int) -> None:
        with self._noticing_its_end():
            os.write(self._descriptor, bytes((byte,)))

    def _send(self, message: object) -> None:
        with self._noticing_its_end():
            self._channel.send(message)

    def _read(self, *expected: int) -> int:
        with self._noticing_its_end():
            byte = os.read(self._descriptor, 1)
        if not byte:
            raise self._what_happened()
        if byte[0] == ERROR:
            raise RuntimeError(f"a process that steps games failed:\n{self._channel.recv()}")
        assert byte[0] in expected
        return byte[0]

    @contextlib.contextmanager
    def _noticing_its_end(self) -> Iterator[None]:
        try:
            yield
        except ConnectionError:
            raise self._what_happened() from None

    def _what_happened(self) -> RuntimeError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_SECONDS_TO_END)
        return RuntimeError(
            f"the process {self._process.pid} that steps games {self._games} has ended (exit code "
            f"{self._process.returncode})"
        )


def _end(process: subprocess.Popen[bytes], channel: Connection) -> None:
    channel.close()
    try:
        process.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
