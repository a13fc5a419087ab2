"""The watchdog: a thread that ends a job without progress, and one that ends a rank whose launcher has gone.

MPI has no timeout: a rank that is stopped, stuck or cut off leaves the others waiting in an all-reduce forever. Each
rank's watchdog counts the seconds since its loop last entered a phase. At the limit, every rank that still can prints
its stack, rank 0 (or another rank, if rank 0 is silent) names the rank to blame, and all leave.

Time does not count while this process is stopped or suspended, or while a debugger holds any rank.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType

import ppo
from ppo.collectives import Collective
from ppo.supervision.heartbeats import Exchange, Heartbeat, Pulse

_PACKAGE = Path(ppo.__file__).parent
_LONGEST_BEAT = 1.0
# A rank not heard from for this many beats is silent.
_BEATS_OF_SILENCE = 3
# Rank 0 lets the others print their stacks first; if it then does not end the job, the others leave on their own.
_SECONDS_FOR_STACKS = 1.5
_SECONDS_FOR_ROOT = 3.0
# Added to the processor-time alarm, so that another rank can name a blocked rank before its alarm ends it.
_SECONDS_FOR_OTHERS = 10.0
_LEAST_SECONDS_TO_START = 120.0
_DEBUGGERS = {"bdb", "pdb", "pydevd", "debugpy", "_pydevd_bundle", "ipdb"}


class Watchdog:
    """A context manager around the work of one rank."""

    def __init__(self, collective: Collective, *, seconds: float, hosts: Sequence[str]) -> None:
        """Prepare on all ranks together.

        Args:
            collective: the job.
            seconds: how long the loop may stay in one phase.
            hosts: the host of every rank.
        """
        self._collective, self._seconds = collective, seconds
        self.hosts = hosts
        self.processes: Sequence[int] = ()
        """Ids of this rank's environment processes: while a debugger holds one, the rank waits for it."""
        self._beat = min(_LONGEST_BEAT, seconds / 4)
        self._exchange = Exchange(collective) if collective.size > 1 else None
        self._main = threading.main_thread().ident
        self._phase, self._update, self._entered = "starting", 0, 0
        self._expired = self._debugging = False
        self._silence = {rank: 0.0 for rank in range(collective.size) if rank != collective.rank}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        """Start watching."""
        # The thread cannot run while C code holds the GIL, but processor time still passes. The processor-time
        # alarm, which the thread re-arms at every beat, then prints the stack and ends the process.
        faulthandler.register(signal.SIGPROF, file=2, all_threads=True, chain=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop watching."""
        self._ended.set()
        self._thread.join()
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        faulthandler.unregister(signal.SIGPROF)
        if self._exchange:
            self._exchange.close()

    def enter(self, phase: str, update: int) -> None:
        """Note that the loop has entered a phase of an update, which counts as progress."""
        self._phase, self._update = phase, update
        self._entered += 1
        # Re-armed here too: until the thread's next beat, the alarm may still have the longer limit for starting.
        if self._thread.is_alive():
            self._wind_up_the_alarm()

    def describe(self) -> str:
        """Return where the loop is, such as `update 3, collecting`."""
        return f"update {self._update}, {self._phase}"

    def is_debugging(self) -> bool:
        """Return whether a debugger holds this rank or one of its environment processes."""
        return in_debugger(sys._current_frames().get(self._main or 0)) or any(map(is_traced, self.processes))

    def _watch(self) -> None:
        last, stalled, entered = time.monotonic(), 0.0, self._entered
        while not self._ended.is_set():
            self._wind_up_the_alarm()
            self._exchange_heartbeats()
            now = time.monotonic()
            # A longer gap means that this process was stopped or its machine asleep.
            awake = min(now - last, 2 * self._beat)
            last = now
            for rank in self._silence:
                self._silence[rank] += awake
            if entered != self._entered:
                stalled, entered = 0.0, self._entered
            elif not self._debugging:
                stalled += awake
            if stalled > self._limit() or self._expired:
                self._end_job()

    def _limit(self) -> float:
        # Starting may load libraries over a slow network, however short an update is.
        return self._seconds if self._entered else max(self._seconds, _LEAST_SECONDS_TO_START)

    def _wind_up_the_alarm(self) -> None:
        others = _SECONDS_FOR_OTHERS if self._collective.size > 1 else 0.0
        signal.setitimer(signal.ITIMER_PROF, self._limit() + others)

    def _exchange_heartbeats(self) -> None:
        """Exchange messages for one beat."""
        if self._exchange is None:
            self._debugging = self._heartbeat().debugging
            self._ended.wait(self._beat)
            return
        own = self._heartbeat()
        if self._collective.rank == 0:
            self._exchange.receive(self._beat, self._ended)
            for rank in self._exchange.fresh:
                self._silence[rank] = 0.0
            self._exchange.fresh.clear()
            beats = self._exchange.beats.values()
            self._debugging = own.debugging or any(beat.debugging or self._is_traced(beat) for beat in beats)
            self._expired = self._expired or any(beat.expired for beat in beats)
            self._exchange.send(Pulse(self._debugging, self._expired))
        else:
            self._exchange.send(own)
            self._exchange.receive(self._beat, self._ended)
            pulse, self._exchange.pulse = self._exchange.pulse, None
            if pulse is not None:
                self._silence[0] = 0.0
                self._debugging = pulse.debugging
                self._expired = self._expired or pulse.expired

    def _heartbeat(self) -> Heartbeat:
        frame = sys._current_frames().get(self._main or 0)
        return Heartbeat(
            rank=self._collective.rank,
            host=self.hosts[self._collective.rank],
            pid=os.getpid(),
            update=self._update,
            phase=self._phase,
            place=place_of(frame),
            waiting=self._collective.waiting,
            debugging=self.is_debugging(),
            expired=self._expired,
        )

    def _is_traced(self, beat: Heartbeat) -> bool:
        """Return whether a native debugger holds a silent rank on this host."""
        if beat.host != self.hosts[0] or self._silence[beat.rank] < _BEATS_OF_SILENCE * self._beat:
            return False
        return is_traced(beat.pid)

    def _end_job(self) -> None:
        """Print this rank's stack, let one rank name the culprit, and leave; does not return."""
        self._expired = True
        # Waiting in MPI burns processor time; the alarm is not needed, since this thread evidently runs.
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        rank, size = self._collective.rank, self._collective.size
        frame = sys._current_frames().get(self._main or 0)
        stack = "".join(traceback.format_stack(frame))
        _say(f"ppo: stack of rank {rank} of {size} on {self.hosts[rank]}, {self.describe()}:\n{stack}")
        deadline = time.monotonic() + (_SECONDS_FOR_STACKS if rank == 0 else _SECONDS_FOR_ROOT + 0.2 * min(rank, 10))
        while size > 1 and time.monotonic() < deadline:
            self._exchange_heartbeats()
        _say(f"ppo: no progress for {self._limit():g} s: {self._culprit()}; ending the job")
        # MPI itself may be stuck; a rank that leaves without MPI_Finalize makes the launcher end the others.
        os._exit(1)

    def _culprit(self) -> str:
        """Name the rank to blame, as far as this rank can tell."""
        own = self._heartbeat()
        if self._exchange is None:
            return f"stuck in update {own.update}, {own.phase}, at {own.place}"
        silent = [rank for rank, silence in self._silence.items() if silence >= _BEATS_OF_SILENCE * self._beat]
        if self._collective.rank != 0:
            # Only rank 0 hears all ranks: this one reports because rank 0 did not.
            return f"rank 0 on {self.hosts[0]} is silent" if 0 in silent else "rank 0 did not end the job"
        beats = {0: own, **self._exchange.beats}
        if silent:
            return "; ".join(self._last_word(rank, beats.get(rank)) for rank in silent[:4])
        busy = [beat for beat in beats.values() if not beat.waiting]
        if not busy:
            return "all ranks wait for each other, in " + ", ".join(
                f"{beat.place} (rank {beat.rank})" for beat in list(beats.values())[:4]
            )
        return "; ".join(
            f"rank {b.rank} on {b.host} is stuck in update {b.update}, {b.phase}, at {b.place}" for b in busy[:4]
        )

    def _last_word(self, rank: int, beat: Heartbeat | None) -> str:
        silent = f"rank {rank} on {self.hosts[rank]} has been silent for {self._silence[rank]:.0f} s"
        if beat is None:
            return f"{silent} and was never heard from (no datagram arrived)"
        return f"{silent}, last heard in update {beat.update}, {beat.phase}, at {beat.place} (process {beat.pid})"


def leave_with(launcher: int) -> None:
    """Start a thread that ends this process within a second or two of the end of its parent, the launcher."""

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_LONGEST_BEAT)
        _say(f"ppo: process {os.getpid()} has lost its launcher (process {launcher}); leaving")
        os._exit(1)

    threading.Thread(target=watch, name="launcher-watch", daemon=True).start()


def place_of(frame: FrameType | None) -> str:
    """Return `file:line in function` of the innermost frame that belongs to this package."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if _PACKAGE in path.parents:
            return f"{path.relative_to(_PACKAGE.parent)}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "an unknown place"


def in_debugger(frame: FrameType | None) -> bool:
    """Return whether a Python debugger has stopped the thread of this stack."""
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] in _DEBUGGERS:
            return True
        frame = frame.f_back
    return False


def is_traced(pid: int) -> bool:
    """Return whether a native debugger is attached to a process on this host (Linux only)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return False
    return "TracerPid:\t0\n" not in status


def _say(text: str) -> None:
    """Write to stderr in one call, if stderr still exists."""
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="backslashreplace"))
