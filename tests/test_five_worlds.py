"""Each way of seeing an agent, in each of five worlds: page, report, terminal, film and videos."""

import dataclasses
from pathlib import Path

import pytest

from tests.jobs import ppo
from tests.outputs.test_terminal import Process
from tests.report import chromium
from tests.viewer.test_in_chromium import DRAWN, watcher

pytest.importorskip("Box2D")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(chromium.PROGRAM is None, reason="there is no Chromium")]

MOST_BYTES_OF_A_REPORT = 2_000_000
TINY = (
    *("--num_envs=2", "--rollout_steps=16", "--minibatch_size=32", "--num_epochs=1", "--env_steps=96"),
    *("--checkpoint_interval=1", "--keep_checkpoints=all", "--no_report"),
)
SHORT = "--max_game_steps=40"


@dataclasses.dataclass(frozen=True)
class World:
    """What is to be seen in a world."""

    name: str
    has_pictures: bool
    is_continuous: bool = False


WORLDS = (
    World("PongNoFrameskip-v4", has_pictures=True),
    World("BreakoutNoFrameskip-v4", has_pictures=True),
    World("CarRacing-v3", has_pictures=True, is_continuous=True),
    World("LunarLander-v3", has_pictures=False),
    World("CartPole-v1", has_pictures=False),
)


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: world.name)
def trained(request, tmp_path_factory):
    """A world, and a folder with a short training in it."""
    world, folder = request.param, tmp_path_factory.mktemp("world")
    job = ppo(folder, f"--env_name={world.name}", *TINY)
    assert job.returncode == 0, job.stderr
    return world, folder


@pytest.fixture(scope="module")
def browser():
    with chromium.Chromium() as started:
        yield started


def test_the_page_shows_the_game_what_is_seen_what_is_decided_and_what_is_expected(browser, trained):
    world, folder = trained
    with watcher(folder, f"--env_name={world.name}") as (_, address):
        browser.open(address)
        browser.wait_for(f"{DRAWN} > 20 && watcher.traceChart.plot.data[0].length > 5")
        values = browser.evaluate("Array.from(watcher.traceChart.plot.data[1])")
        assert all(isinstance(value, int | float) for value in values)
        assert browser.evaluate("byId('stack').querySelectorAll('canvas').length") == (4 if world.has_pictures else 0)
        assert browser.evaluate("byId('entries').textContent !== ''") is not world.has_pictures
        densities, bars = (
            browser.evaluate(f"byId('actions').querySelectorAll('{kind}').length")
            for kind in ("canvas.density", "table.bars tr")
        )
        assert (densities > 0, bars > 0) == (world.is_continuous, not world.is_continuous)
        assert browser.complaints() == []


def test_the_report_holds_an_agent_that_decides_as_the_saved_one(browser, trained):
    world, folder = trained
    assert ppo(folder, f"--env_name={world.name}", "--mode=report", SHORT).returncode == 0
    (page,) = folder.glob("runs/*/report.html")
    assert page.stat().st_size < MOST_BYTES_OF_A_REPORT
    browser.open(page)
    browser.wait_for("document.documentElement.dataset.checked", seconds=120)
    checked, agreed, worst = (
        float(browser.evaluate(f"document.documentElement.dataset.{name}")) for name in ("checked", "agreed", "worst")
    )
    assert checked > 0
    assert agreed >= 0.95 * checked
    assert worst <= 0.02
    assert browser.evaluate("byId('actions').childElementCount > 0")
    assert browser.complaints() == []


def test_the_terminal_shows_the_game(trained):
    world, folder = trained
    view = Process(folder, world.name, "play", "--episodes=1", SHORT)
    try:
        code, after = view.wait()
        written = view.written.decode()
    finally:
        view.close()
    assert code == 0, written[-2000:]
    assert "the network sees" in written
    assert "\u2580" in written
    assert "game 1: return" in after


@pytest.mark.parametrize(
    "flags", [("--checkpoint=all",), ("--overlay",), ("--overlay", "--record_games=2")], ids=["film", "overlay", "best"]
)
def test_videos_are_made(trained, flags, tmp_path):
    world, folder = trained
    job = ppo(folder, f"--env_name={world.name}", "--mode=record", SHORT, *flags, f"--asset_dir={tmp_path}")
    assert job.returncode == 0, job.stderr
    videos = list(tmp_path.rglob("*.mp4"))
    assert len(videos) == (2 if "--record_games=2" in flags else 1)
    assert all(Path(video).stat().st_size > 1000 for video in videos)
