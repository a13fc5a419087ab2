"""The table of scores says what runs and their evaluations say, and nothing of half a run."""

import json
from pathlib import Path

import pytest

from scripts.marked_page import write_table
from scripts.score_table import read_runs, table

PUBLISHED = [
    {"world": "World-v1", "steps": "500k", "reach": "7", "best": "6 (somebody)"},
    {"world": "Other-v0", "steps": "2M", "reach": "1", "best": "none"},
]


def write_run(folder: Path, seed: int, score: float, *, evaluated_at: int = 500_000) -> None:
    name = folder / f"World-v1-500k-seed-{seed}"
    name.with_suffix(".csv").write_text("env_steps,rollout/return_mean\n250000,1.0\n500000,5.5\n")
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
    with pytest.raises(SystemExit, match="ends at 500000 steps, its evaluation is of 400000"):
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
