"""Sums gradients over ranks: in shared memory, by MPI, host by host, or in 16 bits.

`buffer` is one flat float32 vector: the gradient (P,), followed by S further sums for the log. However it is summed,
the result is bit-identical on all ranks, and an element that is non-finite on one rank is non-finite on all.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ppo.collectives import Collective, Hosts, share, true_on_all
from ppo.collectives.shared_memory import FLOATS_OF_A_CACHE_LINE, share_vectors
from ppo.config import MachineSettings


class GradientSum(ABC):
    """A way to sum `buffer` over ranks."""

    @abstractmethod
    def sum(self) -> Tensor:
        """Return the sum, which may be read on its device until the next call.

        It is either `buffer` itself, which may be overwritten, or memory that other ranks read too, which must not be.
        """

    def close(self) -> None:  # noqa: B027 - most ways take nothing
        """Release resources; called by all ranks together."""


def make_gradient_sum(
    settings: MachineSettings,
    comm: Collective,
    buffer: Tensor,
    num_parameters: int,
    shared: "SharedVectors | None" = None,
) -> GradientSum:
    """Return the way to sum that the settings select; called by all ranks together.

    Args:
        settings: a valid combination.
        comm: the ranks to sum over.
        buffer: the gradient of P parameters, and further values to sum.
        num_parameters: P.
        shared: the result of `share_memory`, if `buffer` is this rank's row of its gradients.
    """
    if comm.size == 1:
        return FlatSum(comm, buffer)

    def over_the_wire(group: Collective, vector: Tensor) -> GradientSum:
        if settings.gradient_wire == "bfloat16" and group.size > 1:
            return BFloat16Sum(group, vector, num_parameters)
        return FlatSum(group, vector)

    if shared is not None:
        hosts = shared.hosts
        between = over_the_wire(hosts.between, shared.total) if hosts.between is not None else None
        return SharedMemorySum(hosts, shared.gradients, shared.total, between)
    if settings.all_reduce != "flat":
        hosts = comm.split_by_host()
        if settings.all_reduce == "hierarchical" or chosen_all_reduce(comm.size, hosts.count) == "hierarchical":
            between = over_the_wire(hosts.between, buffer) if hosts.between is not None else None
            return HierarchicalSum(hosts, buffer, between)
    return over_the_wire(comm, buffer)


@dataclass(frozen=True)
class SharedVectors:
    """Memory shared by the R ranks of one host; created by `share_memory`.

    Every rank fills its own gradient, and sums and updates one shard of everything stored once.
    """

    hosts: Hosts
    """The groups of ranks."""
    gradients: Tensor
    """Every rank's gradient and further sums, (R, P + S)."""
    total: Tensor
    """The sum over all ranks of all hosts, (P + S,)."""
    parameters: Tensor
    """(P,)."""
    moments: Tensor
    """Moments of the optimiser, (2, P)."""


def share_memory(
    settings: MachineSettings, comm: Collective, num_parameters: int, num_sums: int
) -> SharedVectors | None:
    """Return memory that the ranks of a host share, if the settings select it, for P parameters and S further sums.

    Called by all ranks together. None if no host has several ranks, or if some ranks cannot share memory; MPI then does
    all of the summing.
    """
    if comm.size == 1 or settings.all_reduce != "auto":
        return None
    hosts = comm.split_by_host()
    if chosen_all_reduce(comm.size, hosts.count) == "flat":
        return None
    ranks = hosts.within.size
    vectors = share_vectors(hosts.within, ranks + 4, num_parameters + num_sums)
    all_have_it = true_on_all(comm, vectors is not None)
    if vectors is None or not all_have_it:
        return None
    rows = torch.from_numpy(vectors)
    gradients, total, of_parameters = rows[:ranks], rows[ranks], rows[ranks + 1 :, :num_parameters]
    return SharedVectors(hosts, gradients, total, parameters=of_parameters[0], moments=of_parameters[1:])


def chosen_all_reduce(num_ranks: int, num_hosts: int) -> Literal["shared", "flat", "hierarchical"]:
    """Return what `--all_reduce=auto` selects: a function of the job's shape, so that a resumed job sums the same way.

    Unless it is flat, the ranks of a host share memory if they can.
    """
    if num_hosts == 1:
        return "shared"
    return "hierarchical" if num_hosts < num_ranks else "flat"


class SharedMemorySum(GradientSum):
    """A sum in memory that the ranks of a host share: every rank adds one shard of all gradients, in rank order.

    No gradient is copied, and all ranks read the sum in place. A barrier follows once all gradients are complete, and
    another once all shards are added; no gradient may change in between. With several hosts, the first rank of each
    then sums over hosts, and a third barrier follows.
    """

    def __init__(self, hosts: Hosts, gradients: Tensor, total: Tensor, between: GradientSum | None) -> None:
        """Sum into `total`.

        Args:
            hosts: the ranks.
            gradients: a row for each rank of this host.
            total: where the sum goes.
            between: sums `total` over the first ranks of all hosts; None on the other ranks.
        """
        self._within, self._addends, self._total = hosts.within, gradients, total
        self._several_hosts, self._between = hosts.count > 1, between
        self._shard = shard_of(len(total), hosts.within)

    def sum(self) -> Tensor:
        """Add this rank's shard; see the class."""
        self._within.barrier()
        total, first, *others = (vector[self._shard] for vector in (self._total, *self._addends))
        if not others:
            total.copy_(first)
        for other in others:
            first = torch.add(first, other, out=total)
        self._within.barrier()
        if self._several_hosts:
            if self._between is not None:
                self._between.sum()
            self._within.barrier()
        return self._total


