"""Trainings that scripts start, with their output in files."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ppo.collectives.mpi import find_mpirun

MPIRUN = find_mpirun() or "mpirun"


def train(folder: Path, name: str, flags: Sequence[str], log: Path, *, ranks: int = 1) -> int:
    """Train or resume the model `name` in a folder and return the exit code; output is added to `log`."""
    command = [MPIRUN, "-np", str(ranks), sys.executable, "-m", "ppo", f"--model_name={name}", *flags]
    return run_logged(command, folder, log)


def run_logged(command: Sequence[str], folder: Path, log: Path) -> int:
    """Run a command in a folder and return its exit code; output is added to `log`."""
    with log.open("a") as file:
        return subprocess.call(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
