"""Replicas: every rank holds the same weights and optimiser state, or the job stops before they are saved."""

import hashlib
from collections.abc import Mapping, Sequence

from torch import Tensor

from ppo.collectives import Collective, Halt, decided_by_root


def compare_replicas(tensors: Mapping[str, Tensor], collective: Collective, hosts: Sequence[str]) -> None:
    """Compare a hash of every tensor across all ranks.

    Raises:
        Halt: on all ranks, if replicas differ; names the ranks that differ from the majority, and the tensors.
    """
    if collective.size == 1:
        return
    everyone = collective.gather({name: _digest(tensor) for name, tensor in tensors.items()})

    def verdict() -> None:
        assert everyone is not None
        complaint = difference(everyone, hosts)
        if complaint:
            raise Halt(complaint)

    decided_by_root(collective, verdict)


def difference(everyone: Sequence[Mapping[str, str]], hosts: Sequence[str]) -> str | None:
    """Describe the ranks whose hashes differ from the majority's (rank 0's in a tie); None if there are none."""
    whole = [tuple(sorted(digests.items())) for digests in everyone]
    usual = max(dict.fromkeys(whole), key=whole.count)
    different = [rank for rank, digests in enumerate(whole) if digests != usual]
    if not different:
        return None
    rank, reference = different[0], whole.index(usual)
    names = [name for name, digest in everyone[reference].items() if everyone[rank].get(name) != digest]
    listing = ", ".join(
        f"{name} ({everyone[rank].get(name)} there, {everyone[reference][name]} here)" for name in names[:3]
    )
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    others = f" (and ranks {', '.join(map(str, different[1:]))})" if different[1:] else ""
    return (
        f"the replicas have drifted apart: rank {rank} on {hosts[rank]}{others} differs from rank {reference} on "
        f"{hosts[reference]} in {listing}{more}. This state was not saved; "
        "suspect faulty memory or a faulty processor on one of these hosts"
    )


def _digest(tensor: Tensor) -> str:
    return hashlib.blake2b(tensor.detach().contiguous().numpy().tobytes(), digest_size=8).hexdigest()
