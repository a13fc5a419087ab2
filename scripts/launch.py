"""Run `python -m ppo` under mpirun with one rank per core; Ctrl-C lets the ranks save and leave.

The job has fewer ranks than cores where it has fewer environments, and one rank to play or record.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from ppo.config import Config, Refusal, parse_command_line
from ppo.presets import PRESETS, default_preset
from ppo.supervision import INTERRUPTED


def main() -> int:
    """Launch the job and return its exit code."""
    arguments = sys.argv[1:]
    try:
        config = parse_command_line(arguments, PRESETS, default_preset)
    except Refusal as refusal:
        print(f"ppo: {refusal}", file=sys.stderr)
        return 2
    ranks = number_of_ranks(config)
    command = [sys.executable, "-m", "ppo", *arguments]
    if ranks == 1:
        os.execv(sys.executable, command)
    mpirun = Path(sys.executable).with_name("mpirun")
    # A session of its own keeps the terminal's Ctrl-C from mpirun, which would end the ranks before they can save.
    signals = Signals(saves=config.run.mode == "train")
    signals.listen()
    job = subprocess.Popen([str(mpirun), "-np", str(ranks), *command], start_new_session=True)
    signals.forward_to(job)
    code = job.wait()
    # After one Ctrl-C any code but 0 says more than 130 does, a save that failed above all.
    if signals.interrupted and (code == 0 or signals.interrupted > 1):
        return INTERRUPTED
    return code if code >= 0 else 128 - code


def number_of_ranks(config: Config) -> int:
    """Return one rank per core this process may use, as far as there is work for them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    work = {"train": config.ppo.num_envs, "evaluate": config.episodes}.get(config.run.mode, 1)
    return max(1, min(cores, work))


class Signals:
    """Turns signals to this process into those that mpirun passes on without ending its ranks."""

    def __init__(self, *, saves: bool) -> None:
        """Forward signals to a job that `saves` when it is asked to leave, or that can just be ended."""
        self._saves = saves
        self._job: subprocess.Popen[bytes] | None = None
        self._early: int | None = None
        self.interrupted = 0

    def listen(self) -> None:
        """Install the handlers; before the job starts, so that no Ctrl-C leaves it behind."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._receive)

    def forward_to(self, job: "subprocess.Popen[bytes]") -> None:
        """Send signals to this job from now on, and what came before it started."""
        self._job = job
        if self._early is not None:
            self._receive(self._early, None)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._job is None:
            self._early = number
            return
        if number == signal.SIGINT:
            self.interrupted += 1
        if not self._saves or self.interrupted > 1:
            self._job.terminate()
        elif number in (signal.SIGINT, signal.SIGUSR2):
            print("\nsaving after this update; Ctrl-C again leaves without saving", file=sys.stderr, flush=True)
            self._job.send_signal(signal.SIGUSR2)
        else:
            self._job.send_signal(signal.SIGUSR1)


if __name__ == "__main__":
    sys.exit(main())
