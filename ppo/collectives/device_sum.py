"""How a gradient in a GPU's memory is summed over ranks: by the GPUs themselves, or by the processors."""

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
    """Return what sums a contiguous vector on the device where it is; on all ranks together.

    Args:
        settings: how processors sum it.
        comm: the ranks to sum over.
        buffer: the gradient of P parameters, and what else is to be summed.
        num_parameters: P.
        meeting_host: where the ranks find each other if it lies on GPUs, one for each rank, which shall sum it
            themselves; else empty.
        shared: see `make_gradient_sum`.
    """
    if buffer.device.type == "cpu":
        return make_gradient_sum(settings, comm, buffer, num_parameters, shared)
    if comm.size == 1:
        return NothingToSum(buffer)
    if meeting_host:
        return GroupSum(comm, buffer, "nccl", meeting_host)
    # A GPU reads and writes page-locked memory by itself.
    copy = torch.zeros_like(buffer, device="cpu", pin_memory=buffer.device.type == "cuda")
    return ThroughProcessors(buffer, copy, make_gradient_sum(settings, comm, copy, num_parameters))


class NothingToSum(GradientSum):
    """A GPU of a job of one rank."""

    def __init__(self, vector: Tensor) -> None:
        """Leave `vector` alone."""
        self._vector = vector

    def finish(self) -> Tensor:
        """Do nothing: the vector is the sum."""
        return self._vector


class ThroughProcessors(GradientSum):
    """To the processor's memory, over the ranks there, and back."""

    def __init__(self, vector: Tensor, copy: Tensor, over_ranks: GradientSum) -> None:
        """Sum `vector`, given what sums its `copy` in the processor's memory."""
        self._vector, self._copy, self._over_ranks = vector, copy, over_ranks

    def finish(self) -> Tensor:
        """Wait for the gradient, sum it and send the sum on its way."""
        self._copy.copy_(self._vector)
        self._vector.copy_(self._over_ranks.finish(), non_blocking=True)
        return self._vector

    def close(self) -> None:
        """Let the processors part."""
        self._over_ranks.close()


class GroupSum(GradientSum):
    """One all-reduce by a process group of PyTorch; NCCL's runs on the GPUs, behind the backward pass."""

    def __init__(self, comm: Collective, vector: Tensor, backend: str, meeting_host: str) -> None:
        """Bring the ranks of `comm` together in a group that sums `vector`.

        They find each other at a TCP port of rank 0's host, whose number goes over `comm`.
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

    def finish(self) -> Tensor:
        """Queue the sum; what is queued behind it on the device waits for it."""
        self._distributed.all_reduce(self._vector)
        return self._vector

    def close(self) -> None:
        """Leave the group."""
        self._distributed.destroy_process_group()
        self._comm.barrier()  # the others may still need rank 0's store to leave
