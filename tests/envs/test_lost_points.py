"""The points that an agent lacks in CarRacing, by cause, add up."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("Box2D")

from ppo.envs.car_racing import CarRacingEnvironments
from ppo.families import CarRacingSettings
from scripts import lost_points
from scripts.lost_points import Observer, Outcome, furthest_tile, outcome_of, usual_agents


def drives_and_returns(*actions: tuple[float, float, float]) -> list[tuple[Outcome, float]]:
    """Drive one episode in as many worlds as there are actions, each by one of them all the way."""
    settings = CarRacingSettings(action_repeat=8, give_up_frames=None)
    envs = CarRacingEnvironments("CarRacing-v3", indices=range(len(actions)), seed=3, protocol=settings)
    envs.reset()
    observer = Observer(envs)
    found: dict[int, tuple[Outcome, float]] = {}
    while len(found) < len(actions):
        _, _, terminated, truncated, info = envs.step(np.array(actions, np.float32))
        observer.look()
        for position in np.flatnonzero(terminated | truncated).tolist():
            found.setdefault(position, (observer.outcomes[position][0], float(info["episode_return"][position])))
    envs.close()
    return [found[position] for position in range(len(actions))]


def test_losses_and_return_are_a_thousand_points() -> None:
    straight, standing, circling = drives_and_returns((0.0, 0.3, 0.0), (0.0, 0.0, 0.0), (1.0, 0.2, 0.0))
    for drive, episode_return in (straight, standing, circling):
        assert sum(drive.losses().values()) + episode_return == pytest.approx(1000.0, abs=1e-6)
        assert not drive.is_finished
    assert straight[0].left_field and straight[0].frames < 1000
    assert standing[0].frames == circling[0].frames == 1000
    assert not standing[0].left_field and standing[0].missed == 0 and standing[0].not_reached > 200
    assert circling[0].missed < 20 and circling[0].not_reached > 200  # though it touches tiles behind the start
    assert circling[0].spins > 2 > standing[0].spins == 0


@pytest.mark.parametrize(
    ("visited", "missed", "not_reached"),
    [
        ((1,) * 8, 0, 0),
        ((1, 0, 1, 0, 1, 0, 0, 0), 2, 3),
        ((1, 1, 0, 0, 0, 0, 0, 1), 0, 5),  # the last one from behind
        ((0,) * 8, 0, 8),
    ],
)
def test_a_tile_is_missed_only_behind_one_that_was_reached(
    visited: tuple[int, ...], missed: int, not_reached: int
) -> None:
    tiles = [SimpleNamespace(road_visited=bool(flag)) for flag in visited]
    world = SimpleNamespace(road=tiles, t=0.04, car=SimpleNamespace(hull=SimpleNamespace(position=(0.0, 0.0))))
    furthest = -1
    for _ in range(8):
        furthest = furthest_tile(world, furthest)
    drive = outcome_of(world, furthest, spins=0)
    assert (drive.missed, drive.not_reached, drive.frames) == (missed, not_reached, 1)
    assert drive.is_finished == all(visited)


@pytest.mark.parametrize(("world", "greedy"), [("LunarLanderContinuous-v3", "mean"), ("LunarLander-v3", "mode")])
def test_samples_are_compared_with_the_greedy_rule_that_the_actions_have(world: str, greedy: str) -> None:
    agents = usual_agents([f"--env_name={world}", "--mode=evaluate", "--checkpoint=shipped"])
    assert [agent.rule for agent in agents] == ["sample", greedy]


@pytest.mark.slow
def test_the_shipped_agent_s_losses_are_printed_for_each_rule(capsys: pytest.CaptureFixture[str]) -> None:
    lost_points.main(["--checkpoint=shipped", "--episodes=1", "--rng_seed=1000000"])
    title, _, _, _, *rows = capsys.readouterr().out.splitlines()
    assert "1 tracks, pygame" in title
    assert [row.split("|")[1].strip() for row in rows] == ["sample", "mean"]
    for row in rows:
        score, *losses = (float(cell.split("±")[0]) for cell in (row.split("|")[2], *row.split("|")[8:12]))
        assert score + sum(losses) == pytest.approx(1000.0, abs=0.3)
