"""Processes and cores, read from /proc and /sys of Linux."""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Rank:
    """A rank's data from /proc; memory in units of 10^6 bytes."""

    cores: list[int]
    """The cores that it may run on."""
    peak_rss: float
    """Peak resident memory, shared libraries included."""
    pss: float
    """Current resident memory, with shared pages divided among their processes."""


def available_cores() -> list[int]:
    """Return the cores that this process may use: one hardware thread of each core first, then the others."""
    return sorted(os.sched_getaffinity(0), key=lambda core: (_place_among_siblings(core), core))


def descendants(ancestor: int) -> list[int]:
    """Return all descendants of a process."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = int(_fields_after_the_name(int(path.name))[1])
            children.setdefault(parent, []).append(int(path.name))
    found, to_visit = [], [ancestor]
    while to_visit:
        generation = children.get(to_visit.pop(), [])
        found += generation
        to_visit += generation
    return found


def is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return _fields_after_the_name(pid)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def variable_of(pid: int, name: str) -> str | None:
    """Return an environment variable that a process was started with, or None."""
    start = f"{name}=".encode()
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((v.removeprefix(start).decode() for v in variables if v.startswith(start)), None)


def describe(pid: int) -> Rank:
    """Return the /proc data of a process."""
    status, shares = _named_values(Path(f"/proc/{pid}/status")), _named_values(Path(f"/proc/{pid}/smaps_rollup"))
    return Rank(
        cores=numbers_in(status["Cpus_allowed_list"]),
        peak_rss=_megabytes(status["VmHWM"]),
        pss=_megabytes(shares["Pss"]),
    )


def numbers_in(text: str) -> list[int]:
    """Return the numbers in a list as Linux writes them: `0-2,4`."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers


def _place_among_siblings(core: int) -> int:
    """Return 0 for the first hardware thread of a core, 1 for the second."""
    siblings = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    return numbers_in(siblings.read_text()).index(core) if siblings.exists() else 0


def _fields_after_the_name(pid: int) -> list[str]:
    """Return a process's state, its parent and so on; the name before them may contain spaces and parentheses."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _named_values(path: Path) -> dict[str, str]:
    pairs = (line.partition(":") for line in path.read_text().splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _megabytes(size: str) -> float:
    """Convert `1234 kB`, by which Linux means units of 1024 bytes, to units of 10^6 bytes."""
    return int(size.split()[0]) * 1024 / 1e6
