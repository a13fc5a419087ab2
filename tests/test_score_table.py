"""The table of scores says what runs and their evaluations say, and nothing of half a run."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from ppo.command_line import parse_command_line
from ppo.families import PROTOCOLS
from scripts import score_table
from scripts.atari_scores import atari_table, predicted_median
from scripts.benchmarking.machine import wait_until_quiet
from scripts.marked_page import write_table
from scripts.measure_training_rates import steps_per_second
from scripts.score_table import table
from scripts.scored_runs import DOCS, Row, ScoredRun, read_games, read_runs, read_worlds
from scripts.ship_agent import score_name
from scripts.train_scores import Attempt, missing

PUBLISHED = [
    {"world": "World-v1", "steps": "500k", "reach": "7", "best": "6 (somebody)"},
    {"world": "Other-v0", "steps": "2M", "reach": "1", "best": "none"},
]


def write_run(folder: Path, seed: int, score: float, *, evaluated_at: int = 500_000) -> None:
    name = folder / f"World-v1-500k-seed-{seed}"
    name.with_suffix(".csv").write_text("env_steps,time/seconds,rollout/return_mean\n250000,30,1.0\n500000,90,5.5\n")
    evaluation = {"env_steps": evaluated_at, "return_mean": score, "return_stderr": 0.25, "act": "mode"}
    name.with_suffix(".json").write_text(json.dumps(evaluation))


def test_the_median_and_the_worst_seed_stand_beside_what_was_published(tmp_path: Path) -> None:
    for seed, score in ((1, 9.0), (2, -4.0), (3, 6.5)):
        write_run(tmp_path, seed, score)
    world, other = table(list(read_runs(tmp_path)), PUBLISHED, {"World-v1": 2500.0}).splitlines()[2:]
    assert world.startswith(
        "| World-v1 | 500k | 3.3 | **6.5** (-4.0) | mode | [1](runs/scores/World-v1-500k-seed-1.csv): "
    )
    assert "**9.0** ± 0.2; 5.5; [2]" in world
    assert world.endswith("| 7 | 6 (somebody) |")
    assert other == "| Other-v0 | 2M | | not run | | | 1 | none |"


def test_an_evaluation_of_another_checkpoint_is_no_score(tmp_path: Path) -> None:
    write_run(tmp_path, 1, 9.0, evaluated_at=400_000)
    with pytest.raises(SystemExit, match="ends at 500000 steps, but its evaluation is for the agent at 400000 steps"):
        list(read_runs(tmp_path))


def test_a_run_without_its_evaluation_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, 1, 9.0)
    (tmp_path / "World-v1-500k-seed-1.json").unlink()
    with pytest.raises(SystemExit, match="have its evaluation beside it"):
        list(read_runs(tmp_path))


def test_only_what_is_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table -->\nold\n<!-- end of table -->\nafter\n")
    write_table(page, "new")
    assert page.read_text() == "before\n<!-- table -->\nnew\n<!-- end of table -->\nafter\n"
    page.write_text("no marks\n")
    with pytest.raises(SystemExit, match="must have the lines"):
        write_table(page, "new")
    assert page.read_text() == "no marks\n"


def atari_run(game: str, seed: int, training_mean: float, protocol: str = "nature") -> ScoredRun:
    evaluation = {"return_mean": training_mean + 1.0, "return_stderr": 2.0, "episodes": 100, "act": "sample"}
    # Lost lives end nothing in an evaluation, whatever they did in training.
    evaluation["protocol"] = {**PROTOCOLS[protocol], "episodic_life": False}
    world = f"{game}NoFrameskip-v4" + ("" if protocol == "nature" else f"-{protocol}")
    return ScoredRun(f"{world}-10M-seed-{seed}", world, "10M", seed, evaluation, training_mean, 10_000_000)


ATARI = [
    {"game": game, "steps": "10M", "reach": "9", "paper": "1", "baselines": "2", "cleanrl": "3", "zoo": "4"}
    for game in ("Breakout", "Pong", "Qbert", "Enduro")
]


def test_games_stand_beside_what_was_published_and_are_summed_up_as_multiples_of_a_human() -> None:
    # Random and human: Breakout 1.7 and 30.5, Pong -20.7 and 14.6, Qbert 163.9 and 13,455.
    runs = [atari_run("Breakout", 1, 30.5), atari_run("Breakout", 2, 88.1), atari_run("Qbert", 1, 163.9)]
    lines = atari_table([*runs, atari_run("Pong", 1, 14.6)], ATARI, {"BreakoutNoFrameskip-v4": 2000.0}).splitlines()
    assert lines[2].startswith(
        "| Breakout, [seed 1](runs/scores/BreakoutNoFrameskip-v4-10M-seed-1.csv) | 10M | 83.3 | **30.5** "
    )
    assert "| 31.5 ± 2.0 (20.0) | 1.00 | 9 | 1 | 2 | 3 | 4 |" in lines[2]
    assert "| 3.00 |" in lines[3]
    assert lines[6] == "| Enduro | 10M | | not run | | | 9 | 1 | 2 | 3 | 4 |"
    # A game's seeds are averaged first: 2, 1 and 0.
    assert (
        "of 3 games, 95 % bootstrap over games: interquartile mean 1.00 (0.00 to 2.00); median 1.00 (0.00 to 2.00)."
        in lines[-1]
    )


def test_all_of_atari_5_predict_the_median_of_57_games_under_the_table() -> None:
    human = {"BattleZone": 37187.5, "DoubleDunk": -16.4, "NameThisGame": 8049.0, "Phoenix": 7242.6, "Qbert": 13455.0}
    rows = [{**ATARI[0], "game": game} for game in human]
    last = atari_table([atari_run(game, 1, score) for game, score in human.items()], rows, {}).splitlines()[-1]
    assert last.startswith("The median of 57 games, predicted from five of them as Aitchison et al. 2022 do")
    assert "weights fitted anew: 0.85 (mean relative error 9%" in last
    assert "57 games" not in atari_table([atari_run("Qbert", 1, 1.0)], rows, {})


def test_each_protocol_has_a_table_of_its_own() -> None:
    rows = [*ATARI, {"game": "Pong", "protocol": "machado", "steps": "10M", "reach": "", "sync": "18"}]
    runs = [atari_run("Pong", 1, 14.6), atari_run("Pong", 1, 10.0, "machado")]
    nature, machado = (atari_table(runs, rows, {}, protocol) for protocol in ("nature", "machado"))
    assert "**14.6**" in nature and "**10.0**" not in nature
    (line,) = machado.rstrip().splitlines()[2:]
    assert line.startswith(
        "| Pong, [seed 1](runs/scores/PongNoFrameskip-v4-machado-10M-seed-1.csv) | 10M |  | **10.0** |"
    )
    assert line.endswith("| 0.87 |  | 18 |")


def test_the_page_is_what_the_script_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(DOCS / "measurements", tmp_path / "measurements")
    shutil.copy(DOCS / "scores.md", tmp_path)
    monkeypatch.setattr(score_table, "DOCS", tmp_path)
    score_table.main()
    assert (tmp_path / "scores.md").read_text() == (DOCS / "scores.md").read_text()


def test_the_readme_says_what_the_runs_scored() -> None:
    runs = {(run.world, run.steps, run.seed): run.score for run in read_runs(DOCS / "runs" / "scores")}
    section = (DOCS.parent / "README.md").read_text().partition("## What it has learnt")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in section.splitlines() if "|" in line][2:]
    assert len(rows) > 10
    for world, steps, scores, _ in rows:
        if "shipped" in scores:  # of a run from before runs were kept
            card = json.loads((DOCS.parent / f"checkpoints/pretrained/{world}NoFrameskip-v4/card.json").read_text())
            assert scores == f"{card['evaluation']['return_mean']:.1f} (shipped agent)"
            continue
        for length, of_length in zip(steps.split("; "), scores.split("; "), strict=True):
            said = of_length.split(", ")
            decimals = [len(text.partition(".")[2]) for text in said]
            found = [runs[world, length, seed] for seed in range(1, len(said) + 1)]
            assert said == [f"{score:,.{n}f}" for score, n in zip(found, decimals, strict=True)], world
            assert (world, length, len(said) + 1) not in runs, f"{world} has more seeds"


def test_a_run_under_another_protocol_is_not_in_the_table() -> None:
    run = atari_run("Pong", 1, 14.6)
    run.evaluation["protocol"]["sticky_actions"] = 0.25
    with pytest.raises(SystemExit, match="with act=sample under protocol nature"):
        atari_table([run], ATARI, {})


def test_five_games_predict_the_median_of_all() -> None:
    human = dict.fromkeys(("BattleZone", "DoubleDunk", "NameThisGame", "Phoenix", "Qbert"), 1.0)
    # 101 to the power of the weights' sum, 0.9653, is 86.05.
    assert predicted_median(human) == pytest.approx(0.8505, abs=2e-4)
    assert predicted_median({**human, "Qbert": -1.0}) == pytest.approx((86.05 / 101**0.0805 - 1) / 100, abs=2e-4)
    assert predicted_median({"Qbert": 1.0}) is None


def test_the_rate_leaves_out_the_first_update(tmp_path: Path) -> None:
    progress = tmp_path / "progress.csv"
    progress.write_text("env_steps,time/seconds\n1000,10.0\n2000,10.5\n5000,12.0\n")
    assert steps_per_second(progress) == 2000.0
    progress.write_text("env_steps,time/seconds\n1000,10.0\n")
    with pytest.raises(SystemExit, match="fewer than two updates"):
        steps_per_second(progress)


def test_rates_are_measured_once_the_machine_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = iter((1.5, 0.4, 0.2, 9.0, 9.0))
    monkeypatch.setattr(os, "getloadavg", lambda: (next(loads), 9.0, 9.0))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    wait_until_quiet()
    with pytest.raises(SystemExit, match=r"the load average must fall to 0.3, but is 9.00"):
        wait_until_quiet(patience=0.0)


@pytest.mark.parametrize("row", [*read_worlds(), *read_games()], ids=lambda row: row.name)
def test_every_row_can_be_trained_under_the_name_of_its_scores(row: Row) -> None:
    attempt = Attempt(row, 2)
    config = parse_command_line(attempt.flags)
    assert row.world.startswith(config.run.env_name.removeprefix("ppo/"))
    assert score_name(config, row.world) == attempt.name


def test_a_seed_is_run_in_every_row_before_the_next_seed_and_what_is_kept_is_not_run_again(tmp_path: Path) -> None:
    rows = [Row("World-v1", "500k", ()), Row("Other-v0", "2M", ())]
    write_run(tmp_path, 2, 9.0)
    attempts = [attempt.name for attempt in missing(rows, (1, 2), tmp_path)]
    assert attempts == ["World-v1-500k-seed-1", "Other-v0-2M-seed-1", "Other-v0-2M-seed-2"]
