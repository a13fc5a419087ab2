"""The vector engine compared with the lean one, the differences of its protocol, and its saved states."""

import numpy as np
import pytest
from numpy.typing import NDArray

from ppo.envs import Engine, Environments, StepResult, make_envs
from ppo.envs.atari.block import AtariEnvironments
from ppo.envs.atari.vector import AtariVectorEnvironments
from ppo.families import AtariSettings

BARE = AtariSettings(noop_max=0, fire_reset=False)
NOOP, FIRE, RIGHT = 0, 1, 2


def vector(rom: str, world: AtariSettings = BARE, *, indices: range = range(3), seed: int = 0, threads: int = 2):
    return AtariVectorEnvironments(rom, world, indices=indices, seed=seed, threads=threads)


def lean(rom: str, world: AtariSettings = BARE, *, indices: range = range(3)) -> AtariEnvironments:
    return AtariEnvironments(rom, world, indices=indices, seed=7)


def random_actions(envs: Environments, num_steps: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, int(envs.single_action_space.n), (num_steps, envs.num_envs))


def assert_play_alike(ours: Environments, reference: Environments, num_steps: int) -> dict[str, int]:
    """Take the same random steps in both and compare all results; return the count of each kind of event."""
    happened = {"terminated": 0, "truncated": 0, "life_lost": 0}
    np.testing.assert_array_equal(ours.reset()[0], reference.reset()[0])
    for t, actions in enumerate(random_actions(ours, num_steps)):
        got, expected = ours.step(actions), reference.step(actions)
        for name, one, other in zip(
            ("observations", "rewards", "terminated", "truncated"), got, expected, strict=False
        ):
            np.testing.assert_array_equal(one, other, err_msg=f"{name} of step {t}")
        np.testing.assert_array_equal(got[4]["life_lost"], expected[4]["life_lost"], err_msg=f"lives of step {t}")
        ended = got[2] | got[3]
        for name in ("final_obs", "episode_return", "episode_length"):
            np.testing.assert_array_equal(got[4][name][ended], expected[4][name][ended], err_msg=f"{name} of step {t}")
        happened["terminated"] += got[2].sum()
        happened["truncated"] += got[3].sum()
        happened["life_lost"] += got[4]["life_lost"].sum()
    return happened


# ---------------------------------------------------------------------------------------------- against the lean engine


# Pooyan has a screen of another height than the others.
@pytest.mark.parametrize(
    ("rom", "num_steps", "lives_lost", "games_over"),
    [
        ("pong", 100, 0, 0),
        ("breakout", 250, 18, 3),
        ("seaquest", 350, 9, 1),
        ("qbert", 350, 9, 2),
        ("pooyan", 250, 1, 0),
    ],
)
def test_without_no_ops_and_fire_everything_is_as_in_the_lean_engine(
    rom: str, num_steps: int, lives_lost: int, games_over: int
) -> None:
    happened = assert_play_alike(vector(rom), lean(rom), num_steps)
    assert happened == {"terminated": games_over, "truncated": 0, "life_lost": lives_lost}


def test_a_last_life_that_is_played_at_zero_lives_is_lost_as_in_the_lean_engine() -> None:
    happened = assert_play_alike(vector("bank_heist", indices=range(1)), lean("bank_heist", indices=range(1)), 620)
    assert happened["life_lost"] >= 3 and happened["terminated"] == 1


# 202 frames are no whole number of steps; Breakout is over before 600 frames in some games and not in others.
@pytest.mark.parametrize(
    ("rom", "max_frames", "num_steps", "games_over", "games_cut"),
    [("pong", 202, 105, 0, 6), ("pong", 100, 30, 0, 3), ("breakout", 600, 300, 2, 4)],
)
def test_games_are_cut_as_in_the_lean_engine_and_show_their_last_screen(
    rom: str, max_frames: int, num_steps: int, games_over: int, games_cut: int
) -> None:
    world = AtariSettings(noop_max=0, fire_reset=False, max_frames=max_frames)
    happened = assert_play_alike(vector(rom, world), lean(rom, world), num_steps)
    assert (happened["terminated"], happened["truncated"]) == (games_over, games_cut)


