"""Write docs/scores.md from committed runs: the scores in each world beside published ones.

    python -m scripts.score_table

Reads docs/runs/scores/<world>-<steps>-seed-<N>.csv (a run's progress.csv) and .json (its evaluation.json), published
scores (docs/measurements/published.json, published_atari.json) and speeds on a quiet machine (training_rates.json).
"""

import json
import statistics
from collections.abc import Mapping, Sequence

from scripts.atari_scores import atari_table
from scripts.marked_page import write_table
from scripts.scored_runs import DOCS, RUNS, ScoredRun, minutes_of, read_runs


def table(runs: Sequence[ScoredRun], published: Sequence[Mapping[str, str]], rates: Mapping[str, float]) -> str:
    """Return the table of worlds, in the order of `published`.

    Args:
        runs: runs in all worlds.
        published: rows of text with the keys world, steps, reach and best.
        rates: steps per second on a quiet machine, by world.
    """
    lines = [
        "| world | steps | minutes | evaluation: median of seeds (worst) | played | each seed: evaluation ± standard "
        "error; last 100 games of training | aim | best published PPO |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in published:
        of_row = sorted((r for r in runs if (r.world, r.steps) == (row["world"], row["steps"])), key=lambda r: r.seed)
        if not of_row:
            lines.append(f"| {row['world']} | {row['steps']} | | not run | | | {row['reach']} | {row['best']} |")
            continue
        scores = [run.score for run in of_row]
        minutes = minutes_of(row["world"], row["steps"], rates)
        seeds = "; ".join(
            f"[{run.seed}](runs/scores/{run.name}.csv): **{run.score:,.1f}** ± {run.evaluation['return_stderr']:.1f}; "
            f"{run.training_mean:,.1f}"
            for run in of_row
        )
        played = ", ".join(sorted({str(run.evaluation["act"]) for run in of_row}))
        median = f"**{statistics.median(scores):,.1f}**"
        worst = f" ({min(scores):,.1f})" if len(scores) > 1 else ""
        lines.append(
            f"| {row['world']} | {row['steps']} | {minutes} | {median}{worst} | {played} | {seeds} | {row['reach']} "
            f"| {row['best']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Fill in the tables between the marks in docs/scores.md."""
    runs = list(read_runs(RUNS))
    published = json.loads((DOCS / "measurements" / "published.json").read_text())
    measured = json.loads((DOCS / "measurements" / "training_rates.json").read_text())
    rates = {world: of_world["steps_per_second"] for world, of_world in measured.items()}
    write_table(DOCS / "scores.md", table(runs, published, rates))
    games = json.loads((DOCS / "measurements" / "published_atari.json").read_text())
    write_table(DOCS / "scores.md", atari_table(runs, games, rates), "Atari table")
    write_table(DOCS / "scores.md", atari_table(runs, games, rates, "machado"), "Atari table, machado")


if __name__ == "__main__":
    main()
