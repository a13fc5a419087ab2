"""The command `ppo`: run `python -m ppo` under mpirun, one rank per core or GPU; on Ctrl-C the ranks save and exit.

A job has at most one rank per environment, and one rank to play or record; `--ranks=N` sets the number explicitly.
With `--max_restarts=N` a training job that dies is restarted, up to N times, and resumes its newest checkpoint. These
two flags are the launcher's own; all others go to the ranks.
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

# No restart after these codes: the job has finished, would fail in the same way, or was asked to exit.
_FINAL_CODES = {0, REFUSED, WENT_WRONG, PREEMPTED, INTERRUPTED}
_LONGEST_PAUSE = 60
_PR_SET_PDEATHSIG = 1
# Minimum, maximum and the rule in words.
_OWN_FLAGS = {
    "ranks": (1, 4096, "a number of ranks, 1 or more"),
    "max_restarts": (0, 1_000_000, "a number of restarts, 0 or more"),
}
_GET_MPI = "pip install 'ppo-mpi[mpi]'"
# Loaded here, because that is not safe between fork and exec.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_HELP = """\
The launcher takes --ranks=N (processes that share the work; by default one per core or GPU),
--max_restarts=N (start a job that died again, up to N times), and:
"""


@dataclass(frozen=True)
class Launch:
    """The launcher's own flags."""

    ranks: int | None = None
    """Number of ranks; None: one per core or GPU, as far as there is work for them."""
    max_restarts: int = 0
    """How many times a training job that died is restarted."""


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
            # --fresh has taken effect: these checkpoints are this run's own.
            command = [argument for argument in command if argument.partition("=")[0] != "--fresh"]
        say_on_standard_error(
            f"the job died (exit code {code}); restart {restarts} of {launch.max_restarts} in {pause} s"
        )
        signals.wait(pause)
        if signals.received:
            break
    if signals.received and code in (128 + signal.SIGUSR1, 128 + signal.SIGUSR2):
        # The signal arrived before the ranks listened for it, so there was nothing to save.
        code = PREEMPTED if code == 128 + signal.SIGUSR1 else AS_ASKED
    # After one Ctrl-C any code but 0, such as that of a failed save, says more than 130.
    if signals.interrupted and (code == 0 or signals.interrupted > 1):
        return INTERRUPTED
    return code


def _with_name(config: Config) -> Config:
    """Return the settings with the name of the run that they mean, whose checkpoints the launcher looks for."""
    plain = config.run.checkpoint_dir / default_model_name(config.run.env_name)
    if config.run.model_name is not None or config.run.rng_seed == 0 or not plain.exists():
        return config
    from ppo.identity import find_run  # takes seconds, so only where it is needed

    return find_run(config)


def take_launch(arguments: Sequence[str]) -> tuple[Launch, list[str]]:
    """Split the launcher's own flags off a command line.

    Raises:
        Refusal: the value of one of them is not a number within its bounds.
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
        # A number with more digits than the maximum is not even parsed.
        number = int(value) if len(value.lstrip("0")) <= len(str(most)) else most + 1
        if number < least:
            raise Refusal(f"{name} must be {rule}, got {value!r}")
        if number > most:
            raise Refusal(f"{name} must be at most {most}, got {value[:40]}{'...' if len(value) > 40 else ''}")
        found[name] = number
    return Launch(**found), others


def identity_of(folder: Path) -> tuple[int, int] | None:
    """Return what distinguishes a folder from earlier and later ones of its name; None if there is no folder."""
    try:
        status = os.lstat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def has_checkpoints_of_its_own(config: Config, before: tuple[int, int] | None) -> bool:
    """Return whether there are checkpoints in a folder made since the launch, as --fresh does.

    Timestamps cannot tell: the disk's clock may be that of another host, and this host's may be adjusted.
    """
    folder = config.checkpoint_folder
    return identity_of(folder) not in (None, before) and any(folder.glob("step_*"))


def job_command(config: Config, arguments: Sequence[str], ranks: int | None = None) -> list[str]:
    """Return the command that runs the job: with this many ranks, or one per core or GPU as far as there is work."""
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
    # mpirun binds each rank to one core if there are few ranks; ranks with GPUs should share all cores.
    unbound = ["--bind-to", "none"] if gpus else []
    return [mpirun, "-np", str(ranks), *unbound, *command]


def gpus_with_threads(config: Config, cores: int) -> int:
    """Return the number of GPUs if each should serve one rank with several cores for its environments, else 0.

    Ranks with one core each share the GPUs.
    """
    if config.run.mode != "train" or config.machine.device == "cpu" or cores < SEVERAL_CORES:
        return 0
    engine = config.machine.env_engine
    if (config.family.auto_engine if engine == "auto" else engine) == "lean":
        return 0
    if config.machine.device == "auto" and shutil.which("nvidia-smi") is None:
        return 0
    import torch  # takes seconds, so only where it is needed

    from ppo.outputs.checkpoint import newest_manifest

    saved = None
    with contextlib.suppress(Refusal):  # the ranks will refuse what cannot be read
        saved = None if config.run.fresh else newest_manifest(config.checkpoint_folder)
    if config.machine.env_engine == "auto" and saved is not None and saved.config.machine.env_engine == "lean":
        return 0  # the run stays lean
    gpus = min(torch.cuda.device_count() if torch.cuda.is_available() else 0, config.ppo.num_envs)
    if len({torch.cuda.get_device_name(index) for index in range(gpus)}) > 1:
        return 0  # the ranks do not use GPUs of several kinds
    return gpus if cores >= gpus * SEVERAL_CORES else 0


class Signals:
    """Runs jobs and translates signals to this process into ones that mpirun forwards without ending its ranks."""

    def __init__(self, *, saves: bool) -> None:
        """Prepare for jobs that save before they exit (`saves`), or that can simply be terminated."""
        self._saves = saves
        self._job: subprocess.Popen[bytes] | None = None
        self._early: int | None = None
        self._before: dict[int, Any] = {}
        self.received = False
        self.interrupted = 0

    def listen(self) -> None:
        """Install the handlers, before the job starts so that no Ctrl-C can orphan it."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
        self._before = listen(numbers, self._receive)

    def let_go(self) -> None:
        """Undo `listen`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str]) -> int:
        """Run a job to its end, passing signals on, and return its exit code."""
        # A separate session keeps the terminal's Ctrl-C from mpirun, which would end the ranks before they can save.
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
        """Wait between two jobs, or until a signal arrives."""
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
    """Have the job save and exit if this launcher is killed without being able to forward a signal (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGUSR1))


if __name__ == "__main__":
    sys.exit(main())
