"""FIRE for a policy that never presses it: where games wait for it, in every engine, and nowhere else."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import ale_py
import numpy as np
import pytest

from ppo.envs import Engine, make_envs
from ppo.envs.atari.block import AtariEnvironments
from ppo.envs.atari.fire import FIRE_ACTIONS, MAX_CHECKS, STEPS_BETWEEN_CHECKS, FireWatch
from ppo.envs.atari.game import AtariGame
from ppo.envs.atari.vector import AtariVectorEnvironments
from ppo.families import AtariSettings

SCRIPT = Path(__file__).parents[3] / "scripts" / "check_fire.py"
FIRE, UPFIRE = ale_py.Action.FIRE.value, ale_py.Action.UPFIRE.value
STILL, LONGEST = 2 * STEPS_BETWEEN_CHECKS, MAX_CHECKS * STEPS_BETWEEN_CHECKS

# ------------------------------------------------------------------------------------------------------------- the rule


def presses(happens_at: set[int], *, num_steps: int, picture_changes: bool) -> list[tuple[int, int]]:
    """Return the presses of a watch and their steps, given the steps in which something happens."""
    watch, pressed = FireWatch([FIRE, UPFIRE]), []
    for step in range(1, num_steps + 1):
        if watch.should_check(step in happens_at):
            press = watch.check(np.array([step % 256 if picture_changes else 0], np.uint8))
            if press is not None:
                pressed.append((step, press))
    return pressed


def test_fire_is_pressed_where_nothing_happens_and_the_picture_stays_the_same() -> None:
    assert presses(set(), num_steps=STILL + 10, picture_changes=False) == [(STILL, FIRE)]


def test_fire_is_pressed_where_nothing_happens_for_long_whatever_the_picture() -> None:
    assert presses(set(), num_steps=LONGEST + 10, picture_changes=True) == [(LONGEST, FIRE)]


def test_what_has_not_helped_is_followed_by_fire_with_a_direction_and_all_over_again() -> None:
    expected = [(STILL, FIRE), (2 * STILL, UPFIRE), (3 * STILL, FIRE)]
    assert presses(set(), num_steps=3 * STILL, picture_changes=False) == expected


def test_after_an_event_fire_comes_first_again() -> None:
    expected = [(STILL, FIRE), (STILL + 10 + STILL, FIRE)]
    assert presses({STILL + 10}, num_steps=2 * STILL + 10, picture_changes=False) == expected


def test_nothing_is_pressed_where_something_happens_often_enough() -> None:
    often = set(range(0, 2000, STILL))
    assert presses(often, num_steps=2000, picture_changes=False) == []


def test_the_picture_from_before_an_event_does_not_count() -> None:
    expected = [(STEPS_BETWEEN_CHECKS + 1 + STILL, FIRE)]
    assert presses({STEPS_BETWEEN_CHECKS + 1}, num_steps=STILL * 2, picture_changes=False) == expected


def test_actions_with_fire_are_fire_alone_and_with_each_direction() -> None:
    assert {ale_py.Action(value).name for value in FIRE_ACTIONS} == {
        direction + "FIRE"
        for direction in ("", "UP", "DOWN", "LEFT", "RIGHT", "UPLEFT", "UPRIGHT", "DOWNLEFT", "DOWNRIGHT")
    }


# ------------------------------------------------------------------------------------------------------------ the games


class Recorded(AtariGame):
    """A game that notes the actions that reach the emulator, frame by frame, from the start of the game."""

    def __init__(self, rom: str, world: AtariSettings | None = None) -> None:
        super().__init__(rom, world or AtariSettings(noop_max=0), index=0, seed=0)
        self.frames: list[int] = []
        act = self._act

        def noted(action: int) -> int:
            self.frames.append(action)
            return act(action)

        self._act = noted

    def play(self, num_steps: int, *, moving: bool = False) -> bool:
        """Play on without FIRE, until the game is over or for so many steps; tell whether it is over."""
        moves = [number for number, action in enumerate(self.actions) if action not in FIRE_ACTIONS]
        rng = np.random.default_rng(0)
        return any(self.step(int(rng.choice(moves)) if moving else moves[0])[1] for _ in range(num_steps))

    @property
    def num_fires(self) -> float:
        """How often FIRE was held for a step."""
        return sum(action in FIRE_ACTIONS for action in self.frames) / 4


# Donkey Kong plays its last life at 0 lives, Gopher takes FIRE only once the gopher is back, Kaboom's buckets ALE does
# not count, Name This Game shows its title at first, River Raid its river, Beam Rider wants a direction too.
@pytest.mark.parametrize(
    ("rom", "moving", "num_steps"),
    [
        ("donkey_kong", False, 900),
        ("gopher", False, 1500),
        ("kaboom", False, 500),
        ("kaboom", True, 1500),
        ("name_this_game", False, 2500),
        ("riverraid", False, 900),
        ("beam_rider", False, 2000),
    ],
)
def test_a_game_comes_to_its_end_though_the_policy_never_presses_fire(rom: str, moving: bool, num_steps: int) -> None:
    game = Recorded(rom)
    game.reset()
    assert game.play(num_steps, moving=moving)


def test_without_fire_reset_it_stands_still() -> None:
    game = Recorded("kaboom", AtariSettings(noop_max=0, fire_reset=False))
    game.reset()
    assert not game.play(500) and game.num_fires == 0


def test_a_game_whose_every_life_begins_with_the_first_fire_gets_no_other() -> None:
    game = Recorded("breakout")
    game.reset()
    assert game.play(200)
    # At the start and after four of five lost lives.
    assert game.num_fires == 5


def test_a_whole_game_of_pong_has_fire_at_its_start_only() -> None:
    game = Recorded("pong")
    game.reset()
    assert game.play(1500, moving=True)
    assert game.num_fires == 1


def test_fire_of_the_policy_is_enough() -> None:
    # Adventure has no reward and no end here: nothing but the policy's own FIRE happens.
    game = Recorded("adventure")
    game.reset()
    fire = game.actions.index(FIRE)
    for _ in range(4):
        assert not game.play(STILL - 1)
        game.step(fire)
    assert game.num_fires == 5


def test_a_new_game_begins_with_a_watch_of_its_own() -> None:
    game = Recorded("adventure")
    game.reset()
    game.play(STILL - 1)
    game.reset()
    game.frames.clear()
    game.play(STILL - 1)
    assert game.num_fires == 0
    game.play(1)
    assert game.num_fires == 1


# -------------------------------------------------------------------------------------------- the engines, saved states


def lean(rom: str, num_envs: int = 1, *, noop_max: int = 0) -> AtariEnvironments:
    return AtariEnvironments(rom, AtariSettings(noop_max=noop_max), indices=range(num_envs), seed=0)


def frame_number(envs: AtariEnvironments) -> int:
    number: int = envs._games[0]._ale.getEpisodeFrameNumber()
    return number


@pytest.mark.parametrize(
    ("rom", "num_steps", "full_action_space"),
    [("kaboom", 380, False), ("double_dunk", 560, True), ("donkey_kong", 700, False)],
)
def test_in_the_vector_engine_fire_is_the_next_step(rom: str, num_steps: int, full_action_space: bool) -> None:
    world = AtariSettings(noop_max=0, full_action_space=full_action_space)
    ours = AtariVectorEnvironments(rom, world, indices=range(1), seed=0, threads=1)
    reference = AtariEnvironments(rom, world, indices=range(1), seed=0)
    ours.reset()
    reference.reset()
    noop, pressed, ended = np.array([0]), 0, False
    ours.step(noop)
    for _ in range(num_steps):
        before = frame_number(reference)
        _, rewards, terminated, _, info = ours.step(noop)
        total, life_lost, ended = float(rewards[0]), bool(info["life_lost"][0]), bool(terminated[0])
        _, expected, expected_end, _, expected_info = reference.step(noop)
        if not expected_end[0] and frame_number(reference) - before > 4:
            # In the lean engine FIRE is a part of this step; here the next action has no effect.
            pressed += not life_lost
            _, rewards, terminated, _, _ = ours.step(noop)
            total, ended = total + float(rewards[0]), bool(terminated[0])
        assert (total, life_lost, ended) == (expected[0], expected_info["life_lost"][0], expected_end[0])
        if ended:
            break
        np.testing.assert_array_equal(ours.observations[0, 3], reference.observations[0, 3])
    assert pressed >= 1


def test_games_of_the_vector_engine_wait_each_for_itself() -> None:
    # Some are told to fire and some are not: only these get FIRE from the engine, and all at the same time.
    ours = AtariVectorEnvironments("adventure", AtariSettings(noop_max=0), indices=range(5), seed=0, threads=2)
    ours.reset()
    fires = np.array([0, FIRE, 0, FIRE, 0])
    for _ in range(1 + STILL):
        assert (ours._press_next[fires == 0] == ours._press_next[0]).all()
        ours.step(np.where(np.arange(5) % 2, FIRE, 0))
    assert (ours._press_next >= 0).tolist() == [True, False, True, False, True]


def test_in_the_engine_of_processes_fire_is_pressed_as_in_the_lean_one() -> None:
    world = AtariSettings()
    ours = make_envs("ALE/Kaboom-v5", world, indices=range(2), seed=0, engine=Engine("processes", workers=2))
    reference = AtariEnvironments("kaboom", world, indices=range(2), seed=0)
    np.testing.assert_array_equal(ours.reset()[0], reference.reset()[0])
    ends = 0
    for _ in range(450):
        got, expected = ours.step(np.zeros(2, np.int64)), reference.step(np.zeros(2, np.int64))
        for one, other in zip(got[:4], expected[:4], strict=True):
            np.testing.assert_array_equal(one, other)
        ends += int(expected[2].sum())
    ours.close()
    assert ends >= 2


# Before the first check, between two, and after FIRE was pressed; without a reward nothing else tells them apart.
@pytest.mark.parametrize("saved_at", [STEPS_BETWEEN_CHECKS - 10, STILL - 1, STILL + 20])
def test_a_game_that_waits_is_resumed_exactly(saved_at: int) -> None:
    original, fresh = lean("kaboom", noop_max=30), lean("kaboom", noop_max=30)
    original.reset()
    noop = np.array([0])
    for _ in range(saved_at):
        original.step(noop)
    assert fresh.set_states(original.get_states()) == []
    ends = 0
    for _ in range(400 - saved_at):
        ends += int(original.step(noop)[2][0])
        fresh.step(noop)
        np.testing.assert_array_equal(fresh.observations, original.observations)
        assert frame_number(fresh) == frame_number(original)
    assert ends >= 1
    np.testing.assert_array_equal(fresh.get_states()[0]["digest"], original.get_states()[0]["digest"])


# ------------------------------------------------------------------------------------------------------------ the check


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_fire", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("rom", "verdict"), [("kaboom", "goes on with FIRE"), ("breakout", "goes on"), ("adventure", "no event")]
)
def test_the_check_reports_what_a_game_does(script: ModuleType, rom: str, verdict: str) -> None:
    row = script.check(rom, "nothing done", script.Options(steps=800))
    assert (row.verdict, row.waits_in_vain) == (verdict, False)


def test_the_check_fails_where_fire_is_not_pressed(tmp_path: Path) -> None:
    flags = ["--games", "kaboom", "--steps=600", "--blind", f"--output={tmp_path / 'fire.md'}"]
    job = subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True, timeout=120)
    assert job.returncode == 1, job.stderr
    assert "0 of 1 games get FIRE in time; waiting in vain: ['kaboom']" in job.stdout
    assert "Exceptions: kaboom." in (tmp_path / "fire.md").read_text()
