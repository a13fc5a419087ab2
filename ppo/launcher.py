"""The command `ppo`: run `python -m ppo` under mpirun, one rank per core or GPU; Ctrl-C lets the ranks save and leave.

The job has fewer ranks than cores where it has fewer environments, one rank to play or record, and as many as
`--ranks=N` says. With `--max_restarts=N` a training job that dies is started again, up to N times, and resumes its
newest checkpoint. Both flags are the launcher's own; all others go to the ranks.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ppo.collectives import WENT_WRONG
from ppo.collectives.mpi import find_mpirun, launching_environment
from ppo.command_line import parse_command_line
from ppo.config import Config, default_model_name
from ppo.machine import SEVERAL_CORES, cores_here, cpus_here
from ppo.settings import REFUSED, Refusal
from ppo.standard_streams import prepare_standard_streams, say_on_standard_error
from ppo.supervision.signals import AS_ASKED, INTERRUPTED, PREEMPTED, listen

# After these codes the job would do the same again, or was asked to leave.
_FINAL_CODES = {0, REFUSED, WENT_WRONG, PREEMPTED, INTERRUPTED}
_LONGEST_PAUSE = 60
_PR_SET_PDEATHSIG = 1
# The least and the largest value of each, and what it must be in words.
_OWN_FLAGS = {
    "ranks": (1, 4096, "a number of ranks, 1 or more"),
    "max_restarts": (0, 1_000_000, "a number of restarts, 0 or more"),
}
_GET_MPI = "pip install 'ppo-mpi[mpi]'"
# Looked up here, since a process between fork and exec may not.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_HELP = """\
The launcher takes --ranks=N (processes that share the work; by default one per core or GPU),
--max_restarts=N (start a job that died again, up to N times), and:
"""


@dataclass(frozen=True)
class Launch:
    """What the launcher itself is told."""

    ranks: int | None = None
    """Of the job; None: as many as there are cores or GPUs, and work for them."""
    max_restarts: int = 0
    """Times that a training job which died is started again."""


def main() -> int:
    """Launch the job and return its exit code."""
    prepare_standard_streams()
    try:
        launch, arguments = take_launch(sys.argv[1:])
        if "--help" in arguments:
            print(_HELP)
        config = _with_name(parse_command_line(arguments))
        if launch.ranks is not None and config.run.mode == "train":
            config.require_ranks(launch.ranks)
        if launch.ranks not in (None, 1) and find_mpirun() is None:
            raise Refusal(f"ranks must be 1 where there is no mpirun, got {launch.ranks}; {_GET_MPI} brings one")
    except Refusal as refusal:
        print(f"ppo: {refusal}", file=sys.stderr)
        return REFUSED
    signals = Signals(saves=config.run.mode == "train")
    signals.listen()
    command = job_command(config, arguments, launch.ranks)  # may take seconds
    if signals.received:
        return INTERRUPTED if signals.interrupted else PREEMPTED
    if command[0] == sys.executable and launch.max_restarts == 0:
        signals.let_go()
        os.execve(sys.executable, command, launching_environment())
    restarts, before = 0, identity_of(config.checkpoint_folder)
    while True:
        code = signals.run(command)
        if code in _FINAL_CODES or signals.received or restarts == launch.max_restarts or config.run.mode != "train":
            break
        restarts += 1
        pause = min(2**restarts, _LONGEST_PAUSE)
        if has_checkpoints_of_its_own(config, before):
            # --fresh has done its work: what there is now is this run's own.
            command = [argument for argument in command if argument.partition("=")[0] != "--fresh"]
        say_on_standard_error(
            f"the job died (exit code {code}); restart {restarts} of {launch.max_restarts} in {pause} s"
        )
        signals.wait(pause)
        if signals.received:
            break
    if signals.received and code in (128 + signal.SIGUSR1, 128 + signal.SIGUSR2):
        # The signal came before the ranks listened to it; there was nothing to save.
        code = PREEMPTED if code == 128 + signal.SIGUSR1 else AS_ASKED
    # After one Ctrl-C any code but 0 says more than 130 does, a save that failed above all.
    if signals.interrupted and (code == 0 or signals.interrupted > 1):
        return INTERRUPTED
    return code


def _with_name(config: Config) -> Config:
    """Return the settings with the name of the run that they mean, whose checkpoints are looked for here."""
    plain = config.run.checkpoint_dir / default_model_name(config.run.env_name)
    if config.run.model_name is not None or config.run.rng_seed == 0 or not plain.exists():
        return config
    from ppo.identity import find_run  # seconds, which others shall not wait

    return find_run(config)


def take_launch(arguments: Sequence[str]) -> tuple[Launch, list[str]]:
    """Split the launcher's own flags off a command line.

    Raises:
        Refusal: the value of one of them is not a number that it takes.
    """
    found: dict[str, int] = {}
    others = []
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        name = flag.replace("-", "_").removeprefix("__")
        if not flag.startswith("--") or name not in _OWN_FLAGS:
            others.append(argument)
            continue
        value = value if equals else next(remaining, "")
        least, most, rule = _OWN_FLAGS[name]
        if not value.isdecimal():
            raise Refusal(f"{name} must be {rule}, got {value!r}")
        # As many digits as any number within bounds has: a longer one is not even read.
        number = int(value) if len(value.lstrip("0")) <= len(str(most)) else most + 1
        if number < least:
            raise Refusal(f"{name} must be {rule}, got {value!r}")
        if number > most:
            raise Refusal(f"{name} must be at most {most}, got {value[:40]}{'...' if len(value) > 40 else ''}")
        found[name] = number
    return Launch(**found), others


def identity_of(folder: Path) -> tuple[int, int] | None:
    """Return what tells a folder from any other that has its name before or after it; None if there is none."""
    try:
        status = os.lstat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def has_checkpoints_of_its_own(config: Config, before: tuple[int, int] | None) -> bool:
    """Return whether there are checkpoints in a folder that was not there at the launch; --fresh makes one.

    Clocks do not tell: that of the disk may be another host's, and that of this one may be set.
    """
    folder = config.checkpoint_folder
    return identity_of(folder) not in (None, before) and any(folder.glob("step_*"))


def job_command(config: Config, arguments: Sequence[str], ranks: int | None = None) -> list[str]:
    """Return what runs the job: so many ranks, or one per core or GPU as far as there is work for them."""
    command = [sys.executable, "-m", "ppo", *arguments]
    mpirun = find_mpirun()
    gpus = gpus_with_threads(config, len(cores_here()))
    work = {"train": config.ppo.num_envs, "evaluate": config.episodes}.get(config.run.mode, 1)
    if ranks is None:
        ranks = max(1, min(gpus or cpus_here(), work))
        if ranks > 1 and mpirun is None:
            say_on_standard_error(f"there is no mpirun: one rank instead of {ranks}; {_GET_MPI} brings one")
    if ranks == 1 or mpirun is None:
        return command
    # mpirun binds ranks to a core each, if there are few of them; those with GPUs shall share all cores.
    unbound = ["--bind-to", "none"] if gpus else []
    return [mpirun, "-np", str(ranks), *unbound, *command]


def gpus_with_threads(config: Config, cores: int) -> int:
    """Return the number of GPUs if each shall serve one rank whose environments have several cores, else 0.

    Where ranks have one core each they share the GPUs.
    """
    if config.run.mode != "train" or config.machine.device == "cpu" or cores < SEVERAL_CORES:
        return 0
    engine = config.machine.env_engine
    if (config.family.auto_engine if engine == "auto" else engine) == "lean":
        return 0
    if config.machine.device == "auto" and shutil.which("nvidia-smi") is None:
        return 0
    import torch  # seconds, which others shall not wait

    from ppo.outputs.checkpoint import newest_manifest

    saved = None
    with contextlib.suppress(OSError):  # the program refuses what it cannot read
        saved = None if config.run.fresh else newest_manifest(config.checkpoint_folder)
    if config.machine.env_engine == "auto" and saved is not None and saved.config.machine.env_engine == "lean":
        return 0  # it stays lean
    gpus = min(torch.cuda.device_count() if torch.cuda.is_available() else 0, config.ppo.num_envs)
    if len({torch.cuda.get_device_name(index) for index in range(gpus)}) > 1:
        return 0  # it leaves GPUs of several kinds alone
    return gpus if cores >= gpus * SEVERAL_CORES else 0


class Signals:
    """Runs jobs and turns signals to this process into those that mpirun passes on without ending its ranks."""

    def __init__(self, *, saves: bool) -> None:
        """Forward signals to jobs that save when they are asked to leave, or that can just be ended."""
        self._saves = saves
        self._job: subprocess.Popen[bytes] | None = None
        self._early: int | None = None
        self._before: dict[int, Any] = {}
        self.received = False
        self.interrupted = 0

    def listen(self) -> None:
        """Install the handlers; before the job starts, so that no Ctrl-C leaves it behind."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
        self._before = listen(numbers, self._receive)

    def let_go(self) -> None:
        """Undo `listen`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str]) -> int:
        """Run a job to its end, passing signals on, and return its exit code."""
        # A session of its own keeps the terminal's Ctrl-C from mpirun, which would end the ranks before they can save.
        self._job = subprocess.Popen(
            command,
            env=launching_environment(),
            start_new_session=True,
            preexec_fn=_ask_for_a_signal_at_parents_death,
        )
        if self._early is not None:
            self._forward(self._early)
        code = self._job.wait()
        self._job, self._early = None, None
        return code if code >= 0 else 128 - code

    def wait(self, seconds: float) -> None:
        """Wait between two jobs, or until a signal comes."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.received:
            time.sleep(0.1)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        self.interrupted += number == signal.SIGINT
        if self._job is None:
            self._early = number
        else:
            self._forward(number)

    def _forward(self, number: int) -> None:
        assert self._job is not None
        if not self._saves or self.interrupted > 1:
            self._job.terminate()
        elif number in (signal.SIGINT, signal.SIGUSR2):
            say_on_standard_error("\nsaving after this update; Ctrl-C again leaves without saving")
            self._job.send_signal(signal.SIGUSR2)
        else:
            self._job.send_signal(signal.SIGUSR1)


def _ask_for_a_signal_at_parents_death() -> None:
    """Let the job save and leave when this launcher is killed in a way that it cannot pass on (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGUSR1))


if __name__ == "__main__":
    sys.exit(main())
