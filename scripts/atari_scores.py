"""The Atari part of docs/scores.md: each game beside published scores, and statistics over all games."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ppo.comparison.statistics import Floats, bootstrap, interquartile_mean
from ppo.envs.atari import rom_name
from ppo.envs.atari.scores import human_normalised_score
from ppo.families import PROTOCOLS
from scripts.scored_runs import ScoredRun, id_of_game, minutes_of, protocol_of, world_of_game

# Columns of published scores, by protocol: key in the rows, heading. Scores of two protocols never share a table.
_PUBLISHED = {
    "nature": {"paper": "PPO paper", "baselines": "baselines", "cleanrl": "CleanRL, best variant", "zoo": "RL-Zoo"},
    "machado": {"sync": "CleanRL's PPO (Sync) after 50M steps"},
}
# Aitchison et al. 2022 (arXiv:2210.02019) predict the median of 57 games from five of them. These weights are not
# theirs: they were fitted anew to their table of algorithms, 44 of them complete, with a mean relative error of 9 %.
_WEIGHTS = {"BattleZone": 0.3820, "DoubleDunk": 0.0679, "NameThisGame": 0.3108, "Phoenix": 0.1241, "Qbert": 0.0805}
_RELATIVE_ERROR = 0.09


def atari_table(
    runs: Sequence[ScoredRun],
    published: Sequence[Mapping[str, str]],
    rates: Mapping[str, float],
    protocol: str = "nature",
) -> str:
    """Return the table of games under a protocol, followed by statistics over all its games.

    Args:
        runs: runs in all worlds; only those in the rows' worlds are used.
        published: rows of text with the keys game, steps, reach, protocol (by default nature) and those of published
            scores.
        rates: steps per second on a quiet machine, by world.
        protocol: whose rows.
    """
    columns = _PUBLISHED[protocol]
    lines = [
        "| game | steps | minutes | last 100 games of training | evaluation: mean ± standard error (deviation) "
        f"| human-normalised | aim | {' | '.join(columns.values())} |",
        f"|---|---|---|---|---|---|---|{'---|' * len(columns)}",
    ]
    normalised: dict[str, list[float]] = {}
    for row in published:
        if protocol_of(row) != protocol:
            continue
        world = world_of_game(row)
        theirs = " | ".join(row[name] for name in columns)
        minutes = minutes_of(world, row["steps"], rates)
        of_game = [run for run in runs if (run.world, run.steps) == (world, row["steps"])]
        if not of_game:
            lines.append(f"| {row['game']} | {row['steps']} | | not run | | | {row['reach']} | {theirs} |")
        for run in sorted(of_game, key=lambda run: run.seed):
            _require_protocol(run, protocol)
            error = float(run.evaluation["return_stderr"])
            deviation = error * math.sqrt(run.evaluation["episodes"])
            human = human_normalised_score(rom_name(id_of_game(row)), run.training_mean)
            assert human is not None
            normalised.setdefault(row["game"], []).append(human)
            lines.append(
                f"| {row['game']}, [seed {run.seed}](runs/scores/{run.name}.csv) | {row['steps']} | {minutes} "
                f"| **{run.training_mean:,.1f}** | {run.score:,.1f} ± {error:,.1f} ({deviation:,.1f}) | {human:.2f} "
                f"| {row['reach']} | {theirs} |"
            )
    return "\n".join([*lines, "", *_together({game: float(np.mean(seeds)) for game, seeds in normalised.items()})])


def predicted_median(normalised: Mapping[str, float]) -> float | None:
    """Return the human-normalised median of 57 games predicted from five of them; None if one of the five is missing.

    Args:
        normalised: human-normalised scores by game, 1 for a human.
    """
    if not _WEIGHTS.keys() <= normalised.keys():
        return None
    exponent = sum(weight * math.log10(1.0 + max(0.0, 100.0 * normalised[game])) for game, weight in _WEIGHTS.items())
    return (10.0**exponent - 1.0) / 100.0


def _require_protocol(run: ScoredRun, protocol: str) -> None:
    """Refuse a run whose protocol or evaluation differs from what the page states."""
    expected = {name: value for name, value in PROTOCOLS[protocol].items() if name != "episodic_life"}
    has = {name: run.evaluation["protocol"][name] for name in expected}
    if has != expected or (run.evaluation["act"], run.evaluation["episodes"]) != ("sample", 100):
        raise SystemExit(
            f"{run.name} must be evaluated on 100 games with act=sample under protocol {protocol}, got {run.evaluation}"
        )


def _together(normalised: Mapping[str, float]) -> list[str]:
    """Return sentences with statistics over all games run; none for fewer than three games."""
    if len(normalised) < 3:
        return []
    scores = np.array(list(normalised.values()))
    words = []
    for name, statistic in (("interquartile mean", interquartile_mean), ("median", _median)):
        low, high = bootstrap(scores, statistic)
        words.append(f"{name} {float(statistic(scores, 0)):.2f} ({float(low):.2f} to {float(high):.2f})")
    said = [f"Human-normalised scores of {len(scores)} games, 95 % bootstrap over games: {'; '.join(words)}."]
    if (median := predicted_median(normalised)) is not None:
        said.append(
            "The median of 57 games, predicted from five of them as Aitchison et al. 2022 do, with weights fitted "
            f"anew: {median:.2f} (mean relative error {_RELATIVE_ERROR:.0%}; too low for other agents of 10M steps)."
        )
    return said


def _median(samples: Floats, axis: int) -> Floats:
    return np.asarray(np.median(samples, axis=axis))
