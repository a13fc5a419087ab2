"""The benchmark's targets, for each preset on the largest measured number of ranks."""

from collections.abc import Iterator
from dataclasses import dataclass

from scripts.benchmarking.plan import Case, judged_cases
from scripts.benchmarking.results import Benchmark, Round, Spread, share_of_time
from scripts.benchmarking.small_worlds import NUM_ENVS

_SHARE_OF_IDEAL = {"atari": 0.90, "paper": 0.90, "cleanrl": 0.90}
_OVER_STABLE_BASELINES3 = 1.7
_OVER_ITS_PUBLISHED_SETTINGS = 4.5
_SHARE_OF_SPEED_UP = {"atari": 0.95, "paper": 0.95}
_MOST_COMMUNICATION = {"atari": 0.04, "paper": 0.04, "cleanrl": 0.08}
_MOST_SECONDS_TO_FIRST_UPDATE = 6.0
_MOST_MEGABYTES, _WITH_ENVIRONMENTS = 600.0, 8
_MOST_MICROSECONDS_ADDED = 15.0
_OVER_STABLE_BASELINES3_IN_A_SMALL_WORLD = 2.5


@dataclass(frozen=True)
class Target:
    """A target and its measurement."""

    what: str
    limit: float
    measured: Spread
    at_least: bool = True
    """Whether the limit is a lower bound."""
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the median meets the limit."""
        median = self.measured.median
        return median >= self.limit if self.at_least else median <= self.limit


def find_targets(benchmark: Benchmark) -> list[Target]:
    """Return the targets for which this benchmark has measurements."""
    judged = judged_cases(benchmark.cases)
    return [
        *_against_the_ideal(benchmark, judged),
        *_against_stable_baselines3(benchmark, judged),
        *_scaling(benchmark, {preset: case for preset, case in judged.items() if case.ranks > 1}),
        *_start_and_memory(benchmark),
        *_small_worlds(benchmark),
    ]


def _against_the_ideal(benchmark: Benchmark, judged: dict[str, Case]) -> Iterator[Target]:
    for preset, limit in _SHARE_OF_IDEAL.items():
        if preset in judged:
            share = benchmark.of_case(judged[preset].name, lambda c: c.share_of_ideal)
            yield Target(f"steps per second over the ideal, {_label(judged[preset])}", limit, share)


def _against_stable_baselines3(benchmark: Benchmark, judged: dict[str, Case]) -> Iterator[Target]:
    if not benchmark.stable_baselines3_ways:
        return
    if "cleanrl" in judged:
        ratio = benchmark.over_stable_baselines3(judged["cleanrl"], "cleanrl")
        what = f"steps per second over Stable-Baselines3, same network and settings, {_label(judged['cleanrl'])}"
        yield Target(what, _OVER_STABLE_BASELINES3, ratio)
    if "atari" in judged:
        ratio = benchmark.over_stable_baselines3(judged["atari"], "published")
        what = f"steps per second over Stable-Baselines3 with its published settings, {_label(judged['atari'])}"
        yield Target(what, _OVER_ITS_PUBLISHED_SETTINGS, ratio)


def _scaling(benchmark: Benchmark, judged: dict[str, Case]) -> Iterator[Target]:
    for preset, limit in _SHARE_OF_SPEED_UP.items():
        if preset in judged and benchmark.has_one_rank(preset):
            share = benchmark.share_of_the_ideal_speed_up(judged[preset])
            yield Target(f"speed-up over one rank, over that of the ideals, {_label(judged[preset])}", limit, share)
    for preset, limit in _MOST_COMMUNICATION.items():
        if preset in judged:
            share = benchmark.of_case(judged[preset].name, share_of_time("communicate", "wait"))
            what = f"waiting and communication, share of time, {_label(judged[preset])}"
            yield Target(what, limit, share, at_least=False)


def _start_and_memory(benchmark: Benchmark) -> Iterator[Target]:
    second_start = benchmark.over_rounds(lambda r: r.seconds_to_first_update[1])
    what = "from command to first update, second start"
    yield Target(what, _MOST_SECONDS_TO_FIRST_UPDATE, second_start, at_least=False, unit=" s")
    names = [c.name for c in benchmark.cases if c.config.ppo.num_envs == _WITH_ENVIRONMENTS * c.ranks]

    def most(measured: Round) -> float:
        return max(rank.peak_rss for name in names for rank in measured.cases[name].program.ranks)

    if names:
        what = f"memory per rank, {_WITH_ENVIRONMENTS} environments (the most that was resident at any time)"
        yield Target(what, _MOST_MEGABYTES, benchmark.over_rounds(most), at_least=False, unit=" MB")


def _small_worlds(benchmark: Benchmark) -> Iterator[Target]:
    for name in benchmark.rounds[0].block_costs:
        what = f"added to a step of a bare environment, {NUM_ENVS} of {name}"
        added = benchmark.added_by_a_block(name)
        yield Target(what, _MOST_MICROSECONDS_ADDED, added, at_least=False, unit=" us")
    for name in benchmark.rounds[0].worlds:
        what = f"steps per second over Stable-Baselines3, same network and sizes, {benchmark.ways_by_world[name].ours}"
        yield Target(what, _OVER_STABLE_BASELINES3_IN_A_SMALL_WORLD, benchmark.over_stable_baselines3_in(name))


def _label(case: Case) -> str:
    return f"`{case.preset}`, -np {case.ranks}"