def test_a_game_that_is_over_in_the_last_step_is_not_cut() -> None:
    uncut = vector("breakout", indices=range(1))
    uncut.reset()
    actions = random_actions(uncut, 300)
    over = next(t for t, action in enumerate(actions) if uncut.step(action)[2][0])
    world = AtariSettings(noop_max=0, fire_reset=False, max_frames=4 * over + 1)
    happened = assert_play_alike(
        vector("breakout", world, indices=range(1)), lean("breakout", world, indices=range(1)), over + 1
    )
    assert (happened["terminated"], happened["truncated"]) == (1, 0)


def test_what_ale_reports_about_the_game_after_one_that_is_over_neither_cuts_it_nor_loses_a_life() -> None:
    class Over:
        def recv(self) -> StepResult:
            screens = np.zeros((1, 1, 84, 84), np.uint8)
            info = {"lives": np.array([3]), "episode_frame_number": np.array([30]), "final_obs": screens}
            return screens, np.zeros(1), np.array([True]), np.array([False]), info

    envs = vector("breakout", AtariSettings(max_frames=20), indices=range(1))
    envs.reset()  # with 5 lives
    envs._engines[0] = Over()
    _, _, terminated, truncated, info = envs.recv(envs.groups[0])
    assert (terminated[0], truncated[0], info["life_lost"][0]) == (True, False, False)


@pytest.mark.parametrize("frame_stack", [1, 3])
def test_stacks_of_other_depths_are_those_of_the_lean_engine(frame_stack: int) -> None:
    world = AtariSettings(noop_max=0, fire_reset=False, frame_stack=frame_stack, max_frames=100)
    assert_play_alike(vector("freeway", world, indices=range(1)), lean("freeway", world, indices=range(1)), 60)


def test_all_actions_mean_what_they_mean_in_the_lean_engine() -> None:
    world = AtariSettings(noop_max=0, fire_reset=False, full_action_space=True)
    envs = vector("seaquest", world, indices=range(1))
    assert envs.single_action_space.n == 18
    assert_play_alike(envs, lean("seaquest", world, indices=range(1)), 120)


def test_spaces_and_memory_order_are_those_of_the_lean_engine() -> None:
    ours, reference = vector("pong", indices=range(1)), lean("pong", indices=range(1))
    assert ours.single_observation_space == reference.single_observation_space
    assert ours.single_action_space == reference.single_action_space
    assert ours.metadata == reference.metadata
    assert (ours.observations.dtype, ours.observations.strides) == (np.uint8, reference.observations.strides)
    assert ours.observation_space.contains(ours.reset()[0])


# --------------------------------------------------------------------------------------------------------------- FIRE


def test_fire_is_a_step_of_its_own_before_every_life_of_a_game_that_is_else_that_of_the_lean_engine() -> None:
    world = AtariSettings(noop_max=0)
    ours, reference = vector("breakout", world, indices=range(1)), lean("breakout", world, indices=range(1))
    reference.reset()
    ours.reset()
    moves, fires, games = np.random.default_rng(0).choice([NOOP, RIGHT, 3], 400), 0, 0
    begins, press = True, True
    for move in moves:
        if press:
            ours.step(np.array([RIGHT]))
            fires += 1
            if not begins:  # the lean engine begins a game with a single frame, not with the maximum of two
                np.testing.assert_array_equal(ours.observations[0, 3], reference.observations[0, 3])
        _, rewards, terminated, _, info = ours.step(np.array([move]))
        _, expected_rewards, expected_terminated, _, expected = reference.step(np.array([move]))
        assert (rewards[0], terminated[0]) == (expected_rewards[0], expected_terminated[0])
        assert info["life_lost"][0] == expected["life_lost"][0]
        begins = bool(terminated[0])
        press = begins or bool(info["life_lost"][0])
        if not press:  # else the other screen is already that after FIRE
            np.testing.assert_array_equal(ours.observations[0, 3], reference.observations[0, 3])
        if terminated[0]:
            games += 1
            assert info["episode_return"][0] == expected["episode_return"][0]
            assert info["episode_length"][0] == expected["episode_length"][0] + 5
    assert games >= 1 and fires >= 10


def test_the_first_step_of_a_life_takes_no_action() -> None:
    still, moving = (vector("breakout", AtariSettings(noop_max=0), indices=range(1)) for _ in range(2))
    still.reset()
    moving.reset()
    for envs, action in ((still, NOOP), (moving, RIGHT)):
        envs.step(np.array([action]))
    np.testing.assert_array_equal(still.observations, moving.observations)
    for _ in range(4):
        still.step(np.array([NOOP]))
        moving.step(np.array([RIGHT]))
    assert not np.array_equal(still.observations, moving.observations)


