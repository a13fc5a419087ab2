"""How gradients are summed over ranks: in shared memory, by MPI, host by host, in 16 bits, or during the backward pass.

`exchanged` is one flat float32 vector: the gradient (P,) and behind it S further sums for the log. Whatever way it is
summed, it ends bit for bit equal on all ranks, and what is not finite on one rank is not finite on any.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ppo.collectives import Collective, Hosts, Pending, share, true_on_all
from ppo.collectives.shared_memory import FLOATS_OF_A_CACHE_LINE, share_vectors
from ppo.config import MachineSettings


class GradientSum(ABC):
    """A way to sum `exchanged` over ranks."""

    def begin(self) -> None:  # noqa: B027 - most ways wait for the whole gradient
        """Take note that the last backward pass before `finish` comes now."""

    @abstractmethod
    def finish(self) -> Tensor:
        """Return the sum, to be read on its device from now on until the next `finish`.

        It is `exchanged` itself, which may be written, or lies where others read it too, and must not be.
        """

    def close(self) -> None:  # noqa: B027 - most ways take nothing
        """Give back what was taken; by all ranks together."""


def make_gradient_sum(
    settings: MachineSettings,
    comm: Collective,
    exchanged: Tensor,
    parameters: Sequence[Tensor],
    shared: "SharedVectors | None" = None,
) -> GradientSum:
    """Return the way that the settings ask for; on all ranks together.

    Args:
        settings: a valid combination.
        comm: the ranks to sum over.
        exchanged: the gradients of `parameters`, in their order, and what else is to be summed.
        parameters: backward() brings their gradients into `exchanged`.
        shared: what `share_memory` returned, if `exchanged` is this rank's of its gradients.
    """
    if comm.size == 1:
        return FlatSum(comm, exchanged)
    num_parameters = sum(parameter.numel() for parameter in parameters)

    def over_the_wire(group: Collective, vector: Tensor) -> GradientSum:
        if settings.gradient_wire == "bfloat16" and group.size > 1:
            return BFloat16Sum(group, vector, num_parameters)
        return FlatSum(group, vector)

    if shared is not None:
        hosts = shared.hosts
        between = over_the_wire(hosts.between, shared.total) if hosts.between is not None else None
        return SharedMemorySum(hosts, shared.gradients, shared.total, between)
    if settings.gradient_buckets > 1:
        return BucketedSum(comm, exchanged, parameters, settings.gradient_buckets)
    if settings.all_reduce != "flat":
        hosts = comm.split_by_host()
        if settings.all_reduce == "hierarchical" or chosen_all_reduce(comm.size, hosts.count) == "hierarchical":
            between = over_the_wire(hosts.between, exchanged) if hosts.between is not None else None
            return HierarchicalSum(hosts, exchanged, between)
    return over_the_wire(comm, exchanged)


@dataclass(frozen=True)
class SharedVectors:
    """What the R ranks of one host have in common; made by `share_memory`.

    Every rank fills its own gradient, and adds and moves a piece of what is there once.
    """

    hosts: Hosts
    """The groups of ranks."""
    gradients: Tensor
    """Every rank's gradient with what is summed besides, (R, P + S)."""
    total: Tensor
    """The sum over all ranks of all hosts, (P + S,)."""
    parameters: Tensor
    """(P,)."""
    moments: Tensor
    """The optimiser's, (2, P)."""


def share_memory(
    settings: MachineSettings, comm: Collective, num_parameters: int, num_sums: int
) -> SharedVectors | None:
    """Return memory that the ranks of a host share, if the settings ask for it: P parameters, S further sums.

    On all ranks together. None where no host has several ranks, or where some cannot share memory: then MPI sums alone.
    """
    if comm.size == 1 or settings.all_reduce != "auto" or settings.gradient_buckets > 1:
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
    """Return what `--all_reduce=auto` stands for: a function of the job's shape, so that a resumed job sums alike.

    Where it is not flat, the ranks of a host share memory, if they can.
    """
    if num_hosts == 1:
        return "shared"
    return "hierarchical" if num_hosts < num_ranks else "flat"


class SharedMemorySum(GradientSum):
    """In memory that the ranks of a host share: every rank adds a piece of all gradients there, in rank order.

    No gradient is copied, and all read the sum where it is. The ranks meet when all gradients are there, and when all
    pieces are added; until then nobody's gradient may change. Where there are several hosts, the first rank of each
    sums what they have, and the others meet it again.
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
        self._piece = piece_of(len(total), hosts.within)

    def finish(self) -> Tensor:
        """Add this rank's piece; see the class."""
        self._within.barrier()
        total, first, *others = (vector[self._piece] for vector in (self._total, *self._addends))
        if not others:
            total.copy_(first)
        for other in others:
            first = torch.add(first, other, out=total)
        self._within.barrier()
        if self._several_hosts:
            if self._between is not None:
                self._between.finish()
            self._within.barrier()
        return self._total


