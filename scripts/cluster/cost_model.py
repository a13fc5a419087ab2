"""The cost of an update on many ranks: a model with few parameters, fitted to the results of measure_network.py.

    seconds = work of a rank + wait for the slowest + gradient steps x sum of gradients + sums of few numbers

The work is a rank's share of steps, each at the measured cost of emulator, inference and learning. The wait grows like
the expected maximum of one standard normal per rank. Gradients are summed in shared memory within each host, then
between hosts in a ring, each of whose steps costs a latency and the time of its bytes. Two hosts are the smallest ring,
and the only one measured. Milliseconds for messages, seconds for updates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALL_SUMS = 10
"""Approximate number of small sums and gathers in an update: moments of advantages and pixels, logged terms of every
epoch, episodes, clocks, requests."""
BYTES = {"float32": 4, "bfloat16": 2}
WAYS = {"flat": "float32", "flat, bfloat16": "bfloat16"}
"""The measured ways to which each wire format's cost is fitted: one rank on each of two hosts."""


@dataclass(frozen=True)
class Network:
    """The network between hosts, as TCP sees it."""

    round_trip_ms: float
    gigabits_per_second: float


@dataclass(frozen=True)
class Wire:
    """The cost of a gradient sum over two hosts in a format: round trips, times on the wire, processor time per MB."""

    round_trips: float
    wire_times: float
    ms_per_megabyte: float
    worst_error: float
    """Largest relative error of the fit."""

    def ms(self, network: Network, megabytes: float, num_hosts: int) -> float:
        """Return the milliseconds of a ring over `num_hosts` hosts.

        A ring of H hosts takes H - 1 times the messages of a ring of two, and 2 (H - 1) / H times the bytes per host.
        """
        if num_hosts == 1:
            return 0.0
        messages, volume = num_hosts - 1, 2 * (num_hosts - 1) / num_hosts
        latency = self.round_trips * network.round_trip_ms * messages
        return latency + volume * (
            self.wire_times * on_the_wire_ms(network, megabytes) + self.ms_per_megabyte * megabytes
        )


@dataclass(frozen=True)
class Work:
    """The costs of a preset's update on one core, in seconds, measured with both cores of the machine loaded."""

    env_per_step: float
    inference_per_step: float
    learn_per_sample: float
    """Per step and epoch."""
    moments_per_step: float
    """Moments of advantages and pixels, which the log counts as communication."""
    constant: float
    """Per update: logs and time between the phases."""
    relative_wait: float
    """Mean wait of two ranks for each other, as a share of their work."""


