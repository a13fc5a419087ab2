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
    job = subprocess.Popen([str(mpirun), "-np", str(ranks), *command], start_new_session=True)
    forward_signals(job)
    code = job.wait()
    return code if code >= 0 else 128 - code


def number_of_ranks(config: Config) -> int:
    """Return one rank per core this process may use, as far as there is work for them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    work = {"train": config.ppo.num_envs, "evaluate": config.episodes}.get(config.run.mode, 1)
    return max(1, min(cores, work))


def forward_signals(job: "subprocess.Popen[bytes]") -> None:
    """Turn signals to this process into those that mpirun passes on without ending its ranks."""
    interrupts = 0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += 1
        if interrupts == 1:
            print("\nsaving after this update; Ctrl-C again leaves without saving", file=sys.stderr, flush=True)
            job.send_signal(signal.SIGUSR2)
        else:
            job.terminate()

    def preempt(number: int, frame: FrameType | None) -> None:
        job.send_signal(signal.SIGUSR1)

    signal.signal(signal.SIGINT, interrupt)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, preempt)
    signal.signal(signal.SIGUSR2, interrupt)


if __name__ == "__main__":
    code = main()
    if code == INTERRUPTED:
        print("stopped", file=sys.stderr)
    sys.exit(code)
