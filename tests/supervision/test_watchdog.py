"""The parts of the watchdog that can be tested without ending this process; tests/faults has the rest."""

import ctypes
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from ppo.collectives import Alone
from ppo.supervision.heartbeats import Exchange, Heartbeat, Pulse
from ppo.supervision.watchdog import Watchdog, in_debugger, place_of

BEAT = Heartbeat(1, "host1", 4711, 3, "collecting", "ppo/envs/atari.py:200 in step", False, False, False)


class Pair:
    """Two ranks of one job within this process."""

    def __init__(self):
        self.told = None

    def rank(self, number):
        pair = self

        class Collective(Alone):
            rank, size = number, 2

            def broadcast(self, value):
                pair.told = pair.told or value
                return pair.told

        return Collective()


@pytest.fixture
def exchanges():
    pair = Pair()
    root, other = Exchange(pair.rank(0)), Exchange(pair.rank(1))
    yield root, other
    root.close()
    other.close()


def test_a_heartbeat_reaches_rank_0_and_a_pulse_comes_back(exchanges):
    root, other = exchanges
    other.send(BEAT)
    root.receive(0.2, threading.Event())
    assert root.beats == {1: BEAT}
    assert root.fresh == {1}
    root.send(Pulse(debugging=False, expired=True))
    other.receive(0.2, threading.Event())
    assert other.pulse == Pulse(debugging=False, expired=True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"[1]",
        b"{}",
        b"null",
        b"[" * 50_000,
        json.dumps({"token": "0" * 16, **dataclasses.asdict(BEAT)}).encode(),
        json.dumps({"token": 7}).encode(),
    ],
)
def test_a_datagram_without_the_jobs_token_is_dropped(exchanges, data):
    root, _ = exchanges
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(data, ("127.0.0.1", root._socket.getsockname()[1]))
        root.receive(0.2, threading.Event())
    assert root.beats == {}
    assert root._targets == set()


def test_waiting_ends_with_the_event(exchanges):
    ended = threading.Event()
    ended.set()
    exchanges[0].receive(60.0, ended)


def test_the_place_is_the_innermost_line_of_the_package():
    from ppo.algorithm.equations import linear_decay

    places = []

    class Progress(float):
        def __rsub__(self, other):
            places.append(place_of(sys._getframe()))
            return 0.5

    linear_decay(1.0, Progress())
    assert places[0].startswith("ppo/algorithm/equations.py:")
    assert places[0].endswith(" in linear_decay")
    assert place_of(None) == "an unknown place"


def test_a_python_debugger_is_seen_on_the_stack():
    import bdb

    seen = []

    class Debugger(bdb.Bdb):
        def user_line(self, frame):
            seen.append(in_debugger(sys._getframe()))

    assert not in_debugger(sys._getframe())
    Debugger().run("pass")
    assert seen[0]


def test_a_watchdog_lets_go_at_once():
    with Watchdog(Alone(), seconds=600.0, hosts=["here"]) as watchdog:
        watchdog.enter("collecting", 3)
        assert watchdog.describe() == "update 3, collecting"
    assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]


PTRACE_ATTACH, PTRACE_DETACH = 16, 17


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_native_debugger_that_has_a_process_of_the_rank_is_seen():
    trace = ctypes.CDLL(None, use_errno=True).ptrace
    with Watchdog(Alone(), seconds=600.0, hosts=["here"]) as watchdog, subprocess.Popen(["sleep", "60"]) as process:
        watchdog.processes = [process.pid]
        try:
            assert not watchdog.is_debugging()
            if trace(PTRACE_ATTACH, process.pid, None, None):
                pytest.skip(f"no debugger may attach here: {os.strerror(ctypes.get_errno())}")
            os.waitpid(process.pid, os.WUNTRACED)
            assert watchdog.is_debugging()
            trace(PTRACE_DETACH, process.pid, None, None)
            assert not watchdog.is_debugging()
        finally:
            process.kill()
    assert not watchdog.is_debugging()
