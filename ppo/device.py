"""Where a rank's network acts and learns: on the CPU, or on a GPU of its host.

The ranks of a host are assigned its GPUs in turn. All ranks of a job use the same kind of device.
"""

import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ppo.collectives import Collective, done_by_all, of_all_ranks
from ppo.config import MachineSettings
from ppo.settings import Refusal

_PROCESSOR = torch.device("cpu")


@dataclass(frozen=True)
class GPU:
    """The GPU that a rank would use."""

    index: int
    """Index among the GPUs that the rank sees."""
    name: str
    identity: str
    """UUID of the device, whatever its index on a rank."""
    has_bfloat16: bool


@dataclass(frozen=True)
class Placement:
    """A rank's device and what the job does with it."""

    device: torch.device = _PROCESSOR
    precision: torch.dtype = torch.float32
    """Precision of the network's encoders."""
    summed_by: Literal["", "MPI", "NCCL"] = ""
    """What sums gradients from GPUs over ranks: MPI on the CPUs, or NCCL on the GPUs. Empty for one rank."""
    meeting_host: str = ""
    """Host where the ranks connect for NCCL."""
    name: str = ""
    """Name of the GPU."""
    why: str = ""
    """Why the job's GPUs are not used; empty if there is nothing to explain."""

    def settings(self) -> dict[str, str]:
        """Return this placement as settings, with every `auto` resolved."""
        return {"device": self.device.type, "precision": str(self.precision).removeprefix("torch.")}

    def describe(self) -> str:
        """Return the log line about this placement."""
        words = ", ".join(self.settings().values())
        if self.device.type == "cpu":
            return f"device: {words}{self.why and f' ({self.why})'}"
        by = f"gradients summed by {self.summed_by}; " if self.summed_by else ""
        return f"device: {words}, {self.name}; {by}a stopped run resumes, but not bit for bit"


CPU = Placement()


def choose_placement(settings: MachineSettings, comm: Collective, hosts: Sequence[str]) -> Placement:
    """Return where this rank's network lives; called by all ranks together.

    Args:
        settings: what the user asked for.
        comm: the job.
        hosts: the host of every rank.

    Raises:
        Refusal: on all ranks: there is no such device, it lacks the precision, or NCCL cannot connect the hosts (some
            share a name, or cannot resolve that of rank 0's host).
    """
    processors = of_all_ranks(comm, has_amx()) if settings.precision == "bfloat16" else []
    if settings.device == "cpu":
        return placement_of(settings, comm.rank, hosts, [None] * comm.size, processors)  # without initialising CUDA
    local_rank = hosts[: comm.rank].count(hosts[comm.rank])
    placement = placement_of(settings, comm.rank, hosts, of_all_ranks(comm, _gpu_of(local_rank)), processors)
    if placement.summed_by != "NCCL":
        return placement
    num_hosts = comm.split_by_host().count
    if num_hosts == 1:
        return replace(placement, meeting_host="localhost")
    if len({*hosts}) < num_hosts:
        raise Refusal(
            f"all_reduce must not be auto where hosts have the same name, got {num_hosts} hosts with names "
            f"{', '.join(sorted({*hosts}))}: NCCL connects hosts by name; try --all_reduce=hierarchical"
        )
    first = comm.broadcast(socket.gethostname())
    done_by_all(comm, lambda: _require_known(first, hosts[comm.rank]))
    return replace(placement, meeting_host=first)


def placement_of(
    settings: MachineSettings, rank: int, hosts: Sequence[str], gpus: Sequence[GPU | None], processors: Sequence[bool]
) -> Placement:
    """Return the placement of a rank, given the GPU that each rank would use.

    Args:
        settings: what the user asked for.
        rank: this rank.
        hosts: the host of every rank.
        gpus: the GPU of every rank; None where there is none.
        processors: whether each rank's processor has AMX; read only if bfloat16 is asked for.

    Raises:
        Refusal: see `choose_placement`.
    """
    found = [gpu for gpu in gpus if gpu is not None]
    if settings.device == "cuda" and len(found) < len(gpus):
        without = gpus.index(None)
        raise Refusal(
            f"device must be cpu where a rank has no GPU: rank {without} on {hosts[without]} sees none with PyTorch "
            f"{torch.__version__}; try --device=cpu"
        )
    why = _what_differs(hosts, gpus)
    if settings.device == "cuda" and why:
        raise Refusal(
            f"device must be cpu where the GPUs of a job are of several kinds: {why}; choose one kind with "
            "CUDA_VISIBLE_DEVICES, or try --device=cpu"
        )
    own = None if why else gpus[rank]
    able = all(processors) if own is None else all(gpu.has_bfloat16 for gpu in found)
    if settings.precision == "bfloat16" and not able:
        which = "on a GPU without bfloat16 arithmetic"
        if own is None:
            without = processors.index(False)
            which = f"on a processor without AMX, that of rank {without} on {hosts[without]}{why and f' ({why})'}"
        raise Refusal(f"precision must be float32 {which}, got bfloat16; try --precision=auto")
    if own is None:
        # Only where it is asked for: 16 bits change results far more than the kind of processor does.
        return replace(CPU, precision=torch.bfloat16 if settings.precision == "bfloat16" else torch.float32, why=why)
    # NCCL refuses two ranks on one GPU, and sums in one way only.
    as_nccl_does = settings.all_reduce == "auto" and settings.gradient_wire == "float32"
    alone = len({gpu.identity for gpu in found}) == len(found)
    summed_by: Literal["MPI", "NCCL"] = "NCCL" if as_nccl_does and alone else "MPI"
    return Placement(
        device=torch.device("cuda", own.index),
        precision=torch.bfloat16 if able and settings.precision != "float32" else torch.float32,
        summed_by=summed_by if len(found) > 1 else "",
        name=own.name,
    )


def _what_differs(hosts: Sequence[str], gpus: Sequence[GPU | None]) -> str:
    """Name the rank whose missing or different GPU keeps the others from using theirs; empty if there is none.

    Elementwise kernels may round differently on different kinds of GPU, so replicas of the weights would drift apart.
    """
    found = [gpu for gpu in gpus if gpu is not None]
    if found and None in gpus:
        return f"rank {gpus.index(None)} on {hosts[gpus.index(None)]} sees no GPU"
    for rank, gpu in enumerate(found):
        if gpu.name != found[0].name:
            return f"rank 0 has {found[0].name}, rank {rank} on {hosts[rank]} {gpu.name}"
    return ""


def has_amx() -> bool:
    """Return whether the processor multiplies matrices of bfloat16 (AMX, in Intel's Xeons since 2023).

    False where PyTorch is too old to say.
    """
    return hasattr(torch.cpu, "get_capabilities") and bool(torch.cpu.get_capabilities().get("amx_bf16"))


def _gpu_of(local_rank: int) -> GPU | None:
    """Return the GPU for the rank with this index on its host; None if there is none."""
    if not torch.cuda.is_available():
        return None
    index = local_rank % torch.cuda.device_count()
    properties = torch.cuda.get_device_properties(index)
    # GPUs of compute capability below 8 only emulate bfloat16.
    return GPU(index, properties.name, str(properties.uuid), has_bfloat16=properties.major >= 8)


def _require_known(name: str, here: str) -> None:
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        raise Refusal(
            f"all_reduce must not be auto where the name of rank 0's host is not known: {here} cannot find {name} "
            f"({error}), which NCCL needs to connect the hosts; try --all_reduce=hierarchical"
        ) from error
