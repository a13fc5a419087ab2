"""Jobs for tests: `python -m ppo` in this process, in a new process, or under mpirun; each in its own folder."""

import contextlib
import csv
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from safetensors.numpy import load_file

from ppo.__main__ import main
from ppo.collectives import Alone
from ppo.collectives.mpi import OPEN_MPI_VARIABLES

# A launcher that is killed leaves a folder named after its process, and a later one with the same number cannot start.
_LAUNCHERS_FOLDER = tempfile.TemporaryDirectory(prefix="ppo-", ignore_cleanup_errors=True)
MPI_ENVIRONMENT = {"TMPDIR": _LAUNCHERS_FOLDER.name, **OPEN_MPI_VARIABLES}
# Otherwise a machine with a GPU would use it, whose results are not repeatable bit for bit.
ON_PROCESSORS = "--device=cpu"
CARTPOLE = [
    *("--env_name=CartPole-v1", "--num_envs=4", "--rollout_steps=16", "--minibatch_size=32", "--num_epochs=2"),
    ON_PROCESSORS,
]
PONG = [
    "--env_name=PongNoFrameskip-v4",
    # Otherwise a rank with several cores would start processes for them, which takes longer than these games.
    "--env_engine=lean",
    ON_PROCESSORS,
    "--num_envs=4",
    "--rollout_steps=16",
    "--minibatch_size=32",
    "--num_epochs=2",
    # A rate at which rounding of sums does not grow large within a few steps.
    "--learning_rate_schedule=constant",
    "--learning_rate=2.5e-4",
]


def environment(**changes):
    """Return this process's environment without variables of a launcher or a display."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMIX_", "PRTE_", "DISPLAY", "WAYLAND"))}
    return {**kept, **MPI_ENVIRONMENT, **changes}


class Aborted(BaseException):
    """The program would have ended this process; with its exit code."""


def _leave_instead_of_ending_the_tests(alone, code):
    raise Aborted(code)


@dataclass(frozen=True)
class Job:
    """A finished job."""

    returncode: int
    stdout: str
    stderr: str


def ppo(folder, *flags, ranks=0, timeout=120):
    """Run `python -m ppo` in a folder: under mpirun, or with 0 ranks within this process, which saves the start-up."""
    if ranks:
        return mpirun(ranks, ["-m", "ppo", *flags], folder, timeout)
    output, errors = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    hook = threading.excepthook
    before = os.getcwd()
    os.chdir(folder)
    try:
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
            mock.patch.object(Alone, "abort", _leave_instead_of_ending_the_tests),
        ):
            code = main(flags)
    except Aborted as aborted:
        code = aborted.args[0]
    finally:
        os.chdir(before)
    threading.excepthook = hook
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)
    return Job(code, output.getvalue(), errors.getvalue())


def mpirun(ranks, command, folder, timeout=120):
    """Run Python with these arguments under mpirun."""
    launcher = [str(Path(sys.executable).with_name("mpirun")), "-np", str(ranks)]
    return separately([*launcher, sys.executable, *command], folder, timeout)


def separately(command, folder, timeout=120, **variables):
    """Run a command in a process of its own."""
    finished = subprocess.run(
        command,
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Job(finished.returncode, finished.stdout, finished.stderr)


def weights(folder, model_name, env_steps):
    """Return the model tensors of a checkpoint."""
    return load_file(Path(folder) / "checkpoints" / model_name / f"step_{env_steps:012d}" / "model.safetensors")


def rows(path, ignore=()):
    """Return a CSV file's rows as dicts without the ignored columns."""
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith(tuple(ignore))} for row in csv.DictReader(file)]
