"""`--mode=compare` finds runs, groups their seeds, and writes a figure and a table of what they reached."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppo.comparison.curves import average, find_curves, group_of, grouped
from ppo.comparison.figure import draw
from ppo.settings import Refusal
from tests.jobs import ppo

HEADER = "update,env_steps,time/seconds,rollout/return_mean,rollout/episodes,update/entropy\n"
Point = tuple[float, float, float, float]


def write_run(folder: Path, points: Sequence[Point], end: str = "") -> None:
    """Write a log of (steps, seconds, return, games) after an update in which no game had finished."""
    folder.mkdir(parents=True)
    rows = [f"{n},{steps},{seconds},{mean},{games},0.7\n" for n, (steps, seconds, mean, games) in enumerate(points, 2)]
    (folder / "progress.csv").write_text(HEADER + "1,64,1.0,,0,0.7\n" + "".join(rows) + end)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds of Pole, and a run that is another one."""
    write_run(tmp_path / "runs/Pole", [(100, 60, 0, 5), (200, 120, 10, 100), (300, 180, 20, 150)])
    write_run(tmp_path / "runs/Pole-seed2", [(150, 60, 10, 100), (250, 180, 10, 120)], end="5,350,2")
    write_run(tmp_path / "runs/Other", [(100, 30, 3, 1), (200, 60, 4, 2)])
    return tmp_path


def test_a_curve_has_the_rows_in_which_a_game_had_finished_and_no_half_row(runs: Path) -> None:
    first, second = find_curves(["Pole"], runs / "runs")
    np.testing.assert_array_equal(second.steps, [150, 250])
    np.testing.assert_array_equal(first.minutes, [1, 2, 3])
    np.testing.assert_array_equal(first.episodes, [5, 100, 150])
    assert (first.final_return, first.steps_to(10), first.steps_to(21)) == (20.0, 200.0, None)


def test_a_lucky_start_of_few_games_reaches_no_goal(runs: Path) -> None:
    (other,) = find_curves(["Other"], runs / "runs")
    assert other.steps_to(3) is None


@pytest.mark.parametrize(
    ("name", "group"),
    [("X", "X"), ("X-seed1", "X"), ("pong-seed-12", "pong"), ("X-seeds", "X-seeds"), ("a-seed1-b", "a-seed1-b")],
)
def test_the_label_of_a_run_is_its_folder_without_the_seed(name: str, group: str) -> None:
    assert group_of(name) == group


def test_a_name_stands_for_all_its_seeds_and_a_path_for_one_run(runs: Path) -> None:
    def names(*asked: str) -> list[str]:
        return [curve.name for curve in find_curves(asked, runs / "runs")]

    write_run(runs / "runs/Pole-seed10", [(100, 1, 1, 1)])
    assert names("Pole") == ["Pole", "Pole-seed2", "Pole-seed10"]
    assert names("Pole-seed2", "Other", "Other") == ["Pole-seed2", "Other"]
    assert names(str(runs / "runs/Pole")) == ["Pole"]
    (runs / "copied-seed-3.csv").write_bytes((runs / "runs/Other/progress.csv").read_bytes())
    assert names(str(runs / "copied-seed-3.csv")) == ["copied-seed-3"]
    assert list(grouped(find_curves(["Pole", "Other"], runs / "runs"))) == ["Pole", "Other"]


@pytest.mark.parametrize("axis", ["steps", "episodes", "minutes"])
def test_curves_are_averaged_where_all_of_them_are(axis: str, runs: Path) -> None:
    together = average(find_curves(["Pole"], runs / "runs"), axis)
    ends = {"steps": (150, 250), "episodes": (100, 120), "minutes": (1, 3)}[axis]
    # The first has 5 and 15 at the ends of the steps the second has, 10 and 14 of its games, 0 and 20 of its minutes.
    first = {"steps": (5, 15), "episodes": (10, 14), "minutes": (0, 20)}[axis]
    assert (together.places[0], together.places[-1]) == ends
    for place, value in zip((0, -1), first, strict=True):
        assert together.mean[place] == pytest.approx((value + 10) / 2)
        assert together.low[place] == pytest.approx(min(value, 10))
        assert together.high[place] == pytest.approx(max(value, 10))


