"""A benchmark as Markdown."""

import statistics
from collections.abc import Callable, Iterable, Iterator

from ppo.settings import Refusal
from scripts.benchmarking.plan import Case, judged_cases
from scripts.benchmarking.programs import PHASES
from scripts.benchmarking.reach import Target, find_targets
from scripts.benchmarking.results import Benchmark, CaseResult, Round, Spread
from scripts.benchmarking.small_worlds import NUM_ENVS

BEGIN = "<!-- ./scripts/benchmark writes from here -->"
END = "<!-- to here -->"


def insert(report: str, document: str | None) -> str:
    """Return the document with the report between its two marks; a new document if there is none yet.

    Raises:
        Refusal: the document lacks the marks.
    """
    if document is None:
        document = f"# Benchmark\n\n{BEGIN}\n{END}\n"
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise Refusal(
            f"output must be a folder whose benchmark.md, if any, has the lines {BEGIN} and {END}, between which the "
            "report is written; add them, or choose another folder"
        )
    return f"{before}{BEGIN}\n\n{report}\n{END}{after}"


def markdown(benchmark: Benchmark, figure: str | None) -> str:
    """Return the report; `figure` is the figure's path relative to the report."""
    sections = {
        "Reach": reach_table(find_targets(benchmark)),
        "The program and the ideal": _speeds(benchmark),
        "The limits, per second and core": _limits(benchmark),
        "Where the time goes, seconds per update": _phases(benchmark),
        "Scaling": _scaling(benchmark),
        "Memory and start": f"{_memory(benchmark)}\n\n{_start(benchmark)}",
        "Stable-Baselines3": _stable_baselines3(benchmark),
        "Small worlds": _small_worlds(benchmark),
    }
    picture = f"![Speed, time per update and scaling]({figure})\n\n" if figure else ""
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    return f"{_about(benchmark)}\n\n{picture}{body}\n"


def reach_table(targets: Iterable[Target]) -> str:
    """Return a table of targets and measurements."""

    def row(target: Target) -> list[str]:
        digits = 3 if target.limit < 1.0 else 2 if target.limit < 6.0 else 1
        limit = f"{'at least' if target.at_least else 'at most'} {target.limit:g}{target.unit}"
        verdict = "met" if target.met else "**missed**"
        return [target.what, limit, f"{_spread(target.measured, digits)}{target.unit}", verdict]

    return _table(["what", "target", "measured", ""], map(row, targets))


def _about(benchmark: Benchmark) -> str:
    machine = benchmark.machine
    versions = "; ".join(
        f"{program}: " + ", ".join(f"{name} {version}" for name, version in found.items())
        for program, found in benchmark.versions.items()
    )
    doubt = "" if machine.was_quiet else " **The machine was not idle: do not trust these results.**"
    return (
        f"    {benchmark.command}\n\n"
        f"{benchmark.date}, commit {benchmark.commit}, {machine.processor} ({machine.architecture}, "
        f"{machine.cpu_capability}), cores {', '.join(map(str, machine.cores))}. Load average before: "
        f"{machine.load_average_before:g}. Time stolen by the hypervisor during the benchmark: "
        f"{benchmark.stolen_share:.1%}.{doubt}\n\n"
        f"Rounds: {len(benchmark.rounds)}. Numbers are medians over rounds, in brackets the lowest and the highest; "
        "ratios are taken within a round. A step is an agent step (4 frames), MB are 10^6 bytes.\n\n"
        f"{versions}."
    )


def _speeds(benchmark: Benchmark) -> str:
    return _table(
        ["", "steps per second", "ideal", "share"],
        (
            [
                _settings(case),
                _spread(benchmark.of_case(case.name, lambda c: c.program.steps_per_second), 1),
                _spread(benchmark.of_case(case.name, lambda c: c.ideal), 1),
                _spread(benchmark.of_case(case.name, lambda c: c.share_of_ideal), 3),
            ]
            for case in benchmark.cases
        ),
    )


def _limits(benchmark: Benchmark) -> str:
    """Show every measured way, averaged over ranks; the fastest of a kind is its limit."""
    rows = []
    for case in benchmark.cases:
        limits = benchmark.rounds[0].cases[case.name].limits
        for kind, ways in limits.ways.items():
            found = {way: benchmark.of_case(case.name, _rate(kind, way)) for way in ways}
            best = max(spread.median for spread in found.values())
            rows += [
                [case.name, kind, way, f"**{_spread(spread, 0)}**" if spread.median == best else _spread(spread, 0)]
                for way, spread in found.items()
            ]
    return _table(["", "of", "way", "rate"], rows)


def _rate(kind: str, way: str) -> Callable[[CaseResult], float]:
    return lambda c: statistics.fmean(c.limits.ways[kind][way])


def _phases(benchmark: Benchmark) -> str:
    """Show the seconds of each phase, with the ideal ones in the row below."""

    def rows() -> Iterator[list[str]]:
        for case in benchmark.cases:
            total = benchmark.of_case(case.name, lambda c: c.program.update_seconds)
            spent = [benchmark.of_case(case.name, _phase(phase)).median for phase in PHASES]
            yield [case.name, *(f"{seconds:.3f}" for seconds in spent), _spread(total, 3)]
            steps = case.config.steps_per_update
            ideal = [
                benchmark.of_case(case.name, _ideal_phase(phase, steps)).median
                for phase in ("env", "inference", "learn")
            ]
            cells = [f"{seconds:.3f}" for seconds in ideal]
            yield [f"{case.name}, ideal", *cells, *[""] * (len(PHASES) - len(cells)), f"{sum(ideal):.3f}"]

    return _table(["", *PHASES, "all"], rows())