@pytest.mark.parametrize(("rom", "fire_reset"), [("freeway", True), ("breakout", False)])
def test_fire_is_not_pressed_where_the_game_or_the_user_has_no_use_for_it(rom: str, fire_reset: bool) -> None:
    world = AtariSettings(noop_max=0, fire_reset=fire_reset)
    assert_play_alike(vector(rom, world, indices=range(1)), lean(rom, world, indices=range(1)), 30)


def test_fire_is_found_among_all_actions_too() -> None:
    world = AtariSettings(noop_max=0, full_action_space=True)
    envs = vector("breakout", world, indices=range(1))
    envs.reset()
    for _ in range(200):
        *_, info = envs.step(np.array([NOOP]))
        if info["life_lost"][0]:
            return
    raise AssertionError("the ball never came into play")


# ------------------------------------------------------------------------------------------ the start of a game, chance


def test_a_game_begins_with_up_to_noop_max_noops() -> None:
    engines = vector("freeway", AtariSettings(noop_max=1), indices=range(6))._engines.values()
    frames = [engine.reset(seed=seed)[1]["episode_frame_number"] for seed, engine in enumerate(engines)]
    assert set(np.concatenate(frames).tolist()) == {0, 1}


def played(envs: Environments, num_steps: int, row: int = 0) -> NDArray[np.uint8]:
    """Return what an environment shows over so many steps of one action."""
    shown = [envs.reset()[0][row].copy()]
    shown += [envs.step(np.full(envs.num_envs, RIGHT))[0][row].copy() for _ in range(num_steps)]
    return np.stack(shown)


STICKY = AtariSettings(sticky_actions=0.5, max_frames=160)


def test_an_environment_is_the_same_whatever_block_it_is_in() -> None:
    whole, alone = (
        vector("breakout", STICKY, indices=range(4)),
        vector("breakout", STICKY, indices=range(3, 4), threads=1),
    )
    np.testing.assert_array_equal(played(whole, 120, row=3), played(alone, 120))


@pytest.mark.parametrize(("indices", "seed"), [(range(1, 2), 0), (range(1), 1)])
def test_other_environments_and_other_seeds_are_other_games(indices: range, seed: int) -> None:
    first = played(vector("breakout", STICKY, indices=range(1)), 60)
    assert not np.array_equal(first, played(vector("breakout", STICKY, indices=indices, seed=seed), 60))


def test_sticky_actions_repeat_the_action_before() -> None:
    actions = np.random.default_rng(1).choice([RIGHT, 3], (100, 1))
    shown = []
    for sticky_actions in (0.0, 0.5):
        envs = vector("breakout", AtariSettings(noop_max=0, sticky_actions=sticky_actions), indices=range(1))
        envs.reset()
        shown.append(np.stack([envs.step(action)[0].copy() for action in actions]))
    assert not np.array_equal(*shown)


# ------------------------------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize(
    ("num_envs", "groups"), [(1, [slice(0, 1)]), (2, [slice(0, 1), slice(1, 2)]), (5, [slice(0, 2), slice(2, 5)])]
)
def test_a_block_is_stepped_in_two_halves(num_envs: int, groups: list[slice]) -> None:
    assert list(vector("pong", indices=range(num_envs)).groups) == groups


def test_groups_that_are_sent_and_received_in_any_order_step_as_the_block_does() -> None:
    world = AtariSettings(max_frames=80)
    block, parts = vector("breakout", world), vector("breakout", world)
    block.reset()
    parts.reset()
    first, second = parts.groups
    for actions in random_actions(block, 60):
        observations, rewards, terminated, truncated, info = block.step(actions)
        results: dict[int, StepResult] = {}
        parts.send(first, actions[first])
        parts.send(second, actions[second])
        results[second.start] = parts.recv(second)
        results[first.start] = parts.recv(first)
        for group in (first, second):
            got = results[group.start]
            for one, whole in zip(got, (observations, rewards, terminated, truncated), strict=False):
                np.testing.assert_array_equal(one, whole[group])
            ended = terminated[group] | truncated[group]
            for name, whole in info.items():
                valid = slice(None) if name == "life_lost" else ended
                np.testing.assert_array_equal(got[4][name][valid], whole[group][valid], err_msg=name)
        np.testing.assert_array_equal(parts.observations, observations)


