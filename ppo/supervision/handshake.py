"""The handshake: before any work, rank 0 compares what all ranks were started with and sends one verdict back.

Ranks that disagree about a buffer's size would wait for each other forever, and ranks that disagree about a learning
rate would train something nobody asked for.
"""

import socket
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ppo.collectives import Collective, decided_by_root
from ppo.config import Config
from ppo.settings import Refusal
from ppo.versions import code_version, version_of, versions_of_run


@dataclass(frozen=True)
class Introduction:
    """What one rank was started with."""

    rank: int
    host: str
    refusal: str | None
    """Why this rank cannot run its command line; None if it can."""
    settings: dict[str, Any]
    """Setting -> value, and everything else that must be equal on all ranks."""


def shake_hands(collective: Collective, config: Config | None, refusal: str | None) -> list[str]:
    """Compare all ranks before the first environment is made.

    Args:
        collective: the job.
        config: this rank's settings; None where its command line was refused.
        refusal: why the command line was refused; None if it was not.

    Returns:
        The host of every rank.

    Raises:
        Refusal: on all ranks alike: a command line was refused, or the ranks were started differently.
    """
    own = Introduction(collective.rank, socket.gethostname(), refusal, described(config) if config else {})
    everyone = collective.gather(own)

    def verdict() -> list[str]:
        assert everyone is not None
        complaint = refusals(everyone) or disagreement(everyone)
        if complaint:
            raise Refusal(complaint)
        return [one.host for one in everyone]

    return decided_by_root(collective, verdict)


def described(config: Config) -> dict[str, Any]:
    """Return everything that must be equal on all ranks, by name."""
    settings = {name: value for section in config.to_dict().values() for name, value in section.items()}
    versions = versions_of_run(config) | {"ppo": code_version(), "mpi4py": version_of("mpi4py")}
    return settings | {f"version of {name}": version for name, version in versions.items()}


def refusals(everyone: Sequence[Introduction]) -> str | None:
    """Return all ranks' refusals as one text; None if there are none."""
    ranks_by_text = defaultdict(list)
    for one in everyone:
        if one.refusal is not None:
            ranks_by_text[one.refusal].append(one.rank)
    if not ranks_by_text:
        return None
    if list(ranks_by_text.values()) == [[one.rank for one in everyone]]:
        return next(iter(ranks_by_text))
    return "; ".join(f"{_rank_list(ranks)}: {text}" for text, ranks in ranks_by_text.items())


def disagreement(everyone: Sequence[Introduction]) -> str | None:
    """Describe the first rank that differs from rank 0; None if all are alike."""
    first = everyone[0]
    for one in everyone[1:]:
        names = sorted(name for name, value in first.settings.items() if one.settings.get(name) != value)
        if names:
            listing = ", ".join(
                f"{name} {one.settings.get(name)!r} instead of {first.settings[name]!r}" for name in names
            )
            return (
                f"rank {one.rank} on {one.host} was started differently from rank 0 on {first.host}: {listing}; "
                "start all ranks with the same command line and the same installation"
            )
    return None


def _rank_list(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
