"""The page of several runs holds what the table says, and nothing of their names becomes markup."""

import re

import numpy as np
import pytest

from ppo.comparison.curves import Curve
from ppo.comparison.page import comparison_page
from tests.report import chromium
from tests.report.test_packing import unpack

HOSTILE = "</script><img src=x onerror=\"document.title='caught'\">"


def curve(name, final, num_updates=50):
    steps = np.arange(1.0, num_updates + 1) * 1000
    return Curve(name, steps, steps / 10, steps / 500, np.linspace(0.0, final, num_updates))


@pytest.fixture(scope="module")
def groups():
    return {
        "first": [curve("first-seed1", 10.0), curve("first-seed2", 20.0, 40), curve("first-seed3", 30.0)],
        HOSTILE: [curve(HOSTILE, 15.0, 100)],
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


@pytest.mark.slow
@pytest.mark.skipif(chromium.PROGRAM is None, reason="there is no Chromium")
def test_a_browser_draws_it_without_a_request_and_names_stay_text(groups, tmp_path):
    path = tmp_path / "comparison.html"
    path.write_bytes(comparison_page(HOSTILE, groups, 15.0))
    with chromium.Chromium() as browser:
        for width in (360, 1280):
            browser.open(path, width=width)
            assert browser.evaluate("document.documentElement.dataset.ready") == "yes"
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.evaluate("document.querySelectorAll('img, script').length") == 3
        assert [url.partition(":")[0] for url in browser.requested()] == ["file"]
        browser.evaluate(
            "document.getElementById('seeds').click(), document.querySelectorAll('#axes button')[1].click()"
        )
        assert browser.evaluate("document.querySelectorAll('canvas').length") == 2
        assert browser.complaints() == []
