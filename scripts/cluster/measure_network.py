"""Measure the cost of a network: sums of gradients and whole updates, on one host and on two with limited cables.

The two hosts are network namespaces of this machine (two_hosts.py) and share its cores: on two cores, two ranks on two
hosts compute as fast as on one host, and only the cable differs. Four ranks share two cores and are slower: their ways
to sum are compared only with each other, and their updates are not timed. Needs root; nothing else should run.
"""

import csv
import itertools
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import tyro

from ppo.command_line import parse_command_line
from ppo.versions import versions_here
from scripts.cluster.two_hosts import MPIRUN, VARIABLES, Link, TwoHosts, reason_to_skip

ENV_NAME = "PongNoFrameskip-v4"
TIME_SUMS = Path(__file__).with_name("time_gradient_sums.py")
PHASES = ("env", "inference", "learn", "communicate")
# Both hosts see the same cores, and each would bind its first rank to the first core.
UNBOUND = ("--bind-to", "none")
NO_LINK = "none"
QUIET_LOAD = 0.3
"""Load average above which the machine counts as busy."""
Launch = Callable[[int], list[str]]
"""Maps the number of ranks per host to the command that starts them."""


@dataclass(frozen=True)
class Options:
    """Flags of this script."""

    links: tuple[str, ...] = (NO_LINK, "10:0.05", "10:0.5", "1:0.05", "1:0.5")
    """Cables between the hosts as Gbit/s:milliseconds one way; `none` is as fast as the kernel allows."""
    presets: tuple[str, ...] = ("atari", "cleanrl")
    """Presets whose updates are timed: the small network and the Nature CNN."""
    ways: tuple[str, ...] = ("", "--gradient_wire=bfloat16")
    """Flags with which the presets are timed on two hosts."""
    updates: int = 7
    """Updates of each run; the first two do not count."""
    repeats: int = 10
    """How often each way to sum is timed."""
    output: Path = Path("docs/measurements/network.json")
    """Write the results to this JSON file."""


@dataclass(frozen=True)
class Update:
    """Medians over the updates of a run, in seconds; phases are means over ranks."""

    preset: str
    network: str
    flags: str
    steps: int
    epochs: int
    gradient_steps: int
    seconds: float
    phases: dict[str, float]


def main() -> int:
    """Measure everything and write the results; return the exit code."""
    options = tyro.cli(Options, description=__doc__)
    reason = reason_to_skip(shaped=True)
    if reason:
        print(reason, file=sys.stderr)
        return 1
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        print(f"WARNING: load average {load:.2f}: something else runs, do not trust the result", file=sys.stderr)
    one_host = [measure_one_host(ranks, options) for ranks in (1, 2)]
    two_hosts = [measure_two_hosts(parse_link(text), options) for text in options.links]
    result = {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", "-m", "scripts.cluster.measure_network", *sys.argv[1:]]),
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "load_average_before": round(load, 2)},
        "versions": versions_here(),
        "one_host": one_host,
        "two_hosts": two_hosts,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {options.output}")
    return 0


def parse_link(text: str) -> Link | None:
    """Return the cable that a flag describes."""
    if text == NO_LINK:
        return None
    gigabits, _, milliseconds = text.partition(":")
    return Link(float(gigabits), float(milliseconds))


def measure_one_host(ranks: int, options: Options) -> dict[str, Any]:
    """Measure one host with a number of ranks."""

    def launch(per_host: int) -> list[str]:
        return [MPIRUN, "-np", str(per_host), *UNBOUND]

    print(f"one host, {ranks} ranks", flush=True)
    sums = time_sums(launch, ranks, options.repeats)
    updates = [time_updates(launch, ranks, preset, "", options.updates) for preset in options.presets]
    return {"ranks": ranks, "sums": [sums], "updates": [asdict(update) for update in updates]}


