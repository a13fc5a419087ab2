"""Two hosts on this machine: network namespaces with a cable between them, each with a host name of its own.

The file system, the clock and the processors are shared; what they say to each other goes over TCP on `eth0`.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.faults.running import MPIRUN, RunningJob, variables_of

PROGRAMS = ("ip", "unshare", "hostname", "iptables", "timeout", "ssh")
DATA_PORTS = (21000, 21999)
"""Where Open MPI's ranks listen for each other; mpirun and its daemons use others."""


def reason_to_skip():
    """Return why there can be no network namespaces here; None if there can."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        packages = "iproute2 iptables openssh-client"
        return f"needs network namespaces: {', '.join(missing)} not found (apt-get install {packages})"
    if os.geteuid() != 0:
        return "needs root to make network namespaces"
    probe = f"probe-{secrets.token_hex(3)}"
    tried = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"cannot make network namespaces: {tried.stderr.strip()}"
    firewall = ["ip", "netns", "exec", probe, "iptables", "-A", "INPUT", "-p", "tcp", "-j", "DROP"]
    tried = subprocess.run(firewall, capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return f"cannot make a firewall: {tried.stderr.strip()}" if tried.returncode else None


class TwoHosts:
    """The pair, as a context; at its end no namespace and no process in them is left."""

    def __init__(self):
        token = secrets.token_hex(3)
        self.names = (f"host1-{token}", f"host2-{token}")
        """Of the namespaces, and what `hostname` says in them."""
        self.folder = Path(tempfile.mkdtemp(prefix="two-hosts-"))

    def __enter__(self):
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        for name in self.names:
            pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
            for pid in pids.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)
        with contextlib.suppress(OSError):
            Path("/etc/netns").rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make(self):
        first, second = self.names
        addresses = {first: "10.251.7.1", second: "10.251.7.2"}
        listing = "".join(f"{address} {name}\n" for name, address in addresses.items())
        for name in self.names:
            # `ip netns exec` shows this file as /etc/hosts.
            Path("/etc/netns", name).mkdir(parents=True)
            Path("/etc/netns", name, "hosts").write_text(f"127.0.0.1 localhost\n{listing}")
            self._ip("netns", "add", name)
        self._ip("link", "add", "eth0", "netns", first, "type", "veth", "peer", "name", "eth0", "netns", second)
        for name, address in addresses.items():
            self._ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            self._ip("-n", name, "link", "set", "lo", "up")
            self._ip("-n", name, "link", "set", "eth0", "up")
        # What mpirun uses for ssh: <agent> <host> <command>.
        agent = self.folder / "agent"
        agent.write_text(
            '#!/bin/sh\nhost=$1; shift\nexec ip netns exec "$host" unshare --uts sh -c "hostname $host; $*"\n'
        )
        agent.chmod(0o755)

    @staticmethod
    def _ip(*arguments):
        subprocess.run(["ip", *arguments], check=True, timeout=10)

    def on(self, name, *command):
        """Return the command that runs a command on a host."""
        return [
            "ip",
            "netns",
            "exec",
            name,
            "unshare",
            "--uts",
            "sh",
            "-c",
            f'hostname {name}; exec "$@"',
            "-",
            *command,
        ]

    def start(self, folder, *flags, ranks=1, hosts=None, agent=None, before=(), options=(), **variables):
        """Start a job with so many ranks on each host, from the first one; `before` is put before the command."""
        slots = ",".join(f"{host}:{ranks}" for host in hosts or self.names)
        agent = ["--prtemca", "plm_ssh_agent", str(agent or self.folder / "agent")]
        mpirun = [MPIRUN, *agent, "--host", slots, "--map-by", "slot:oversubscribe", *options]
        first, last = DATA_PORTS
        variables |= {
            "OMPI_MCA_btl_tcp_port_min_v4": str(first),
            "OMPI_MCA_btl_tcp_port_range_v4": str(last - first),
        }
        launcher = [*before, *self.on(self.names[0], *mpirun)]
        return RunningJob(folder, *flags, program="ppo", launcher=launcher, **variables)

    def data_connections(self):
        """Return how many connections ranks have with the other host."""
        command = ["ip", "netns", "exec", self.names[1], "cat", "/proc/net/tcp"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()[1:]
        fields = [line.split() for line in lines]
        ports = [
            int(address[-4:], 16) for _, own, peer, state, *_ in fields if state == "01" for address in (own, peer)
        ]
        return sum(DATA_PORTS[0] <= port <= DATA_PORTS[1] for port in ports)

    def cut(self):
        """Pull the cable."""
        self._ip("-n", self.names[1], "link", "set", "eth0", "down")

    def drop_data(self):
        """Let a firewall swallow what ranks send each other from now on, and nothing else."""
        ports = f"{DATA_PORTS[0]}:{DATA_PORTS[1]}"
        for way in ("--dport", "--sport"):
            self._firewall(self.names[1], "-p", "tcp", way, ports)

    def drop_new_connections(self, name):
        """Let a firewall swallow every attempt to open a connection to a host."""
        self._firewall(name, "-p", "tcp", "--syn")

    def _firewall(self, name, *what):
        command = ["iptables", "-A", "INPUT", "-i", "eth0", *what, "-j", "DROP"]
        subprocess.run(["ip", "netns", "exec", name, *command], check=True, timeout=10)


def ranks_of(job):
    """Return the process ids of a job's ranks, without mpirun and its daemons."""
    return [pid for pid in job.processes() if b"OMPI_COMM_WORLD_RANK=" in variables_of(pid)]


def seconds_until_no_rank_is_left(job, within):
    """Wait until all ranks have ended; return the seconds."""
    started = time.monotonic()
    while ranks := ranks_of(job):
        seconds = time.monotonic() - started
        assert seconds < within, f"ranks {ranks} are left after {seconds:.0f} s:\n{job.log}"
        time.sleep(0.1)
    return time.monotonic() - started
