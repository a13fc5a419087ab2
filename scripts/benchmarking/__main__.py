"""`./scripts/benchmark`: measure this machine's limits, the program and Stable-Baselines3, and write the report.

Flags after `--` go to the program: ./scripts/benchmark --quick -- --num_envs=128
"""

import dataclasses
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import NoReturn

import tyro

from ppo.outputs.folders import require_writable
from ppo.settings import Refusal
from scripts.benchmarking import figure, report, small_worlds, stable_baselines3
from scripts.benchmarking.jobs import JobError
from scripts.benchmarking.limits import measure_limits
from scripts.benchmarking.machine import commit, describe_machine, software, stolen_seconds, warn_of_load
from scripts.benchmarking.plan import QUICK, RIVALS, Case, Settings, judged_cases, make_cases, make_world_cases
from scripts.benchmarking.processes import available_cores
from scripts.benchmarking.programs import measure_program, seconds_to_first_update
from scripts.benchmarking.reach import find_targets
from scripts.benchmarking.results import Benchmark, CaseResult, Round
from scripts.benchmarking.small_worlds import Ways
from scripts.benchmarking.stable_baselines3 import Way

FAILED, REFUSED, INTERRUPTED, TERMINATED = 1, 2, 130, 143
DOCUMENT, DATA, PICTURE = "benchmark.md", "measurements/benchmark.json", "figures/benchmark.png"


class Terminated(KeyboardInterrupt):
    """Raised on SIGTERM; not a SystemExit, since a world that raises one while it is checked is refused."""


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark and return its exit code."""
    own, flags = split(arguments)
    settings = tyro.cli(
        Settings,
        prog="./scripts/benchmark",
        description=(
            "Measure this machine's limits, the program and Stable-Baselines3 in turns. Nothing else should run. Flags "
            "after -- go to the program."
        ),
        args=own,
        default=QUICK if "--quick" in own else Settings(),
    )
    try:
        run(settings, flags, shlex.join(["./scripts/benchmark", *arguments]))
    except Refusal as refusal:
        print(f"ppo: {refusal}", file=sys.stderr)
        return REFUSED
    except JobError as error:
        print(f"ppo: {error}", file=sys.stderr)
        return FAILED
    except Terminated:
        return TERMINATED
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the flags at `--`."""
    arguments = list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:end], arguments[end + 1 :]


def run(settings: Settings, flags: Sequence[str], command: str) -> None:
    """Measure, print and write.

    Raises:
        Refusal: a setting cannot be used; nothing has been measured.
        JobError: a measurement failed.
    """
    if sys.platform != "linux":
        raise Refusal(f"the benchmark needs Linux, which can pin ranks to cores, got {sys.platform}")
    cores = available_cores()
    cases = make_cases(settings, len(cores), flags)
    cores = cores[: max(case.ranks for case in cases)]
    worlds = make_world_cases(settings, len(cores))
    if settings.output is not None:
        require_writable("output", settings.output)
        report.insert("", _existing_document(settings.output))
    machine = describe_machine(cores)
    warn_of_load(machine)
    if settings.stable_baselines3:
        stable_baselines3.set_up()
    os.sched_setaffinity(0, cores)  # measured processes inherit it
    stolen, began = stolen_seconds(), time.monotonic()
    ways, ways_by_world = {}, {}
    if settings.stable_baselines3 and RIVALS.keys() & judged_cases(cases).keys():
        ways = stable_baselines3.find_fastest_way(settings)
    for name in worlds if settings.stable_baselines3 else ():
        ways_by_world[name] = small_worlds.try_ways(worlds[name], cores, settings)
        print(f"{name}: fastest are {ways_by_world[name].ours} and {ways_by_world[name].theirs}", flush=True)
    rounds = []
    for number in range(1, settings.repeats + 1):
        print(f"round {number} of {settings.repeats}", flush=True)
        measured = measure_round(settings, cases, cores, next(iter(ways), None))
        rounds.append(measure_worlds(measured, settings, worlds, cores, ways_by_world))
    theirs = {"Stable-Baselines3": stable_baselines3.versions()} if settings.stable_baselines3 else {}
    benchmark = Benchmark(
        date=date.today().isoformat(),
        command=command,
        commit=commit(),
        machine=machine,
        stolen_share=(stolen_seconds() - stolen) / (time.monotonic() - began) / (os.cpu_count() or 1),
        versions={"This program": software(), **theirs},
        settings=settings,
        cases=cases,
        stable_baselines3_ways={str(way): rate for way, rate in ways.items()},
        rounds=rounds,
        ways_by_world=ways_by_world,
    )
    if settings.output is None:
        print(f"\n{report.markdown(benchmark, figure=None)}")
    else:
        write(benchmark, settings.output)
        print(f"\n{report.reach_table(find_targets(benchmark))}\n\nwritten to {settings.output}")


