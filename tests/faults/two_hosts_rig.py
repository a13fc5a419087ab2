"""Two hosts on this machine, with jobs to inject faults into and faults of the network between them."""

import secrets
import subprocess
import time

from scripts.cluster import two_hosts
from tests.faults.running import RunningJob, variables_of


def reason_to_skip():
    """Return why there can be no such hosts with a firewall here; None if there can."""
    reason = two_hosts.reason_to_skip(("iptables", "timeout", "ssh"))
    if reason:
        return reason
    probe = f"probe-{secrets.token_hex(3)}"
    subprocess.run(["ip", "netns", "add", probe], check=True)
    firewall = ["ip", "netns", "exec", probe, "iptables", "-A", "INPUT", "-p", "tcp", "-j", "DROP"]
    tried = subprocess.run(firewall, capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", probe], check=True)
    return f"cannot make a firewall: {tried.stderr.strip()}" if tried.returncode else None


class TwoHosts(two_hosts.TwoHosts):
    """The pair, with jobs and faults."""

    def start(self, folder, *flags, ranks=1, hosts=None, agent=None, before=(), options=(), **variables):
        """Start a job with so many ranks on each host, from the first one; `before` is put before the command."""
        launcher = [*before, *self.mpirun(ranks, hosts, agent, options)]
        return RunningJob(folder, *flags, program="ppo", launcher=launcher, **two_hosts.VARIABLES, **variables)

    def data_connections(self):
        """Return how many connections ranks have with the other host."""
        command = ["ip", "netns", "exec", self.names[1], "cat", "/proc/net/tcp"]
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.splitlines()[1:]
        fields = [line.split() for line in lines]
        ports = [
            int(address[-4:], 16) for _, own, peer, state, *_ in fields if state == "01" for address in (own, peer)
        ]
        return sum(two_hosts.DATA_PORTS[0] <= port <= two_hosts.DATA_PORTS[1] for port in ports)

    def cut(self):
        """Pull the cable."""
        self._ip("-n", self.names[1], "link", "set", "eth0", "down")

    def drop_data(self):
        """Let a firewall swallow what ranks send each other from now on, and nothing else."""
        ports = f"{two_hosts.DATA_PORTS[0]}:{two_hosts.DATA_PORTS[1]}"
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