def measure_two_hosts(link: Link | None, options: Options) -> dict[str, Any]:
    """Measure one and two ranks on each of two hosts."""
    with TwoHosts(link) as hosts:

        def launch(per_host: int) -> list[str]:
            return hosts.mpirun(per_host, options=UNBOUND)

        print(f"two hosts, {link or 'unlimited'}", flush=True)
        sums = [time_sums(launch, per_host, options.repeats) for per_host in (1, 2)]
        updates = [
            time_updates(launch, 1, preset, way, options.updates) for preset in options.presets for way in options.ways
        ]
        return {
            "link": asdict(link) if link else None,
            "cable": measure_cable(hosts),
            "sums": sums,
            "updates": [asdict(update) for update in updates],
        }


def time_sums(launch: Launch, per_host: int, repeats: int) -> dict[str, Any]:
    """Time all ways to sum gradients."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "sums.json")
        run(launch(per_host), str(TIME_SUMS), f"--repeats={repeats}", f"--output={output}", folder=folder)
        return json.loads(output.read_text())  # type: ignore[no-any-return]


def time_updates(launch: Launch, per_host: int, preset: str, way: str, updates: int) -> Update:
    """Train for a few updates and read the times from the log."""
    # The cost model is for CPUs only.
    chosen = [f"--env_name={ENV_NAME}", f"--preset={preset}", "--device=cpu", *way.split()]
    config = parse_command_line(chosen)
    flags = [*chosen, f"--env_steps={updates * config.steps_per_update}", "--checkpoint_interval=1000000"]
    with tempfile.TemporaryDirectory() as folder:
        run(launch(per_host), "-m", "ppo", *flags, folder=folder)
        with open(Path(folder, "runs", ENV_NAME, "progress.csv"), newline="") as file:
            rows = list(csv.DictReader(file))
    ends = [float(row["time/seconds"]) for row in rows[1:]]
    seconds = statistics.median(end - start for start, end in itertools.pairwise(ends))
    phases = {phase: statistics.median(float(row[f"time/{phase}"]) for row in rows[2:]) for phase in PHASES}
    steps, epochs = config.steps_per_update, config.ppo.num_epochs
    gradient_steps = epochs * (steps // config.ppo.minibatch_size)
    return Update(preset, config.model.model_size, way, steps, epochs, gradient_steps, seconds, phases)


def run(launcher: Sequence[str], *arguments: str, folder: str) -> None:
    """Run a Python job to its end in a folder.

    Raises:
        RuntimeError: the job failed; the message has its output.
    """
    job = subprocess.run(
        [*launcher, sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, **VARIABLES},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if job.returncode:
        raise RuntimeError(f"{shlex.join(arguments)} ended with {job.returncode}:\n{job.stdout}{job.stderr}")


LISTEN = """
import socket
with socket.create_server(("", 5000)) as server:
    print("listening", flush=True)
    peer, _ = server.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for _ in range({pings}):
        peer.sendall(peer.recv(1))
    left = {size}
    while left:
        left -= len(peer.recv(min(left, 1 << 20)))
    peer.sendall(b"x")
"""
CALL = """
import socket, statistics, time
peer = socket.create_connection(("{host}", 5000))
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
round_trips = []
for _ in range({pings}):
    started = time.perf_counter()
    peer.sendall(b"x")
    peer.recv(1)
    round_trips.append(time.perf_counter() - started)
content = bytes({size})
started = time.perf_counter()
peer.sendall(content)
peer.recv(1)
seconds = time.perf_counter() - started - min(round_trips)
print(1e3 * statistics.median(round_trips), 8e-9 * {size} / seconds)
"""


def measure_cable(hosts: TwoHosts, *, pings: int = 100, size: int = 125_000_000) -> dict[str, float]:
    """Return the cable's limits as TCP sees them: the round trip of a byte, and the Gbit/s of `size` bytes."""
    first, second = hosts.names
    values = {"pings": pings, "size": size, "host": second}
    listen, call = (["python3", "-c", program.format(**values)] for program in (LISTEN, CALL))
    with subprocess.Popen(hosts.on(second, *listen), stdout=subprocess.PIPE) as listener:
        assert listener.stdout is not None
        listener.stdout.readline()
        answer = subprocess.run(
            hosts.on(first, *call), capture_output=True, text=True, check=True, timeout=120
        ).stdout.split()
    return {"round_trip_ms": float(answer[0]), "gigabits_per_second": float(answer[1])}


def processor() -> str:
    """Return the name of the processor."""
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
