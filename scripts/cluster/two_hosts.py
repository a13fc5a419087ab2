"""Two hosts on this machine: network namespaces with a cable between them, each with its own host name.

The file system, the clock and the processors are shared; the hosts communicate by TCP on `eth0`. The cable is as fast
as the kernel allows, or has a set bandwidth and delay: imposed by `tc netem` if the kernel has it, otherwise by a
process (cable.py) that takes part of a core, about half of one at 10 Gbit/s.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ppo.collectives.mpi import find_mpirun

CABLE = Path(__file__).with_name("cable.py")
MPIRUN = find_mpirun() or "mpirun"
DATA_PORTS = (21000, 21999)
"""Ports on which Open MPI's ranks listen for each other; mpirun and its daemons use other ports."""
VARIABLES = {
    "OMPI_MCA_btl_tcp_port_min_v4": str(DATA_PORTS[0]),
    "OMPI_MCA_btl_tcp_port_range_v4": str(DATA_PORTS[1] - DATA_PORTS[0]),
}
"""Environment variables that a job on the pair needs."""


@dataclass(frozen=True)
class Link:
    """A cable's limits, the same in both directions."""

    gigabits_per_second: float
    delay_milliseconds: float
    """One way."""

    def __str__(self) -> str:
        """Describe the limits in words."""
        return f"{self.gigabits_per_second:g} Gbit/s, {self.delay_milliseconds:g} ms"


def reason_to_skip(programs: Sequence[str] = (), *, shaped: bool = False) -> str | None:
    """Return why two hosts are not possible here, or None.

    Args:
        programs: programs needed besides namespaces.
        shaped: whether the cable has a set bandwidth and delay.
    """
    needed = ("ip", "unshare", "hostname", *programs, *(("tc",) if shaped else ()))
    missing = [program for program in needed if shutil.which(program) is None]
    if missing:
        packages = "iproute2 iptables openssh-client"
        return f"needs network namespaces: {', '.join(missing)} not found (apt-get install {packages})"
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    probe = f"probe-{secrets.token_hex(3)}"
    tried = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"cannot make network namespaces: {tried.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    if shaped and not kernel_delays() and not Path("/dev/net/tun").exists():
        return "cannot shape a cable: the kernel has neither the netem queue nor /dev/net/tun"
    return None


def kernel_delays() -> bool:
    """Return whether the kernel has the netem queue."""
    probe = f"probe-{secrets.token_hex(3)}"
    subprocess.run(["ip", "netns", "add", probe], check=True)
    queue = ["tc", "-n", probe, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]
    tried = subprocess.run(queue, capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return tried.returncode == 0


class TwoHosts:
    """The pair as a context manager; on exit its processes are killed and its namespaces removed."""

    def __init__(self, link: Link | None = None) -> None:
        """Prepare a pair with a cable of these limits, or an unlimited one."""
        token = secrets.token_hex(3)
        self.link = link
        self.names = (f"host1-{token}", f"host2-{token}")
        """Names of the namespaces, also their `hostname`."""
        self.folder = Path(tempfile.mkdtemp(prefix="two-hosts-"))
        self._cable: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "TwoHosts":
        """Create the pair."""
        try:
            self._make()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the pair."""
        for name in self.names:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
            for pid in pids.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        if self._cable is not None:
            self._cable.kill()
            self._cable.communicate()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)
        with contextlib.suppress(OSError):
            Path("/etc/netns").rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make(self) -> None:
        first, second = self.names
        addresses = {first: "10.251.7.1", second: "10.251.7.2"}
        listing = "".join(f"{address} {name}\n" for name, address in addresses.items())
        for name in self.names:
            # `ip netns exec` mounts this file as /etc/hosts.
            Path("/etc/netns", name).mkdir(parents=True)
            Path("/etc/netns", name, "hosts").write_text(f"127.0.0.1 localhost\n{listing}")
            self._ip("netns", "add", name)
        self._lay_cable()
        for name, address in addresses.items():
            self._ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            self._ip("-n", name, "link", "set", "lo", "up")
            self._ip("-n", name, "link", "set", "eth0", "up")
        # mpirun calls it instead of ssh: <agent> <host> <command>.
        agent = self.folder / "agent"
        agent.write_text(
            '#!/bin/sh\nhost=$1; shift\nexec ip netns exec "$host" unshare --uts sh -c "hostname $host; $*"\n'
        )
        agent.chmod(0o755)

    def _lay_cable(self) -> None:
        """Make `eth0` on both hosts."""
        first, second = self.names
        if self.link is not None and not kernel_delays():
            limits = (str(self.link.gigabits_per_second), str(self.link.delay_milliseconds))
            command = [sys.executable, str(CABLE), *self.names, *limits]
            self._cable = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert self._cable.stdout is not None
            if self._cable.stdout.readline() != b"connected\n":
                raise RuntimeError(f"the cable of {self.link} could not be laid")
            return
        self._ip("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second)
        if self.link is not None:
            for name in self.names:
                limits = ("rate", f"{self.link.gigabits_per_second}gbit", "delay", f"{self.link.delay_milliseconds}ms")
                queue = ["tc", "-n", name, "qdisc", "replace", "dev", "eth0", "root", "netem", *limits]
                subprocess.run([*queue, "limit", "100000"], check=True, timeout=10)

    @staticmethod
    def _ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, timeout=10)

    def on(self, name: str, *command: str) -> list[str]:
        """Return the command that runs a command on a host."""
        inside = ["unshare", "--uts", "sh", "-c", f'hostname {name}; exec "$@"', "-", *command]
        return ["ip", "netns", "exec", name, *inside]

    def mpirun(
        self, ranks: int, hosts: Sequence[str] | None = None, agent: str | None = None, options: Sequence[str] = ()
    ) -> list[str]:
        """Return the mpirun command, to be followed by a program, that runs ranks on each host from the first.

        Args:
            ranks: number of ranks on each host.
            hosts: used instead of the pair.
            agent: remote shell used instead of the pair's own.
            options: further options of mpirun.
        """
        slots = ",".join(f"{host}:{ranks}" for host in hosts or self.names)
        reach = ["--prtemca", "plm_ssh_agent", agent or str(self.folder / "agent")]
        launch = [MPIRUN, *reach, "--host", slots, "--map-by", "slot:oversubscribe", *options]
        return self.on(self.names[0], *launch)
