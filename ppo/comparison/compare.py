"""`--mode=compare`: write the figure, the table and the page of some runs, and print the table."""

import shlex
from collections.abc import Mapping, Sequence

from ppo.comparison.curves import Curve, find_curves, grouped
from ppo.comparison.page import comparison_page
from ppo.comparison.summary import summarize
from ppo.config import Config, RunSettings, as_flags, default_model_name
from ppo.outputs.display import print_line
from ppo.outputs.folders import require_writable, write_whole
from ppo.settings import Refusal

_NAME = "comparison"
_SETTINGS = ("model_name", "run_dir", "asset_dir", "stop_at_return")


def compare(config: Config, runs: Sequence[str]) -> int:
    """Compare runs: write a figure, a table and a page for a browser, print the table, and return the exit code.

    Raises:
        Refusal: a run cannot be found or read, or the folder cannot be written.
    """
    goal = config.run.stop_at_return
    groups = grouped(find_curves(runs, config.run.run_dir))
    folder = config.run.asset_dir / (config.run.model_name or default_model_name("-vs-".join(groups)))
    require_writable("asset_dir", folder)
    from ppo.comparison.figure import draw  # importing matplotlib takes a second

    table = table_of(groups, goal)
    given, usual = vars(config.run), vars(RunSettings())
    changed = {name: given[name] for name in _SETTINGS if given[name] != usual[name]}
    command = shlex.join(["python", "-m", "ppo", "--mode=compare", "--runs", *runs, *as_flags(changed)])
    page = f"{table}\n\n![Learning curves and final returns]({_NAME}.png)\n\n    {command}\n"
    paths = [folder / f"{_NAME}{suffix}" for suffix in (".png", ".svg")]
    try:
        draw(groups, goal, paths)
        write_whole(folder / f"{_NAME}.md", page.encode())
        write_whole(folder / f"{_NAME}.html", comparison_page(folder.name, groups, goal))
    except OSError as error:
        raise Refusal(f"the comparison cannot be written to {folder}: {error.strerror}") from error
    for line in table.splitlines():
        print_line(line)
    print_line(f"wrote {folder / _NAME}.html, .png, .svg and .md")
    return 0


def table_of(groups: Mapping[str, Sequence[Curve]], goal: float | None) -> str:
    """Return a Markdown table with a row for each group: its final returns, with 95 % bootstrap intervals.

    Args:
        groups: the runs of each label.
        goal: a target return; adds a column for the steps after which runs first reached it.
    """
    head = ["runs", "seeds", "final return, mean", "interquartile mean", "standard deviation"]
    head += ["median steps", "median minutes"]
    head += [] if goal is None else [f"median steps to {goal:g}"]
    rows = [head, ["---"] * len(head)]
    for label, curves in groups.items():
        summary = summarize(curves, goal)
        row = [label, str(len(curves))]
        for estimate in (summary.mean, summary.interquartile_mean):
            interval = f" ({estimate.low:.2f} to {estimate.high:.2f})" if len(curves) > 1 else ""
            row.append(f"{estimate.value:.2f}{interval}")
        row.append("-" if summary.deviation is None else f"{summary.deviation:.2f}")
        row += [f"{summary.steps:,.0f}", f"{summary.minutes:.1f}"]
        if goal is not None:
            median, share = summary.median_steps_to_goal, f" ({len(summary.steps_to_goal)} of {len(curves)} runs)"
            row.append(("-" if median is None else f"{median:,.0f}") + share)
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
