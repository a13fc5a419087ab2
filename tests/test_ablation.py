"""The ablation: each run switches off what it says and nothing else, and the table has the means of finished runs."""

import pytest

from ppo.command_line import parse_command_line
from ppo.config import differences
from scripts import ablation
from scripts.ablation import (
    SWITCHES,
    WORLDS,
    Ablation,
    figure_of,
    finished_curve,
    read_curves,
    runs,
    table,
    write,
    write_curves,
)

SECTIONS = ["run", "world", "model", "ppo", "playback"]


def settings_of(off):
    return parse_command_line(Ablation(WORLDS[0], off, 1).flags)


@pytest.mark.parametrize("off", [name for name in SWITCHES if name != "all on"])
def test_a_switch_changes_one_setting(off):
    assert len(differences(settings_of("all on"), settings_of(off), SECTIONS)) == 1


def test_no_two_switches_are_the_same():
    changed = [str(differences(settings_of("all on"), settings_of(off), SECTIONS)) for off in SWITCHES]
    assert len({*changed}) == len(SWITCHES)


def test_every_run_has_a_name_of_its_own_and_a_seed_is_finished_before_the_next():
    everything = list(runs())
    assert len({run.name for run in everything}) == len(everything) == len(WORLDS) * len(SWITCHES) * 3
    assert [run.seed for run in everything] == sorted(run.seed for run in everything)


@pytest.mark.parametrize(("env_steps", "expected"), [(299_999, None), (300_000, [(300_000, 12.5)])])
def test_only_a_finished_run_counts(env_steps, expected, tmp_path):
    run = Ablation(WORLDS[0], "tanh (relu instead)", 2)
    folder = tmp_path / "runs" / run.name
    folder.mkdir(parents=True)
    assert finished_curve(tmp_path, run) is None
    (folder / "progress.csv").write_text(f"env_steps,rollout/return_mean\n100,\n200,-3.0\n{env_steps},12.5\n")
    assert finished_curve(tmp_path, run) == expected


def test_a_curve_is_thinned_once_and_ends_with_the_last_update(tmp_path):
    run = Ablation(WORLDS[0], "all on", 1)
    folder = tmp_path / "runs" / run.name
    folder.mkdir(parents=True)
    rows = "".join(f"{300_000 - 8 + n},{n}.0\n" for n in range(9))
    (folder / "progress.csv").write_text(f"env_steps,rollout/return_mean\n{rows}")
    assert finished_curve(tmp_path, run) == [(299_992, 0.0), (299_996, 4.0), (300_000, 8.0)]


def test_kept_curves_stay_as_they_are_when_others_are_added(tmp_path):
    first, second = Ablation(WORLDS[0], "all on", 1), Ablation(WORLDS[1], "tanh (relu instead)", 3)
    curves = {second: [(step, step / 2) for step in range(10)], first: [(300_000, 7.5)]}
    path = tmp_path / "curves.csv"
    write_curves(curves, path)
    once = path.read_text()
    assert read_curves(path) == curves
    assert list(read_curves(path)) == [first, second]
    write_curves(read_curves(path), path)
    assert path.read_text() == once


def test_the_table_has_means_and_says_what_has_not_run():
    lines = table({WORLDS[0]: {"all on": [1000.0, 3000.0]}, WORLDS[1]: {}}).splitlines()
    assert len(lines) == 2 + len(SWITCHES)
    assert lines[2] == "| all on | **2,000** (1,000, 3,000) | not run |"


def test_bars_stand_beside_their_names_in_both_worlds_whatever_has_run():
    off = "reward clipping"
    figure = figure_of({WORLDS[0]: {"all on": [3.0], off: [1.0, 2.0]}, WORLDS[1]: {off: [5.0]}})
    first, second = figure.axes
    names = [label.get_text() for label in first.get_yticklabels()]
    assert names == [*reversed(SWITCHES)]
    bars = [{names[round(bar.get_y() + 0.4)]: bar.get_width() for bar in panel.patches} for panel in (first, second)]
    assert bars == [{"all on": 3.0, off: 1.5}, {off: 5.0}]


def test_what_is_finished_is_written_to_the_page_and_its_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "DOCS", tmp_path)
    monkeypatch.setattr(ablation, "CURVES", tmp_path / "ablation.csv")
    (tmp_path / "figures").mkdir()
    (tmp_path / "ablation.md").write_text("<!-- table -->\n<!-- end of table -->\n")
    write({Ablation(WORLDS[0], "all on", seed): [(300_000, 10.0 * seed)] for seed in (1, 2)})
    assert "| all on | **15** (10, 20) | not run |" in (tmp_path / "ablation.md").read_text()
    assert len(read_curves(tmp_path / "ablation.csv")) == 2
    assert (tmp_path / "figures/ablation.png").read_bytes().startswith(b"\x89PNG")