@dataclass(frozen=True)
class Settings:
    """Sizes of a job."""

    ranks: int
    num_envs: int
    rollout_steps: int
    minibatch_size: int
    num_epochs: int

    @property
    def steps(self) -> int:
        """Agent steps per update."""
        return self.num_envs * self.rollout_steps

    @property
    def gradient_steps(self) -> int:
        """Gradient sums per update."""
        return self.num_epochs * (self.steps // self.minibatch_size)


@dataclass(frozen=True)
class Model:
    """The whole model, for one network size."""

    megaparameters: float
    work: Work
    wires: dict[str, Wire]
    shared_memory_ms: float
    """The sum in memory shared by the ranks of a host; each reads and adds the same amount for any number of ranks.

    The barrier after the weight update counts as waiting.
    """

    def seconds(self, settings: Settings, num_hosts: int, network: Network, wire: str) -> float:
        """Return the predicted seconds of an update."""
        busy = self.busy_seconds(settings)
        wait = self.work.relative_wait * expected_maximum(settings.ranks) / expected_maximum(2) * busy
        return busy + wait + self.communication_seconds(settings, num_hosts, network, wire)

    def busy_seconds(self, settings: Settings) -> float:
        """Return the seconds of a rank's own work."""
        # Where environments do not divide evenly, ranks differ by one; the largest share counts.
        steps = -(-settings.num_envs // settings.ranks) * settings.rollout_steps
        work = self.work
        acting = work.env_per_step + work.inference_per_step + work.moments_per_step
        return steps * (acting + settings.num_epochs * work.learn_per_sample) + work.constant

    def communication_seconds(self, settings: Settings, num_hosts: int, network: Network, wire: str) -> float:
        """Return the seconds spent on sums if all ranks arrive at the same time."""
        within = self.shared_memory_ms if settings.ranks > num_hosts else 0.0
        between = self.wires[wire].ms(network, BYTES[wire] * self.megaparameters, num_hosts)
        few = math.log2(num_hosts) * network.round_trip_ms
        return (settings.gradient_steps * (within + between) + SMALL_SUMS * few) / 1e3


def on_the_wire_ms(network: Network, megabytes: float) -> float:
    """Return the milliseconds that the bytes take on the wire at full bandwidth."""
    return 8.0 * megabytes / network.gigabits_per_second


def expected_maximum(count: int) -> float:
    """Return the mean of the largest of `count` standard normal numbers."""
    if count == 1:
        return 0.0
    x = np.linspace(-8.0, 8.0, 4001)
    distribution = np.array([NormalDist().cdf(value) for value in x]) ** count
    return float(8.0 - np.trapezoid(distribution, x))


def fit_wire(networks: Sequence[Network], megabytes: Sequence[float], ms: Sequence[float]) -> Wire:
    """Fit a wire format to measured sums over two hosts by least squares of the relative error.

    A negative coefficient, which noise can cause where its share is small, is set to 0 and the others are refitted.
    """
    pairs = list(zip(networks, megabytes, strict=True))
    columns = np.array([[n.round_trip_ms, on_the_wire_ms(n, m), m] for n, m in pairs])
    relative = columns / np.array(ms)[:, None]
    used = [0, 1, 2]
    while True:
        found: NDArray[np.float64] = np.linalg.lstsq(relative[:, used], np.ones(len(ms)), rcond=None)[0]
        if (found >= 0.0).all():
            break
        del used[int(found.argmin())]
    values = np.zeros(3)
    values[used] = found
    errors = np.abs(relative @ values - 1.0)
    return Wire(*values.tolist(), worst_error=float(errors.max()))


def fit(measured: dict[str, Any], preset: str) -> Model:
    """Fit a preset's model to the JSON of measure_network.py."""
    alone, pair = ({u["preset"]: u for u in job["updates"]}[preset] for job in measured["one_host"])
    sums = measured["one_host"][1]["sums"][0]
    timings = {t["way"]: t for t in sums["timings"] if t["network"] == pair["network"]}
    on_one_host = timings["shared memory"]["sum_ms"]
    sum_seconds = (pair["gradient_steps"] * on_one_host + SMALL_SUMS * sums["few_numbers_ms"]) / 1e3
    return Model(
        timings["flat"]["parameters"] / 1e6,
        fit_work(alone, pair, sum_seconds),
        {wire: fit_wire(*sums_between_hosts(measured, way, BYTES[wire])) for way, wire in WAYS.items()},
        on_one_host,
    )


def fit_work(alone: dict[str, Any], pair: dict[str, Any], sum_seconds: float) -> Work:
    """Derive the costs of steps and samples, and the wait, from updates of one rank and of two ranks on one host.

    Args:
        alone: an update of one rank, whose `communicate` phase is only the computation of moments.
        pair: the same update on two ranks.
        sum_seconds: the time of the sums alone in the pair's update.
    """
    phases, steps = pair["phases"], pair["steps"] / 2
    moments = alone["phases"]["communicate"] / 2
    busy = phases["env"] + phases["inference"] + phases["learn"] + moments
    return Work(
        env_per_step=phases["env"] / steps,
        inference_per_step=phases["inference"] / steps,
        learn_per_sample=phases["learn"] / steps / pair["epochs"],
        moments_per_step=moments / steps,
        constant=max(0.0, pair["seconds"] - busy - max(0.0, phases["communicate"] - moments)),
        relative_wait=max(0.0, phases["communicate"] - moments - sum_seconds) / busy,
    )


def sums_between_hosts(
    measured: dict[str, Any], way: str, bytes_per_number: int
) -> tuple[list[Network], list[float], list[float]]:
    """Return networks, MB and milliseconds of all sums over one rank on each of two hosts."""
    networks, megabytes, ms = [], [], []
    for pair in measured["two_hosts"]:
        for job in pair["sums"]:
            for timing in job["timings"]:
                if job["ranks"] == 2 and timing["way"] == way:
                    networks.append(Network(**pair["cable"]))
                    megabytes.append(bytes_per_number * timing["parameters"] / 1e6)
                    ms.append(timing["sum_ms"])
    return networks, megabytes, ms
