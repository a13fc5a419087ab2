"""Heartbeats: every rank reports to rank 0 what it is doing, over UDP since MPI itself may be stuck.

Datagrams carry JSON and the job's random token; all others are dropped. Nothing waits for an answer: on a network that
blocks datagrams, only the name of a silent rank is lost.
"""

import contextlib
import fcntl
import json
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ppo.collectives import Collective

_MAX_DATAGRAM = 60_000
_LONGEST_WAIT = 0.1
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Heartbeat:
    """What one rank is doing."""

    rank: int
    host: str
    pid: int
    update: int
    phase: str
    place: str
    """File, line and function of this program where the rank is."""
    waiting: bool
    """Whether it is waiting for the other ranks."""
    debugging: bool
    """Whether a debugger holds it."""
    expired: bool
    """Whether it has made no progress for too long, which ends the job."""


@dataclass(frozen=True)
class Pulse:
    """Rank 0's answer: the state of the job."""

    debugging: bool
    expired: bool


class Exchange:
    """Carries heartbeats to rank 0 and pulses back; made by all ranks together."""

    def __init__(self, collective: Collective) -> None:
        """Open a socket and learn rank 0's addresses."""
        self._is_root = collective.rank == 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("", 0))
        port = self._socket.getsockname()[1]
        addresses, root_port, self._token = collective.broadcast((_own_addresses(), port, secrets.token_hex(8)))
        self._targets = set() if self._is_root else {(address, root_port) for address in addresses}
        self.beats: dict[int, Heartbeat] = {}
        """On rank 0: the last heartbeat of every other rank."""
        self.fresh: set[int] = set()
        """On rank 0: the ranks heard from since this set was last emptied."""
        self.pulse: Pulse | None = None
        """On other ranks: the newest pulse not yet taken; None if there is none."""

    def send(self, message: Heartbeat | Pulse) -> None:
        """Send a heartbeat to rank 0, or rank 0's pulse to all ranks it has heard from."""
        data = json.dumps({"token": self._token, **asdict(message)}).encode()
        for target in self._targets:
            try:
                self._socket.sendto(data[:_MAX_DATAGRAM], target)
            except OSError:  # no route to this address, or a cut link
                continue

    def receive(self, seconds: float, ended: threading.Event) -> None:
        """Receive messages for this many seconds, or until the event is set."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not ended.is_set():
            self._socket.settimeout(min(left, _LONGEST_WAIT))
            try:
                data, sender = self._socket.recvfrom(_MAX_DATAGRAM)
            except OSError:
                # A timeout, or an ICMP error from an earlier datagram, which must not cause a busy loop.
                time.sleep(0.001)
                continue
            self._take(data, sender)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _take(self, data: bytes, sender: Any) -> None:
        try:
            fields = json.loads(data)
            if not secrets.compare_digest(fields.pop("token"), self._token):
                return
            if self._is_root:
                beat = Heartbeat(**fields)
                self.beats[beat.rank] = beat
                self.fresh.add(beat.rank)
            else:
                self.pulse = Pulse(**fields)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return
        # Rank 0 replies to wherever a heartbeat came from; the others keep only the address that replied.
        self._targets = self._targets | {sender} if self._is_root else {sender}


def _own_addresses() -> Sequence[str]:
    """Return the IPv4 addresses at which other ranks might reach this host."""
    addresses = {"127.0.0.1"}
    with contextlib.suppress(OSError):  # a host that cannot look up its own name
        addresses |= {str(found[4][0]) for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    if sys.platform == "linux":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                try:
                    answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                except OSError:  # an interface without an address
                    continue
                addresses.add(socket.inet_ntoa(answer[20:24]))
    return sorted(addresses)