def shard_of(length: int, comm: Collective) -> slice:
    """Return the shard of a vector that this rank works on; no cache line lies in two shards.

    Rounding does not depend on the shards: only the last may end with numbers that do not fill a vector register, and
    these are the same as in the whole vector.
    """
    lines = share(-(-length // FLOATS_OF_A_CACHE_LINE), comm.rank, comm.size)
    return slice(*(min(length, end * FLOATS_OF_A_CACHE_LINE) for end in (lines.start, lines.stop)))


class FlatSum(GradientSum):
    """One all-reduce in place."""

    def __init__(self, comm: Collective, buffer: Tensor) -> None:
        """Sum `buffer` over `comm`."""
        self._comm, self._buffer = comm, buffer

    def sum(self) -> Tensor:
        """Sum all of it."""
        self._comm.sum_in_place(self._buffer.numpy())
        return self._buffer


class HierarchicalSum(GradientSum):
    """A sum within each host, then over hosts, then sent back: the network carries one gradient per host."""

    def __init__(self, hosts: Hosts, buffer: Tensor, between: GradientSum | None) -> None:
        """Sum `buffer` within hosts, then over their first ranks with `between`, which is None on other ranks."""
        self._within, self._buffer, self._between = hosts.within, buffer, between

    def sum(self) -> Tensor:
        """Sum all of it in three steps."""
        self._within.sum_on_root(self._buffer.numpy())
        if self._between is not None:
            self._between.sum()
        self._within.copy_from_root(self._buffer.numpy())
        return self._buffer


class BFloat16Sum(GradientSum):
    """Gradients in 16 bits on the wire, added in float32; half the bytes of a flat sum, in two messages to each rank.

    The gradient is cut into one piece per rank. Every rank sends its rounding of piece k to rank k, which adds the
    pieces in rank order, rounds the sum once and gives it to all. The further sums travel with the first message in
    float32, and every rank adds all of them in rank order. Two roundings to 8 bits make an element's error at most
    about 2^-7 of the sum of its magnitudes over ranks.
    """

    def __init__(self, comm: Collective, buffer: Tensor, num_parameters: int) -> None:
        """Sum the gradient, the first `num_parameters` of `buffer`, in 16 bits and the rest in float32."""
        self._comm, self._buffer = comm, buffer
        self._gradient, self._others = buffer[:num_parameters], buffer[num_parameters:]
        # An even number of 2-byte elements keeps the 4-byte ones behind them aligned.
        length = 2 * -(-num_parameters // (2 * comm.size))
        self._outgoing = _Messages(comm.size, length, len(self._others))
        self._incoming = _Messages(comm.size, length, len(self._others))
        self._total, self._addend = torch.zeros(length), torch.zeros(length)
        self._rounded = torch.zeros(length, dtype=torch.bfloat16)
        self._everyone = torch.zeros(comm.size, length, dtype=torch.bfloat16)

    def sum(self) -> Tensor:
        """Exchange pieces, add and round this rank's, and collect the sums."""
        outgoing, incoming = self._outgoing, self._incoming
        length = len(self._total)
        for rank, row in enumerate(outgoing.pieces):
            piece = self._gradient[rank * length : (rank + 1) * length]
            row[: len(piece)].copy_(piece)
        outgoing.others.copy_(self._others)
        self._comm.exchange(outgoing.bytes.numpy(), incoming.bytes.numpy())

        self._total.copy_(incoming.pieces[0])
        self._others.copy_(incoming.others[0])
        for rank in range(1, self._comm.size):
            self._total.add_(self._addend.copy_(incoming.pieces[rank]))
            self._others.add_(incoming.others[rank])
        self._rounded.copy_(self._total)
        self._comm.collect(self._rounded.view(torch.uint8).numpy(), self._everyone.view(torch.uint8).numpy())
        self._gradient.copy_(self._everyone.flatten()[: len(self._gradient)])
        return self._buffer


class _Messages:
    """Messages from one rank to all ranks, or back: a row of bytes for each rank, with its two parts as views."""

    def __init__(self, num_ranks: int, length: int, num_others: int) -> None:
        self.bytes = torch.zeros(num_ranks, 2 * length + 4 * num_others, dtype=torch.uint8)
        self.pieces = self.bytes[:, : 2 * length].view(torch.bfloat16)
        self.others = self.bytes[:, 2 * length :].view(torch.float32)
