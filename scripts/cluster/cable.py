"""A cable between two network namespaces with a set bandwidth and delay, for kernels without the netem queue.

    python cable.py <namespace> <namespace> <Gbit/s> <milliseconds one way>

It creates `eth0` in both, prints `connected`, and forwards Ethernet frames until its standard input ends. Frames may be
as large as the kernel passes them (64 kB, with neither segmentation nor coalescing). Each arrives after its time on the
wire and the delay; none is lost.
"""

import collections
import contextlib
import ctypes
import fcntl
import os
import select
import struct
import sys
import time
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
# TCP checksums and segmentation over IPv4 and IPv6 are skipped: there is no real wire.
_OFFLOADS = 0x1 | 0x2 | 0x4
_LARGEST_FRAME = 1 << 17
_VNET_HEADER = 10


def plug_into(namespace: str) -> int:
    """Make `eth0` in a namespace and return the descriptor of its other end."""
    with open(Path("/run/netns", namespace)) as file:
        library = ctypes.CDLL(None, use_errno=True)
        if library.setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
    fcntl.ioctl(end, _TUNSETOFFLOAD, _OFFLOADS)
    return end


class Direction:
    """Frames on their way from one end to the other."""

    def __init__(self, source: int, sink: int, bytes_per_second: float, delay: float) -> None:
        """Forward frames from `source` to `sink`."""
        self.source, self._sink = source, sink
        self._bytes_per_second, self._delay = bytes_per_second, delay
        self._frames: collections.deque[tuple[float, bytearray, int]] = collections.deque()
        self._free_at = 0.0
        # Buffers are reused: allocating one for every frame would cost more than forwarding it.
        self._buffers: list[bytearray] = []

    @property
    def due(self) -> float:
        """When the next frame arrives."""
        return self._frames[0][0] if self._frames else float("inf")

    def take(self) -> None:
        """Put every frame waiting at the source on the wire, in sequence."""
        while True:
            buffer = self._buffers.pop() if self._buffers else bytearray(_LARGEST_FRAME)
            try:
                size = os.readv(self.source, [buffer])
            except BlockingIOError:
                self._buffers.append(buffer)
                return
            on_the_wire = (size - _VNET_HEADER) / self._bytes_per_second
            self._free_at = max(self._free_at, time.monotonic()) + on_the_wire
            self._frames.append((self._free_at + self._delay, buffer, size))

    def deliver(self) -> None:
        """Deliver every frame that has arrived."""
        while self.due <= time.monotonic():
            _, buffer, size = self._frames.popleft()
            with contextlib.suppress(OSError):  # the other end is down, as with a pulled cable
                os.write(self._sink, memoryview(buffer)[:size])
            self._buffers.append(buffer)


def carry(ends: tuple[int, int], bytes_per_second: float, delay: float) -> None:
    """Forward frames both ways until standard input ends."""
    directions = [Direction(*ways, bytes_per_second, delay) for ways in (ends, ends[::-1])]
    while True:
        due = min(direction.due for direction in directions)
        timeout = max(0.0, due - time.monotonic()) if due < float("inf") else None
        readable, _, _ = select.select([*ends, sys.stdin], [], [], timeout)
        if sys.stdin in readable:
            return
        for direction in directions:
            if direction.source in readable:
                direction.take()
            direction.deliver()


def main() -> None:
    """Run the cable that the command line describes."""
    first, second, gigabits_per_second, milliseconds = sys.argv[1:]
    ends = (plug_into(first), plug_into(second))
    # Ahead of the ranks, which may use all cores, and without the kernel's usual 50 microseconds of timer slack.
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print("connected", flush=True)
    carry(ends, float(gigabits_per_second) * 1e9 / 8, float(milliseconds) / 1e3)


if __name__ == "__main__":
    main()
