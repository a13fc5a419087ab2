"""The limits of the machine for a case, and the steps per second that they allow.

Rates are units per second of one core while the cores of all ranks do the same work: environment steps, inference
samples, training samples.
"""

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarking.jobs import Job, mpirun
from scripts.benchmarking.plan import Case

Ways = dict[str, list[float]]
"""Every rank's rate in rank order, by the way of doing the work."""


@dataclass(frozen=True)
class Limits:
    """The maximum rates of the cores."""

    ways: dict[str, Ways]
    """By kind of work: `env`, `inference` and `training`."""

    @property
    def rates(self) -> dict[str, float]:
        """The rate of one core at each kind of work in the fastest way, averaged over ranks."""
        return {kind: max(map(statistics.fmean, ways.values())) for kind, ways in self.ways.items()}

    @property
    def ranks(self) -> int:
        """Number of ranks measured at the same time."""
        return len(next(iter(self.ways["env"].values())))

    @staticmethod
    def mean(measurements: Sequence["Limits"]) -> "Limits":
        """Return every rank's mean rates over several measurements of one case."""
        return Limits(
            {
                kind: {
                    way: [
                        statistics.fmean(rates)
                        for rates in zip(*(m.ways[kind][way] for m in measurements), strict=True)
                    ]
                    for way in ways
                }
                for kind, ways in measurements[0].ways.items()
            }
        )

    def ideal_steps_per_second(self, epochs: float) -> float:
        """Return the ideal steps per second on these ranks; see the function of the same name."""
        return ideal_steps_per_second(**self.rates, ranks=self.ranks, epochs=epochs)

    def ideal_seconds(self, steps: int, epochs: float) -> dict[str, float]:
        """Return the seconds per phase, named as in progress.csv, that `steps` of the whole job take ideally."""
        rates, share = self.rates, steps / self.ranks
        return {
            "env": share / rates["env"],
            "inference": share / rates["inference"],
            "learn": share * epochs / rates["training"],
        }


def ideal_steps_per_second(*, ranks: int, env: float, inference: float, training: float, epochs: float) -> float:
    """Return the steps per second of ranks that do only emulation and network passes.

    Every step is emulated once, passed through inference once and learnt from once per epoch, one after the other. The
    work is assumed to divide evenly, so that no rank waits.
    """
    return ranks / (1.0 / env + 1.0 / inference + epochs / training)


def measure_limits(case: Case, cores: Sequence[int], seconds: float) -> Limits:
    """Measure each limit for a case for some seconds on these cores, one rank per core.

    Raises:
        JobError: the measurement failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = ["-m", "scripts.benchmarking.probe", str(folder / "limits.json"), str(seconds), *case.flags]
        with Job(mpirun(cores[: case.ranks], arguments), folder, OMP_NUM_THREADS="1") as job:
            job.wait()
        return Limits(json.loads((folder / "limits.json").read_text()))