def test_a_group_that_is_on_its_way_leaves_the_others_as_they_are() -> None:
    envs = vector("breakout", indices=range(2))
    envs.reset()
    first, second = envs.groups
    before = envs.observations[second].copy()
    envs.send(second, np.array([FIRE]))
    envs.send(first, np.array([FIRE]))
    envs.recv(first)
    np.testing.assert_array_equal(envs.observations[second], before)
    envs.recv(second)
    assert not np.array_equal(envs.observations[second], before)


# ------------------------------------------------------------------------------------------------------- saved states


def test_a_state_is_the_number_of_the_game() -> None:
    envs = vector("pong", AtariSettings(max_frames=100), indices=range(2))
    envs.reset()
    ended = np.zeros(2, np.int64)
    for actions in random_actions(envs, 60):
        assert [state["episode"].tolist() for state in envs.get_states()] == [[number] for number in ended]
        ended += envs.step(actions)[3]
    assert ended.min() >= 2


def test_a_state_brings_back_the_game_after_it_and_says_so() -> None:
    original, first, second = (vector("breakout", STICKY, indices=range(4, 6)) for _ in range(3))
    played(original, 100)
    states = original.get_states()
    assert first.set_states(states) == second.set_states(states) == [4, 5]
    assert [state["episode"][0] for state in first.get_states()] == [state["episode"][0] + 1 for state in states]
    for actions in random_actions(first, 50):
        np.testing.assert_array_equal(first.step(actions)[0], second.step(actions)[0])
    fresh = vector("breakout", STICKY, indices=range(4, 6))
    assert not np.array_equal(played(fresh, 10), played_on(first, 10))


def played_on(envs: Environments, num_steps: int) -> NDArray[np.uint8]:
    """Resume the saved games of these environments and return what the first shows, as `played` does."""
    envs.set_states(envs.get_states())
    shown = [envs.observations[0].copy()]
    return np.stack(shown + [envs.step(np.full(envs.num_envs, RIGHT))[0][0].copy() for _ in range(num_steps)])


def test_a_state_of_the_lean_engine_begins_the_game_after_it() -> None:
    other, envs = lean("pong", indices=range(2)), vector("pong", indices=range(2))
    played(other, 30)
    assert envs.set_states(other.get_states()) == [0, 1]
    assert [state["episode"].tolist() for state in envs.get_states()] == [[1], [1]]


def test_the_lean_engine_begins_the_game_after_a_state_of_this_one() -> None:
    envs, other = vector("pong", indices=range(2)), lean("pong", indices=range(2))
    played(envs, 10)
    assert other.set_states(envs.get_states()) == [0, 1]
    assert [state["counters"][0] for state in other.get_states()] == [1, 1]
    assert not other.observations[:, :3].any() and other.observations[:, 3].any()


@pytest.fixture(scope="module", params=["lean", "processes", "vector"])
def untouched(request: pytest.FixtureRequest) -> Environments:
    """Environments of every engine that no test brings to a state."""
    engine = Engine(request.param, workers=1)
    envs = make_envs("PongNoFrameskip-v4", BARE, indices=range(5, 7), seed=0, engine=engine)
    envs.reset()
    return envs


@pytest.mark.parametrize(
    "state",
    [
        {"episode": np.array([-1])},
        {"episode": np.array([2**60])},
        {"episode": np.array([0.0])},
        {"episode": np.array([0, 1])},
        {"episode": np.array(0)},
        {"nothing": np.array([0])},
        {"counters": np.array([-1, 0])},
        {"counters": np.array([1])},
        {},
    ],
    ids=str,
)
def test_an_invalid_state_is_refused_by_environment_before_any_is_touched(
    untouched: Environments, state: dict[str, NDArray]
) -> None:
    before, number = untouched.observations.copy(), untouched.get_states()[0]
    with pytest.raises(ValueError, match=r"environment 6"):
        untouched.set_states([{"episode": np.array([3])}, state])
    np.testing.assert_array_equal(untouched.observations, before)
    assert all(np.array_equal(untouched.get_states()[0][name], array) for name, array in number.items())


def test_states_for_another_number_of_environments_are_refused() -> None:
    with pytest.raises(ValueError, match="the number of states must be 2, one per environment, got 1"):
        vector("pong", indices=range(2)).set_states([{"episode": np.array([0])}])
