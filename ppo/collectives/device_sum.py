"""Sums gradients in GPU memory over ranks, by the GPUs themselves or by the CPUs."""

from datetime import timedelta

import torch
from torch import Tensor

from ppo.collectives import Collective
from ppo.collectives.gradient_sum import GradientSum, SharedVectors, make_gradient_sum
from ppo.config import MachineSettings

# The program's own watchdog reports the late rank; PyTorch's would end the job without a message.
_LONGER_THAN_THE_WATCHDOG = timedelta(days=365)


def make_device_sum(
    settings: MachineSettings,
    comm: Collective,
    buffer: Tensor,
    num_parameters: int,
    *,
    meeting_host: str,
    shared: SharedVectors | None = None,
) -> GradientSum:
    """Return the way to sum a contiguous vector on its device; called by all ranks together.

    Args:
        settings: how CPUs sum it.
        comm: the ranks to sum over.
        buffer: the gradient of P parameters, and further values to sum.
        num_parameters: P.
        meeting_host: host where the ranks find each other if every rank has a GPU and the GPUs sum the buffer; else
            empty.
        shared: see `make_gradient_sum`.
    """
    if buffer.device.type == "cpu":
        return make_gradient_sum(settings, comm, buffer, num_parameters, shared)
    if comm.size == 1:
        return NothingToSum(buffer)
    if meeting_host:
        return GroupSum(comm, buffer, "nccl", meeting_host)
    # A GPU reads and writes page-locked memory without the CPU.
    copy = torch.zeros_like(buffer, device="cpu", pin_memory=buffer.device.type == "cuda")
    return ThroughProcessors(buffer, copy, make_gradient_sum(settings, comm, copy, num_parameters))


class NothingToSum(GradientSum):
    """The trivial sum of a job of one rank, on a GPU."""

    def __init__(self, vector: Tensor) -> None:
        """Leave `vector` alone."""
        self._vector = vector

    def sum(self) -> Tensor:
        """Do nothing: the vector is the sum."""
        return self._vector


class ThroughProcessors(GradientSum):
    """Copies to CPU memory, sums over ranks there and copies back."""

    def __init__(self, vector: Tensor, copy: Tensor, over_ranks: GradientSum) -> None:
        """Sum `vector` by means of `over_ranks`, which sums its `copy` in CPU memory."""
        self._vector, self._copy, self._over_ranks = vector, copy, over_ranks

    def sum(self) -> Tensor:
        """Wait for the gradient, sum it and start copying the sum back."""
        self._copy.copy_(self._vector)
        self._vector.copy_(self._over_ranks.sum(), non_blocking=True)
        return self._vector

    def close(self) -> None:
        """Close the sum over ranks."""
        self._over_ranks.close()


class GroupSum(GradientSum):
    """One all-reduce by a PyTorch process group; with NCCL it runs on the GPUs, after the backward pass."""

    def __init__(self, comm: Collective, vector: Tensor, backend: str, meeting_host: str) -> None:
        """Form a process group of the ranks of `comm` that sums `vector`.

        The ranks find each other at a TCP port of rank 0's host, whose number is broadcast over `comm`.
        """
        from torch import distributed

        self._comm, self._vector, self._distributed = comm, vector, distributed
        if comm.rank == 0:
            self._store = distributed.TCPStore(meeting_host, 0, comm.size, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
            comm.broadcast(self._store.port)
        else:
            self._store = distributed.TCPStore(meeting_host, comm.broadcast(0), comm.size, is_master=False)  # type: ignore[attr-defined]
        distributed.init_process_group(
            backend, store=self._store, rank=comm.rank, world_size=comm.size, timeout=_LONGER_THAN_THE_WATCHDOG
        )

    def sum(self) -> Tensor:
        """Queue the sum; work queued later on the device waits for it."""
        self._distributed.all_reduce(self._vector)
        return self._vector

    def close(self) -> None:
        """Leave the group."""
        self._distributed.destroy_process_group()
        self._comm.barrier()  # the others may still need rank 0's store to leave
