"""The results of a benchmark: raw measurements of every round, and numbers derived from them.

The machine's speed varies between rounds, so a ratio is computed within each round, where its two sides were measured
in succession; its median is then taken over rounds.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from scripts.benchmarking.limits import Limits
from scripts.benchmarking.machine import Machine
from scripts.benchmarking.plan import Case, Settings, SettingsName, case_name
from scripts.benchmarking.programs import ProgramRun
from scripts.benchmarking.small_worlds import BlockCost, Comparison, Ways


@dataclass(frozen=True)
class Spread:
    """A quantity measured once in each round."""

    median: float
    lowest: float
    highest: float

    @staticmethod
    def of(values: Iterable[float]) -> "Spread":
        """Summarise the values of all rounds."""
        values = list(values)
        return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class CaseResult:
    """A case in one round: the machine's limits, the program, then the limits again.

    If the machine's speed drifts linearly, the mean of both limits is right for the program.
    """

    before: Limits
    program: ProgramRun
    after: Limits

    @property
    def limits(self) -> Limits:
        """The limits of the cores while the program ran."""
        return Limits.mean([self.before, self.after])

    @property
    def ideal(self) -> float:
        """Steps per second of the ideal program."""
        return self.limits.ideal_steps_per_second(self.program.epochs)

    @property
    def share_of_ideal(self) -> float:
        """The program's steps per second over the ideal."""
        return self.program.steps_per_second / self.ideal


@dataclass(frozen=True)
class Round:
    """Every quantity, measured once."""

    cases: dict[str, CaseResult]
    """By the name of the case."""
    seconds_to_first_update: list[float]
    """For a first and a second start of the first preset on the most ranks."""
    stable_baselines3: dict[SettingsName, float]
    """Steps per second by settings."""
    block_costs: dict[str, BlockCost] = field(default_factory=dict)
    """By small world."""
    worlds: dict[str, Comparison] = field(default_factory=dict)
    """Comparison of both programs by small world, if Stable-Baselines3 was measured."""


@dataclass(frozen=True)
class Benchmark:
    """A completed benchmark."""

    date: str
    command: str
    commit: str
    machine: Machine
    stolen_share: float
    """Share of the cores' time that the hypervisor gave to others meanwhile."""
    versions: dict[str, dict[str, str]]
    """By program, then by library."""
    settings: Settings
    cases: list[Case]
    stable_baselines3_ways: dict[str, float]
    """Steps per second of the ways tried to run it, fastest first."""
    rounds: list[Round]
    ways_by_world: dict[str, Ways] = field(default_factory=dict)
    """The ways tried to train each small world."""

    def has_one_rank(self, preset: str) -> bool:
        """Return whether a preset was measured on one rank."""
        return any(case.name == case_name(preset, 1) for case in self.cases)

    def over_rounds(self, number: Callable[[Round], float]) -> Spread:
        """Return the spread of a number over the rounds."""
        return Spread.of(map(number, self.rounds))

    def of_case(self, name: str, number: Callable[[CaseResult], float]) -> Spread:
        """Return the spread of a case's number over the rounds."""
        return self.over_rounds(lambda r: number(r.cases[name]))

    def speed_up(self, case: Case) -> Spread:
        """Return the case's steps per second over those of its preset on one rank."""
        return self.over_rounds(lambda r: _speed_up(r, case))

    def share_of_the_ideal_speed_up(self, case: Case) -> Spread:
        """Return `speed_up` over the same ratio of the two ideals."""
        return self.over_rounds(lambda r: _speed_up(r, case) / _ideal_speed_up(r, case))

    def over_stable_baselines3_in(self, world: str) -> Spread:
        """Return the program's steps per second in a small world over those of Stable-Baselines3."""
        return self.over_rounds(lambda r: r.worlds[world].ratio)

    def added_by_a_block(self, world: str) -> Spread:
        """Return the microseconds that our block adds to a step of a small world."""
        return self.over_rounds(lambda r: r.block_costs[world].added)

    @property
    def stable_baselines3_speeds(self) -> dict[SettingsName, Spread]:
        """Steps per second of Stable-Baselines3 by settings; none if it was not measured."""
        names = self.rounds[0].stable_baselines3
        return {name: Spread.of(r.stable_baselines3[name] for r in self.rounds) for name in names}

    def over_stable_baselines3(self, case: Case, settings_name: SettingsName) -> Spread:
        """Return the case's steps per second over those of Stable-Baselines3."""
        return self.over_rounds(lambda r: _speed(r, case.name) / r.stable_baselines3[settings_name])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data for JSON, with each case's steps per second and ideal over the rounds."""
        data = dataclasses.asdict(self)
        data["settings"]["output"] = None if self.settings.output is None else str(self.settings.output)
        data["cases"] = {case.name: " ".join(case.flags) for case in self.cases}
        data["summary"] = {
            case.name: {
                "steps_per_second": dataclasses.asdict(self.of_case(case.name, lambda c: c.program.steps_per_second)),
                "ideal_steps_per_second": dataclasses.asdict(self.of_case(case.name, lambda c: c.ideal)),
                "share_of_ideal": dataclasses.asdict(self.of_case(case.name, lambda c: c.share_of_ideal)),
            }
            for case in self.cases
        }
        return data


def share_of_time(*phases: str) -> Callable[[CaseResult], float]:
    """Return a function that computes the share of an update's time spent in these phases."""
    return lambda c: sum(c.program.phases[phase] for phase in phases) / c.program.update_seconds


def _speed(measured: Round, name: str) -> float:
    return measured.cases[name].program.steps_per_second


def _speed_up(measured: Round, case: Case) -> float:
    return _speed(measured, case.name) / _speed(measured, case_name(case.preset, 1))


def _ideal_speed_up(measured: Round, case: Case) -> float:
    return measured.cases[case.name].ideal / measured.cases[case_name(case.preset, 1)].ideal
