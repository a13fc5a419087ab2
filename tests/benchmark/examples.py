"""A benchmark with numbers that can be worked out by hand: an update of 4,096 steps and 3 epochs."""

from scripts.benchmarking.limits import Limits
from scripts.benchmarking.machine import Machine
from scripts.benchmarking.plan import Settings, make_cases
from scripts.benchmarking.processes import Rank
from scripts.benchmarking.programs import ProgramRun
from scripts.benchmarking.results import Benchmark, CaseResult, Round

CASES = make_cases(Settings(presets=("atari",), ranks=(1, 2), stable_baselines3=False), 2, [])


def limits(ranks, step_seconds=0.001):
    """Half of an ideal step's time is emulation, a quarter inference, a quarter learning in 3 epochs."""
    rates = {"env": 2 / step_seconds, "inference": 4 / step_seconds, "training": 12 / step_seconds}
    ways = {kind: {"slow": [rate / 2] * ranks, "fast": [rate] * ranks} for kind, rate in rates.items()}
    return Limits(ways)


def program(steps_per_second, ranks, *, communicate=0.01, wait=0.01, peak_rss=400.0):
    """A run whose update takes as long as its speed demands."""
    seconds = 4096 / steps_per_second
    spent = {"env": 0.5, "inference": 0.2, "learn": 0.2, "communicate": communicate, "wait": wait, "save": 0.0}
    phases = {phase: share * seconds for phase, share in spent.items()}
    return ProgramRun(
        steps_per_second=steps_per_second,
        updates=5,
        epochs=3.0,
        update_seconds=seconds,
        phases={**phases, "else": seconds - sum(phases.values())},
        ranks=[Rank([core], peak_rss, peak_rss / 2) for core in range(ranks)],
    )


def benchmark(*speeds, step_seconds=(), starts=(7.0, 5.0), stable_baselines3=None, cases=None, **of_program):
    """A round for each triple of steps per second: -np 1, -np 2, and -np 2 with twice the work."""
    cases = CASES if cases is None else cases
    step_seconds = step_seconds or [0.001] * len(speeds)
    rounds = [
        Round(
            {
                # The machine was faster before by as much as it was slower after.
                case.name: CaseResult(
                    limits(case.ranks, seconds / 1.2),
                    program(speed, case.ranks, **of_program),
                    limits(case.ranks, seconds / 0.8),
                )
                for case, speed in zip(cases, of_cases, strict=True)
            },
            list(starts),
            dict(stable_baselines3 or {}),
        )
        for of_cases, seconds in zip(speeds, step_seconds, strict=True)
    ]
    return Benchmark(
        date="2026-01-01",
        command="./scripts/benchmark",
        commit="abc1234",
        machine=Machine("A Processor", "x86_64", "AVX2", [0, 1], 0.1),
        stolen_share=0.01,
        versions={"This program": {"torch": "2.13.0"}},
        settings=Settings(),
        cases=cases,
        stable_baselines3_ways={"SubprocVecEnv, 1 thread": 250.0} if stable_baselines3 else {},
        rounds=rounds,
    )
