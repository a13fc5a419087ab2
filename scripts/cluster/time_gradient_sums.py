"""Time every way to sum gradients over the ranks of a job: which one suits this network?

    mpirun --hostfile hosts -np 32 python scripts/cluster/time_gradient_sums.py

A way is timed alone and within a gradient step: forward and backward pass of a share of a minibatch, then the sum.
Times are those of the slowest rank in milliseconds, medians over repeats in which all ways take turns.
"""

import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

# As in python -m ppo: one thread per rank.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium
import numpy as np
import torch
import tyro

from ppo.algorithm.flat_parameters import FlatParameters, num_parameters
from ppo.collectives import Collective
from ppo.collectives.abort_guard import AbortGuard
from ppo.collectives.gradient_sum import GradientSum, chosen_all_reduce, make_gradient_sum, share_memory
from ppo.collectives.mpi import connect
from ppo.config import MachineSettings, ModelSettings
from ppo.models.actor_critic import build_model

WAYS = {
    "shared memory": MachineSettings(),
    "shared memory, bfloat16": MachineSettings(gradient_wire="bfloat16"),
    "flat": MachineSettings(all_reduce="flat"),
    "hierarchical": MachineSettings(all_reduce="hierarchical"),
    "flat, bfloat16": MachineSettings(all_reduce="flat", gradient_wire="bfloat16"),
    "hierarchical, bfloat16": MachineSettings(all_reduce="hierarchical", gradient_wire="bfloat16"),
}
NUM_SUMS = 1
"""Additional numbers in the sum, as in training."""


@dataclass(frozen=True)
class Options:
    """Flags of this script."""

    networks: tuple[str, ...] = ("small", "large")
    """Values of --model_size."""
    minibatch_size: int = 256
    """Samples of a gradient step over all ranks."""
    repeats: int = 20
    """How often each way is timed."""
    output: Path | None = None
    """Write the results to this JSON file."""


@dataclass(frozen=True)
class Timing:
    """The times of one way."""

    network: str
    parameters: int
    way: str
    sum_ms: float
    step_ms: float
    """Forward, backward and sum."""
    compute_ms: float
    """Forward and backward."""


class GradientStep:
    """A network with its gradient, a minibatch and a way to sum."""

    def __init__(self, network: str, settings: MachineSettings, comm: Collective, samples: int) -> None:
        """Build all parts; a collective."""
        space = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        size = ModelSettings(model_size=network)  # type: ignore[arg-type]
        self._model = build_model(space, gymnasium.spaces.Discrete(6), size, seed=0)
        shared = share_memory(settings, comm, num_parameters(self._model), NUM_SUMS)
        if settings.all_reduce == "auto" and shared is None:
            raise RuntimeError("the ranks cannot share memory, so another way of summing would be timed")
        buffer = None if shared is None else shared.gradients[shared.hosts.within.rank]
        self._flat = FlatParameters(self._model, NUM_SUMS, buffer)
        self.parameters = self._flat.count
        self._way: GradientSum = make_gradient_sum(settings, comm, self._flat.buffer, self._flat.count, shared)
        pixels = torch.randint(256, (samples, 84, 84, 4), dtype=torch.uint8)
        self._observations = pixels.permute(0, 3, 1, 2)

    def sum(self) -> None:
        """Sum the existing gradient."""
        self._way.sum()

    def step(self) -> None:
        """Compute a gradient and sum it."""
        loss = self._loss()
        loss.backward()
        self._way.sum()

    def compute(self) -> None:
        """Compute a gradient."""
        self._loss().backward()

    def _loss(self) -> torch.Tensor:
        self._flat.start_gradient()
        logits, values = self._model(self._observations)
        return logits.square().mean() + values.square().mean()


def time_ways(network: str, comm: Collective, options: Options) -> list[Timing]:
    """Time all ways for one network, alternating; a collective."""
    samples = -(-options.minibatch_size // comm.size)
    ways = ways_for(comm.size, comm.split_by_host().count)
    steps = {way: GradientStep(network, settings, comm, samples) for way, settings in ways.items()}
    actions: dict[tuple[str, str], Callable[[], None]] = {("any", "compute"): next(iter(steps.values())).compute}
    for way, step in steps.items():
        actions |= {(way, "sum"): step.sum, (way, "step"): step.step}
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in actions}
    for repeat in range(options.repeats + 1):
        for key, action in actions.items():
            comm.barrier()
            started = time.perf_counter()
            action()
            if repeat:  # the first sum opens connections and fills caches
                seconds[key].append(time.perf_counter() - started)
    medians = {key: slowest_rank_median(own, comm) * 1e3 for key, own in seconds.items()}
    compute = medians["any", "compute"]
    return [
        Timing(network, step.parameters, way, medians[way, "sum"], medians[way, "step"], compute)
        for way, step in steps.items()
    ]


def ways_for(num_ranks: int, num_hosts: int) -> dict[str, MachineSettings]:
    """Return the ways available to a job: shared memory needs hosts with several ranks; bfloat16 is for the wire."""
    chosen = chosen_all_reduce(num_ranks, num_hosts)
    wires = {"flat": (), "shared": ("float32",), "hierarchical": ("float32", "bfloat16")}[chosen]
    return {
        way: settings
        for way, settings in WAYS.items()
        if settings.all_reduce != "auto" or (num_ranks > 1 and settings.gradient_wire in wires)
    }


def slowest_rank_median(seconds: list[float], comm: Collective) -> float:
    """Return the median over repeats of the slowest rank's time, on all ranks."""
    everyone = comm.gather(seconds)
    return comm.broadcast(statistics.median(np.max(everyone, 0).tolist()) if everyone is not None else 0.0)


def time_few_numbers(comm: Collective, repeats: int) -> float:
    """Return the milliseconds of a sum so small that only latency matters."""
    numbers, seconds = np.zeros(16, np.float32), []
    for _ in range(repeats + 1):
        comm.barrier()
        started = time.perf_counter()
        comm.sum_in_place(numbers)
        seconds.append(time.perf_counter() - started)
    return slowest_rank_median(seconds[1:], comm) * 1e3


def main() -> None:
    """Time, print a table on rank 0 and write the results."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    comm = connect()
    with AbortGuard(comm):
        hosts = comm.split_by_host().count
        few = time_few_numbers(comm, 10 * options.repeats)
        timings = [timing for network in options.networks for timing in time_ways(network, comm, options)]
        if comm.rank == 0:
            result = {
                "ranks": comm.size,
                "hosts": hosts,
                "auto": chosen_all_reduce(comm.size, hosts),
                "minibatch_size": options.minibatch_size,
                "repeats": options.repeats,
                "few_numbers_ms": few,
                "timings": [asdict(timing) for timing in timings],
            }
            print(f"{comm.size} ranks on {hosts} hosts, root {socket.gethostname()}; 16 numbers: {few:.3f} ms\n")
            print("| network | way | sum, ms | gradient step with it, ms | without, ms |\n|---|---|---|---|---|")
            for t in timings:
                print(f"| {t.network} | {t.way} | {t.sum_ms:.2f} | {t.step_ms:.2f} | {t.compute_ms:.2f} |")
            if options.output is not None:
                options.output.write_text(json.dumps(result, indent=1) + "\n")
        comm.barrier()


if __name__ == "__main__":
    main()