def test_the_mode_prints_and_writes_a_table_and_says_where(runs: Path) -> None:
    job = ppo(runs, "--mode=compare", "--runs", "Pole", "Other", "--stop_at_return=10")
    assert job.returncode == 0, job.stderr
    table, wrote = job.stdout.splitlines()[:-1], job.stdout.splitlines()[-1]
    assert wrote == "wrote assets/Pole-vs-Other/comparison.html, .png, .svg and .md"
    assert table[2:] == [
        "| Pole | 2 | 15.00 (10.00 to 20.00) | 15.00 (10.00 to 20.00) | 7.07 | 275 | 3.0 | 175 (2 of 2 runs) |",
        "| Other | 1 | 4.00 | 4.00 | - | 200 | 1.0 | - (0 of 1 runs) |",
    ]
    page = (runs / "assets/Pole-vs-Other/comparison.md").read_text()
    assert page.startswith("\n".join(table))
    (command,) = re.findall(r"^    python -m ppo (.*)$", page, re.MULTILINE)
    again = ppo(runs, *command.split(), "--model_name=again")
    assert again.stdout.splitlines()[:-1] == table


def test_the_figure_names_its_axes_and_runs(runs: Path) -> None:
    groups = grouped(find_curves(["Pole", "Other"], runs / "runs"))
    draw(groups, 10.0, [runs / "figure.png", runs / "figure.svg"])
    with Image.open(runs / "figure.png") as image:
        assert image.width > 1000
    text = (runs / "figure.svg").read_text()
    for words in ("agent steps", "finished games", "minutes of training", "final return", "share of runs above it"):
        assert f">{words}<" in text
    assert ">Pole (2 seeds)<" in text
    assert ">Other<" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--runs", "Pile"], "there is no run 'Pile' in runs; did you mean 'Pole'?; runs: Other, Pole, Pole-seed2"),
        (["--runs=nowhere/progress.csv"], "there is no nowhere/progress.csv"),
        ([], "runs must be names of runs"),
        (["--runs", "Empty"], "no game has finished yet in the run of runs/Empty/progress.csv"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused_and_nothing_is_written(
    flags: list[str], message: str, runs: Path
) -> None:
    if "Empty" in flags:
        write_run(runs / "runs/Empty", [])
    job = ppo(runs, "--mode=compare", *flags)
    assert job.returncode == 2
    assert message in job.stderr
    assert not (runs / "assets").exists()


def test_runs_are_for_this_mode_only(tmp_path: Path) -> None:
    job = ppo(tmp_path, "--mode=play", "--runs=A,B")
    assert job.returncode == 2
    assert "and unset in other modes" in job.stderr


def test_a_table_that_is_damaged_is_no_traceback(runs: Path) -> None:
    (runs / "runs/Other/progress.csv").write_bytes(b"\x00\xff" * 1000)
    with pytest.raises(Refusal, match=r"Other/progress\.csv"):
        find_curves(["Other"], runs / "runs")


def test_folders_of_one_name_in_two_places_are_two_runs(runs: Path) -> None:
    write_run(runs / "old/Other", [(100, 1, 1, 1)])
    curves = find_curves([str(runs / "runs/Other"), str(runs / "old/Other"), "Pole"], runs / "runs")
    assert len(grouped(curves)) == 3
    assert [curve.name for curve in curves[:2]] == [str(runs / "runs/Other"), str(runs / "old/Other")]


def test_runs_that_share_no_part_of_an_axis_have_no_average(runs: Path) -> None:
    write_run(runs / "runs/Late-seed1", [(100, 1, 1, 1), (300, 2, 2, 3)])
    write_run(runs / "runs/Late-seed2", [(1000, 1, 1, 1), (1200, 2, 2, 3)])
    together = average(find_curves(["Late"], runs / "runs"), "steps")
    assert [len(numbers) for numbers in (together.places, together.mean, together.low, together.high)] == [0] * 4


def test_a_figure_is_not_written_where_a_link_leads(runs: Path) -> None:
    outside, paths = runs / "outside", [runs / "figure.png", runs / "figure.svg"]
    outside.write_text("kept")
    for path in paths:
        path.symlink_to(outside)
    draw(grouped(find_curves(["Pole"], runs / "runs")), None, paths)
    assert outside.read_text() == "kept"
    assert not any(path.is_symlink() for path in paths)
