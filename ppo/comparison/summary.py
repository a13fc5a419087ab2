"""The results of a group of runs, in the numbers that the table and the page show."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppo.comparison.curves import Curve
from ppo.comparison.statistics import Floats, bootstrap, interquartile_mean, mean


@dataclass(frozen=True)
class Estimate:
    """A statistic over runs, and the limits of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """A group of runs."""

    finals: Floats
    """Final returns, (runs,)."""
    mean: Estimate
    interquartile_mean: Estimate
    """This and the mean are of the final returns."""
    deviation: float | None
    """Standard deviation of the final returns over runs, as of a sample of them; None for one run."""
    steps: float
    minutes: float
    """This and the steps are medians over runs."""
    steps_to_goal: list[float]
    """Of each run that reached the goal; empty without a goal."""

    @property
    def median_steps_to_goal(self) -> float | None:
        """The median over the runs that reached the goal; None if none did."""
        return float(statistics.median(self.steps_to_goal)) if self.steps_to_goal else None


def summarize(curves: Sequence[Curve], goal: float | None) -> Summary:
    """Summarize the runs of a group; `goal` is a target return, or None."""
    finals = np.array([curve.final_return for curve in curves])
    of_mean, of_middle = (
        Estimate(float(statistic(finals)), *map(float, bootstrap(finals, statistic)))
        for statistic in (mean, interquartile_mean)
    )
    return Summary(
        finals,
        of_mean,
        of_middle,
        float(np.std(finals, ddof=1)) if len(finals) > 1 else None,
        float(statistics.median(curve.steps[-1] for curve in curves)),
        float(statistics.median(curve.minutes[-1] for curve in curves)),
        [] if goal is None else [steps for curve in curves if (steps := curve.steps_to(goal)) is not None],
    )