def _phase(phase: str) -> Callable[[CaseResult], float]:
    return lambda c: c.program.phases[phase]


def _ideal_phase(phase: str, steps: int) -> Callable[[CaseResult], float]:
    return lambda c: c.limits.ideal_seconds(steps, c.program.epochs)[phase]


def _scaling(benchmark: Benchmark) -> str:
    cases = [case for case in benchmark.cases if case.ranks > 1 and benchmark.has_one_rank(case.preset)]
    if not cases:
        return ""
    return _table(
        ["", "steps per second over -np 1", "efficiency", "over that of the ideals"],
        (
            [
                _settings(case),
                _spread(benchmark.speed_up(case), 2),
                f"{benchmark.speed_up(case).median / case.ranks:.3f}",
                _spread(benchmark.share_of_the_ideal_speed_up(case), 3),
            ]
            for case in cases
        ),
    )


def _memory(benchmark: Benchmark) -> str:
    return _table(
        ["MB per rank, the largest", "environments per rank", "resident at most", "shared memory counted in part"],
        (
            [
                case.name,
                f"{case.config.ppo.num_envs / case.ranks:g}",
                _spread(benchmark.of_case(case.name, lambda c: max(rank.peak_rss for rank in c.program.ranks)), 0),
                _spread(benchmark.of_case(case.name, lambda c: max(rank.pss for rank in c.program.ranks)), 0),
            ]
            for case in benchmark.cases
        ),
    )


def _start(benchmark: Benchmark) -> str:
    started = judged_cases(benchmark.cases)[benchmark.cases[0].preset]
    first, second = (Spread.of(r.seconds_to_first_update[start] for r in benchmark.rounds) for start in (0, 1))
    return (
        f"Seconds from the command to the first update's row in `progress.csv`, {started.name}: "
        f"{_spread(first, 1)} in an empty folder, {_spread(second, 1)} at the second start in the same folder."
    )


def _stable_baselines3(benchmark: Benchmark) -> str:
    if not benchmark.stable_baselines3_ways:
        return ""
    names = {"cleanrl": "those of the preset `cleanrl`", "published": "its own for Atari"}
    speeds = _table(
        ["settings", "steps per second"],
        ([names[name], _spread(speed, 1)] for name, speed in benchmark.stable_baselines3_speeds.items()),
    )
    ways = ", ".join(f"{way} {rate:.1f}" for way, rate in benchmark.stable_baselines3_ways.items())
    return f"{speeds}\n\nIt ran in the fastest of these ways, tried once for half the time: {ways}."


def _small_worlds(benchmark: Benchmark) -> str:
    first = benchmark.rounds[0]
    costs = _table(
        [f"us of processor time for a step of one environment of {NUM_ENVS}", "bare", "in a block", "added"],
        (
            [
                name,
                _spread(benchmark.over_rounds(_block_cost(name, "bare")), 1),
                _spread(benchmark.over_rounds(_block_cost(name, "block")), 1),
                _spread(benchmark.added_by_a_block(name), 1),
            ]
            for name in first.block_costs
        ),
    )
    speeds = _table(
        ["steps per second", "program", "Stable-Baselines3", "ratio"],
        (
            [
                benchmark.ways_by_world[name].ours,
                _spread(benchmark.over_rounds(_speed_in(name)), 0),
                _spread(benchmark.over_rounds(_their_speed_in(name)), 0),
                _spread(benchmark.over_stable_baselines3_in(name), 2),
            ]
            for name in first.worlds
        ),
    )
    tried = [
        f"{name}: "
        + ", ".join(f"{way} {rate:,.0f}" for way, rate in (*ways.program.items(), *ways.stable_baselines3.items()))
        for name, ways in benchmark.ways_by_world.items()
    ]
    about = f"Both ran in their fastest ways, tried once for half the time. {'; '.join(tried)}."
    return "\n\n".join([*[costs] * bool(first.block_costs), *[speeds, about] * bool(first.worlds)])


def _block_cost(name: str, loop: str) -> Callable[[Round], float]:
    return lambda r: float(getattr(r.block_costs[name], loop))


def _speed_in(name: str) -> Callable[[Round], float]:
    return lambda r: r.worlds[name].program.steps_per_second


def _their_speed_in(name: str) -> Callable[[Round], float]:
    return lambda r: r.worlds[name].stable_baselines3


def _settings(case: Case) -> str:
    ppo = case.config.ppo
    return f"{case.name} ({ppo.num_envs} environments, minibatch {ppo.minibatch_size})"


def _spread(spread: Spread, digits: int) -> str:
    median, lowest, highest = (f"{n:,.{digits}f}" for n in (spread.median, spread.lowest, spread.highest))
    return median if lowest == highest else f"{median} ({lowest} to {highest})"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
