"""Worlds whose steps take microseconds: the cost of a block, and the program compared with Stable-Baselines3.

Both train the same network with the same sizes, each in the fastest of the ways tried: numbers of ranks for the
program, the ways of `stable_baselines3.py` for Stable-Baselines3.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarking import stable_baselines3
from scripts.benchmarking.jobs import Job, mpirun
from scripts.benchmarking.plan import SHARE_OF_TIME_FOR_A_TRIAL, Case, Settings
from scripts.benchmarking.programs import ProgramRun, measure_program, steps_per_second
from scripts.benchmarking.stable_baselines3 import Way

NUM_ENVS = 64
"""Number of environments in the measured block."""


@dataclass(frozen=True)
class BlockCost:
    """Processor time of a step of one environment among many, in microseconds."""

    bare: float
    """In a plain loop over environments of `gymnasium.make`."""
    block: float
    """In our block."""

    @property
    def added(self) -> float:
        """The cost that the block adds."""
        return self.block - self.bare


@dataclass(frozen=True)
class Ways:
    """Steps per second of the ways tried to train a world, fastest first."""

    program: dict[str, float]
    """By the name of the case."""
    stable_baselines3: dict[str, float]
    """By the name of the way."""

    @property
    def ours(self) -> str:
        """The case in which the program is fastest."""
        return next(iter(self.program))

    @property
    def theirs(self) -> Way:
        """The way in which Stable-Baselines3 is fastest."""
        name = next(iter(self.stable_baselines3))
        return next(way for way in stable_baselines3.WAYS if str(way) == name)


@dataclass(frozen=True)
class Comparison:
    """Both programs in one round."""

    program: ProgramRun
    stable_baselines3: float
    """Steps per second."""

    @property
    def ratio(self) -> float:
        """Steps per second of the program over those of Stable-Baselines3."""
        return self.program.steps_per_second / self.stable_baselines3


def measure_block_cost(env_name: str, core: int, seconds: float) -> BlockCost:
    """Measure what our block adds to a step, on one core.

    Raises:
        JobError: the measurement failed.
    """
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "block_cost.json"
        arguments = ["-m", "scripts.benchmarking.block_cost", str(output), str(seconds), env_name]
        with Job(mpirun([core], arguments), Path(name), OMP_NUM_THREADS="1") as job:
            job.wait()
        return BlockCost(**json.loads(output.read_text()))


def try_ways(cases: Sequence[Case], cores: Sequence[int], settings: Settings) -> Ways:
    """Train a world briefly in every way.

    Args:
        cases: the world on each number of ranks.
        cores: the available cores.
        settings: how long to measure.

    Raises:
        JobError: a program ended by itself.
    """
    ours = {case.name: steps_per_second(case, cores, settings, share=SHARE_OF_TIME_FOR_A_TRIAL) for case in cases}
    theirs = stable_baselines3.find_fastest_way(settings, stable_baselines3.settings_like(cases[0].config))
    return Ways(dict(sorted(ours.items(), key=lambda pair: -pair[1])), {str(way): rate for way, rate in theirs.items()})


def compare(cases: Sequence[Case], ways: Ways, cores: Sequence[int], settings: Settings) -> Comparison:
    """Measure both programs in their fastest ways, one after the other.

    Raises:
        JobError: a program ended by itself.
    """
    (fastest,) = (case for case in cases if case.name == ways.ours)
    training = stable_baselines3.settings_like(fastest.config)
    return Comparison(
        measure_program(fastest, cores, settings, ideal=ways.program[ways.ours]),
        stable_baselines3.measure(training, ways.theirs, settings),
    )