def measure_round(settings: Settings, cases: Sequence[Case], cores: Sequence[int], way: Way | None) -> Round:
    """Measure everything once; quantities to be compared are measured in succession.

    Raises:
        JobError: a measurement failed.
    """
    judged = judged_cases(cases)
    started = judged[cases[0].preset]
    starts = seconds_to_first_update(started, cores)
    print(f"{started.name}: {starts[0]:.1f} s to the first update, {starts[1]:.1f} s at the second start", flush=True)
    results, others = {}, {}
    for case in cases:
        before = measure_limits(case, cores, settings.limit_seconds)
        ideal = before.ideal_steps_per_second(case.config.ppo.num_epochs)
        program = measure_program(case, cores, settings, ideal=ideal)
        after = before if settings.quick else measure_limits(case, cores, settings.limit_seconds)
        result = CaseResult(before, program, after)
        results[case.name] = result
        speed = result.program.steps_per_second
        print(f"{case.name}: {speed:.1f} steps/s, {result.share_of_ideal:.3f} of {result.ideal:.1f}", flush=True)
        name = RIVALS.get(case.preset)
        if way is not None and name is not None and case is judged[case.preset]:
            others[name] = stable_baselines3.measure(name, way, settings)
            print(f"Stable-Baselines3, {name}: {others[name]:.1f} steps/s", flush=True)
    return Round(results, starts, others)


def measure_worlds(
    measured: Round,
    settings: Settings,
    worlds: Mapping[str, Sequence[Case]],
    cores: Sequence[int],
    ways_by_world: Mapping[str, Ways],
) -> Round:
    """Return the round with each small world measured once.

    Raises:
        JobError: a measurement failed.
    """
    costs, comparisons = {}, {}
    for name, cases in worlds.items():
        costs[name] = small_worlds.measure_block_cost(name, cores[0], settings.limit_seconds)
        print(f"{name}: a block adds {costs[name].added:.1f} us to the {costs[name].bare:.1f} of a step", flush=True)
        if name in ways_by_world:
            comparisons[name] = small_worlds.compare(cases, ways_by_world[name], cores, settings)
            ours, theirs = comparisons[name].program.steps_per_second, comparisons[name].stable_baselines3
            print(f"{name}: {ours:.0f} steps/s, Stable-Baselines3 {theirs:.0f}", flush=True)
    return dataclasses.replace(measured, block_costs=costs, worlds=comparisons)


def write(benchmark: Benchmark, output: Path) -> None:
    """Write the report as Markdown, JSON and a figure to a folder."""
    reach = [{**dataclasses.asdict(target), "met": target.met} for target in find_targets(benchmark)]
    for name in (DATA, PICTURE):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
    (output / DATA).write_text(json.dumps({**benchmark.to_dict(), "reach": reach}, indent=1) + "\n")
    figure.draw(benchmark, output / PICTURE)
    text = report.markdown(benchmark, figure=PICTURE)
    (output / DOCUMENT).write_text(report.insert(text, _existing_document(output)))


def terminate(*_: object) -> NoReturn:
    """End the benchmark and the job that it measures."""
    raise Terminated


def _existing_document(output: Path) -> str | None:
    path = output / DOCUMENT
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    # Otherwise the job under measurement would outlive the benchmark.
    signal.signal(signal.SIGTERM, terminate)
    sys.exit(main(sys.argv[1:]))