def piece_of(length: int, comm: Collective) -> slice:
    """Return the piece of a vector that is this rank's to work on; no line of a cache lies in two of them.

    A number is rounded alike whatever the pieces are: what does not fill a vector register is at the end of the last
    one, as it is of the whole.
    """
    lines = share(-(-length // FLOATS_OF_A_CACHE_LINE), comm.rank, comm.size)
    return slice(*(min(length, end * FLOATS_OF_A_CACHE_LINE) for end in (lines.start, lines.stop)))


class FlatSum(GradientSum):
    """One all-reduce in place."""

    def __init__(self, comm: Collective, exchanged: Tensor) -> None:
        """Sum `exchanged` over `comm`."""
        self._comm, self._exchanged = comm, exchanged

    def finish(self) -> Tensor:
        """Sum all of it."""
        self._comm.sum_in_place(self._exchanged.numpy())
        return self._exchanged


class HierarchicalSum(GradientSum):
    """To one rank of each host, over these ranks, and back: the network carries one gradient per host."""

    def __init__(self, hosts: Hosts, exchanged: Tensor, between: GradientSum | None) -> None:
        """Sum `exchanged` within the hosts, and by `between` over their first ranks; None on the other ranks."""
        self._within, self._exchanged, self._between = hosts.within, exchanged, between

    def finish(self) -> Tensor:
        """Sum all of it in three steps."""
        self._within.sum_on_root(self._exchanged.numpy())
        if self._between is not None:
            self._between.finish()
        self._within.copy_from_root(self._exchanged.numpy())
        return self._exchanged


class BFloat16Sum(GradientSum):
    """Gradients in 16 bits on the wire, added in float32; half the bytes of a flat sum, in two messages to each rank.

    The gradient is cut into one piece per rank. Every rank sends its rounding of piece k to rank k, which adds the
    pieces in rank order, rounds the sum once and gives it to all. The further sums travel with the first message as
    they are, and every rank adds all of them in rank order. Two roundings to 8 bits make an element's error at most
    about 2^-7 of the sum of its magnitudes over ranks.
    """

    def __init__(self, comm: Collective, exchanged: Tensor, num_parameters: int) -> None:
        """Sum the gradient, the first `num_parameters` of `exchanged`, in 16 bits and the others exactly."""
        self._comm, self._exchanged = comm, exchanged
        self._gradient, self._others = exchanged[:num_parameters], exchanged[num_parameters:]
        # An even number of 2-byte elements keeps the 4-byte ones behind them aligned.
        length = 2 * -(-num_parameters // (2 * comm.size))
        self._outgoing = _Messages(comm.size, length, len(self._others))
        self._incoming = _Messages(comm.size, length, len(self._others))
        self._total, self._addend = torch.zeros(length), torch.zeros(length)
        self._rounded = torch.zeros(length, dtype=torch.bfloat16)
        self._everyone = torch.zeros(comm.size, length, dtype=torch.bfloat16)

    def finish(self) -> Tensor:
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
        return self._exchanged


class _Messages:
    """What goes from one rank to every rank, or comes: a row of bytes for each, with its two parts as views."""

    def __init__(self, num_ranks: int, length: int, num_others: int) -> None:
        self.bytes = torch.zeros(num_ranks, 2 * length + 4 * num_others, dtype=torch.uint8)
        self.pieces = self.bytes[:, : 2 * length].view(torch.bfloat16)
        self.others = self.bytes[:, 2 * length :].view(torch.float32)


class BucketedSum(GradientSum):
    """All-reduces of several pieces of the gradient, each begun when the backward pass has finished the piece.

    The buckets are made from the last parameter to the first, the order in which the gradients of a network come.
    Open MPI moves a message on only while the process is within MPI, so that little of it happens during the backward
    pass: whether this pays has to be measured.
    """

    def __init__(self, comm: Collective, exchanged: Tensor, parameters: Sequence[Tensor], num_buckets: int) -> None:
        """Cut the gradient between parameters into at most `num_buckets` buckets of about one size.

        Args:
            comm: the ranks to sum over.
            exchanged: the gradients of `parameters`, in their order, and what else is to be summed.
            parameters: called back when their gradients are there: behind `FlatParameters`, which has registered first.
            num_buckets: how many buckets at most; the further sums are one of their own.
        """
        self._comm, self._exchanged = comm, exchanged
        vector = exchanged.numpy()
        sizes = [parameter.numel() for parameter in parameters]
        groups = cut_into_buckets(sizes, num_buckets)
        self._buckets = [vector[sum(sizes[: group.start]) : sum(sizes[: group.stop])] for group in groups]
        self._further_sums = vector[sum(sizes) :]
        self._sizes = [len(group) for group in groups]
        self._missing: list[int] = []
        self._pending: list[Pending] = []
        for bucket, group in enumerate(groups):
            for parameter in parameters[group.start : group.stop]:
                parameter.register_post_accumulate_grad_hook(partial(self._take_note, bucket))  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Start buckets from now on."""
        self._missing = self._sizes.copy()

    def finish(self) -> Tensor:
        """Start what has not been started, and wait for all."""
        while len(self._pending) < len(self._buckets):
            self._start_next()
        self._pending.append(self._comm.start_sum(self._further_sums))
        for pending in self._pending:
            pending.wait()
        self._pending, self._missing = [], []
        return self._exchanged

    def _take_note(self, bucket: int, parameter: Tensor) -> None:
        """Start every bucket whose gradients are all there and whose turn it is: all ranks use the same order."""
        if self._missing:
            self._missing[bucket] -= 1
            while len(self._pending) < len(self._buckets) and self._missing[len(self._pending)] == 0:
                self._start_next()

    def _start_next(self) -> None:
        self._pending.append(self._comm.start_sum(self._buckets[len(self._pending)]))


def cut_into_buckets(sizes: Sequence[int], num_buckets: int) -> list[range]:
    """Cut a list of sizes, from its end, into at most `num_buckets` stretches of at least an even share each.

    The last one, at the beginning of the list, may be smaller.
    """
    share = sum(sizes) / num_buckets
    buckets = []
    end = len(sizes)
    for start in reversed(range(len(sizes))):
        if start == 0 or sum(sizes[start:end]) >= share:
            buckets.append(range(start, end))
            end = start
    return buckets
