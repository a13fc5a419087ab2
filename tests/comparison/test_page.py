"""The page of several runs holds what the table says, and nothing of their names becomes markup."""

import dataclasses
import json
import re

import numpy as np
import pytest

from ppo.comparison.curves import Curve, find_curves
from ppo.comparison.figure import draw
from ppo.comparison.page import comparison_page
from tests.report import chromium
from tests.report.test_packing import unpack

HOSTILE = "</script><img src=x onerror=\"document.title='caught'\">"


FACTS = {"command": "python -m ppo --env_name=X", "ranks": "2", "hosts": "a (2 ranks)", "commit": "c" * 40}


def curve(name, final, num_updates=50, facts=FACTS):
    steps = np.arange(1.0, num_updates + 1) * 1000
    return Curve(name, steps, steps / 10, steps / 500, np.linspace(0.0, final, num_updates), facts)


@pytest.fixture(scope="module")
def groups():
    return {
        "first": [curve("first-seed1", 10.0), curve("first-seed2", 20.0, 40), curve("first-seed3", 30.0)],
        HOSTILE: [curve(HOSTILE, 15.0, 100, dict.fromkeys(("command", "started"), HOSTILE))],
    }


def content_of(page):
    return unpack(re.search(r'id="data">([^<]*)<', page.decode())[1])[0]


def test_groups_have_their_final_returns_and_the_steps_to_the_goal(groups):
    first, other = content_of(comparison_page("two", groups, 15.0))["groups"]
    assert (first["mean"], first["iqm"], first["steps"]) == (20.0, 20.0, 50_000)
    assert first["low"] < 20.0 < first["high"]
    assert (first["reached"], first["toGoal"]) == (2, pytest.approx(28_500, rel=0.05))
    assert (other["low"], other["high"], other["reached"]) == (15.0, 15.0, 1)


def test_curves_stand_at_common_places_and_end_where_the_first_seed_ends(groups):
    first, other = content_of(comparison_page("two", groups, None))["groups"]
    along = first["axes"]["steps"]
    assert along["places"] == other["axes"]["steps"]["places"] and along["places"][-1] == 100_000
    known = [place for place, value in zip(along["places"], along["mean"], strict=True) if value is not None]
    assert known[-1] == pytest.approx(40_000, rel=0.02)
    assert other["axes"]["steps"]["mean"][-1] == 15.0


def test_the_profile_is_the_share_of_seeds_above_a_return(groups):
    content = content_of(comparison_page("two", groups, None))
    at_25 = np.searchsorted(content["thresholds"], 25.0)
    assert content["groups"][0]["profile"][at_25] == pytest.approx(1 / 3, abs=1e-4)
    assert (content["groups"][0]["profile"][0], content["groups"][0]["profile"][-1]) == (1.0, 0.0)


def test_a_single_run_of_equal_returns_has_a_page(groups):
    assert content_of(comparison_page("one", {"a": [curve("a", 0.0)]}, None))["groups"][0]["mean"] == 0.0


def test_seeds_without_a_minute_in_common_have_no_mean_over_minutes(tmp_path):
    quick, slow = curve("a", 1.0), curve("a-seed1", 2.0)
    slow = dataclasses.replace(slow, minutes=slow.minutes + 1000.0)
    (group,) = content_of(comparison_page("two", {"a": [quick, slow]}, None))["groups"]
    assert set(group["axes"]["minutes"]["mean"]) == {None}
    assert set(group["axes"]["steps"]["mean"]) != {None}
    draw({"a": [quick, slow]}, None, [tmp_path / "figure.png"])
    assert (tmp_path / "figure.png").stat().st_size > 0


in_chromium = pytest.mark.skipif(chromium.PROGRAM is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def browser():
    with chromium.Chromium() as started:
        yield started


@pytest.fixture(scope="module")
def page(groups, tmp_path_factory):
    path = tmp_path_factory.mktemp("comparison") / "comparison.html"
    path.write_bytes(comparison_page(HOSTILE, groups, 15.0))
    return path


@pytest.mark.slow
@in_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_draws_it_without_a_request_and_names_stay_text(browser, page, width, dark):
    browser.open(page, width=width, dark=dark)
    assert browser.evaluate("document.documentElement.dataset.ready") == "yes"
    assert browser.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.querySelectorAll('img, script').length") == 3
    assert [url.partition(":")[0] for url in browser.requested()] == ["file"]
    assert browser.evaluate("charts.map(({plot, holder}) => holder.clientWidth - plot.width)") == [0, 0]
    browser.evaluate("document.getElementById('seeds').click(), document.querySelectorAll('#axes button')[1].click()")
    assert browser.evaluate("document.querySelectorAll('canvas').length") == 2
    assert browser.complaints() == []


@pytest.mark.slow
@in_chromium
def test_what_ran_is_a_row_for_each_run_with_the_facts_that_are_known(browser, page):
    browser.open(page)
    rows = browser.evaluate(
        "[...document.querySelectorAll('#ran tr')].map((row) => [...row.children].map((cell) => cell.textContent))"
    )
    assert rows[0] == ["run", "started", "command", "ranks", "hosts", "commit"]
    assert rows[1] == ["first-seed1", "", *FACTS.values()] and len(rows) == 5
    assert rows[4] == [HOSTILE, HOSTILE, HOSTILE, "", "", ""]


@pytest.mark.slow
@in_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_control_has_a_name_and_axe_finds_nothing_serious(browser, page, dark):
    browser.open(page, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    browser.wait_for("document.querySelectorAll('.numbers table').length === 2")
    nodes = [node for node in browser.call("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    named = {"button", "checkbox", "image", "link"}
    can_have_focus = [
        node
        for node in nodes
        if any(one["name"] == "focusable" and one["value"]["value"] for one in node.get("properties", ()))
        or node["role"]["value"] in named
    ]
    assert len(can_have_focus) > 10
    unnamed = {"RootWebArea"}
    assert {node["role"]["value"] for node in can_have_focus if not node.get("name", {}).get("value")} <= unnamed
    assert browser.axe_findings() == []


def test_a_run_has_the_facts_of_its_config_json(tmp_path):
    folder = tmp_path / "runs/X"
    folder.mkdir(parents=True)
    (folder / "progress.csv").write_text(
        "env_steps,rollout/episodes,time/seconds,rollout/return_mean\n100,5,1.0,2.0\n200,9,2.0,3.0\n"
    )
    (folder / "config.json").write_text(json.dumps({"command": "python -m ppo", "ranks": 2, "hosts": ["a", "a"]}))
    facts = {"command": "python -m ppo", "ranks": "2", "hosts": "a (2 ranks)"}
    (run,) = find_curves(["X"], tmp_path / "runs")
    assert run.facts == facts
    assert content_of(comparison_page("one", {"X": [run]}, None))["groups"][0]["seeds"][0]["facts"] == facts
    (tmp_path / "copy.csv").write_bytes((folder / "progress.csv").read_bytes())
    (copy,) = find_curves([str(tmp_path / "copy.csv")], tmp_path / "runs")
    assert copy.facts == {}
