"""The Atari world compared with ALE's own vector environment, and its protocol."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ale_py
import gymnasium
import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ppo.config import Config, RunSettings
from ppo.envs import check_environment
from ppo.envs.atari import rom_name
from ppo.envs.atari.block import AtariEnvironments
from ppo.envs.atari.game import AtariGame
from ppo.envs.atari.screens import push_screens
from ppo.families import AtariSettings, family_of
from ppo.settings import Refusal

BARE = AtariSettings(noop_max=0, fire_reset=False)
NOOP = 0

# ------------------------------------------------------------------------------------------- against AtariVectorEnv


@dataclass(frozen=True)
class Played:
    """The results of one environment for a sequence of actions; the first observation is that of `reset`."""

    observations: NDArray[np.uint8]
    rewards: NDArray[np.float64]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    life_lost: NDArray[np.bool_]
    final_observations: NDArray[np.uint8]
    """One per game that ended."""


def reference_environment(rom: str, *, life_loss_info: bool = False, max_frames: int = 108_000) -> AtariVectorEnv:
    return AtariVectorEnv(
        rom,
        1,
        noop_max=0,
        use_fire_reset=False,
        reward_clipping=False,
        autoreset_mode=AutoresetMode.SAME_STEP,
        num_threads=1,
        life_loss_info=life_loss_info,
        max_num_frames_per_episode=max_frames,
    )


def play(env: gymnasium.vector.VectorEnv, actions: NDArray[np.int64]) -> Played:
    """Play (T, 1) actions in a block of one environment."""
    observations = [env.reset()[0][0].copy()]
    rewards, terminated, truncated, life_lost, final = [], [], [], [], []
    for action in actions:
        observation, reward, over, cut, info = env.step(action)
        observations.append(observation[0].copy())
        rewards.append(float(reward[0]))
        terminated.append(bool(over[0]))
        truncated.append(bool(cut[0]))
        life_lost.append(bool(info["life_lost"][0]) if "life_lost" in info else False)
        if over[0] or cut[0]:
            final.append(info["final_obs"][0].copy())
    screens = np.array(final, np.uint8).reshape(len(final), *observations[0].shape)
    return Played(*map(np.array, (observations, rewards, terminated, truncated, life_lost)), screens)


@cache
def number_of_actions(rom: str) -> int:
    return len(AtariGame(rom, BARE, index=0, seed=0).actions)


def random_actions(rom: str, num_steps: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, number_of_actions(rom), (num_steps, 1))


# How many games end within 500 random actions.
GAMES_THAT_END = {"pong": 0, "breakout": 2, "seaquest": 1, "qbert": 1, "tetris": 1, "space_invaders": 0, "freeway": 0}


# The seeds of the two emulators differ, on purpose: without sticky actions no game uses ALE's random numbers.
@pytest.fixture(scope="module", params=GAMES_THAT_END)
def both(request: pytest.FixtureRequest) -> tuple[Played, Played]:
    """The same 500 random actions in this program's environment and in ALE's."""
    actions = random_actions(request.param, 500)
    reference = play(reference_environment(request.param), actions)
    assert reference.terminated.sum() == GAMES_THAT_END[request.param]
    return play(AtariEnvironments(request.param, BARE, indices=range(1), seed=7), actions), reference


def test_observations_are_those_of_the_ale_vector_environment_pixel_for_pixel(both: tuple[Played, Played]) -> None:
    ours, reference = both
    np.testing.assert_array_equal(ours.observations, reference.observations)


def test_rewards_are_those_of_the_ale_vector_environment(both: tuple[Played, Played]) -> None:
    ours, reference = both
    np.testing.assert_array_equal(ours.rewards, reference.rewards)


def test_ends_are_those_of_the_ale_vector_environment(both: tuple[Played, Played]) -> None:
    ours, reference = both
    np.testing.assert_array_equal(ours.terminated, reference.terminated)
    np.testing.assert_array_equal(ours.truncated, reference.truncated)


def test_final_observations_are_those_of_the_ale_vector_environment(both: tuple[Played, Played]) -> None:
    ours, reference = both
    np.testing.assert_array_equal(ours.final_observations, reference.final_observations)


# Bank Heist plays its last life at 0 lives, from step 525 to 613.
@pytest.mark.parametrize(("rom", "num_steps"), [("breakout", 300), ("seaquest", 300), ("bank_heist", 620)])
def test_lost_lives_are_those_of_the_ale_vector_environment(rom: str, num_steps: int) -> None:
    actions = random_actions(rom, num_steps)
    ours = play(AtariEnvironments(rom, BARE, indices=range(1), seed=7), actions)
    # With life_loss_info ALE reports a lost life as a termination, without starting a new game.
    reference = play(reference_environment(rom, life_loss_info=True), actions)
    assert ours.life_lost.sum() >= 3
    np.testing.assert_array_equal(ours.life_lost | ours.terminated, reference.terminated)


def test_games_are_cut_where_the_ale_vector_environment_cuts_them() -> None:
    actions = random_actions("pong", 130)
    world = AtariSettings(noop_max=0, fire_reset=False, max_frames=202)
    ours = play(AtariEnvironments("pong", world, indices=range(1), seed=7), actions)
    reference = play(reference_environment("pong", max_frames=202), actions)
    assert np.flatnonzero(ours.truncated).tolist() == [50, 101]
    np.testing.assert_array_equal(ours.truncated, reference.truncated)
    np.testing.assert_array_equal(ours.terminated, reference.terminated)
    np.testing.assert_array_equal(ours.observations, reference.observations)


# --------------------------------------------------------------------------------------------- the start of a game


def test_a_game_begins_with_one_to_noop_max_noops() -> None:
    assert set(frames_before_play(noop_max=3, num_games=40)) == {1, 2, 3}


def test_noop_max_zero_means_no_noops() -> None:
    assert frames_before_play(noop_max=0, num_games=2) == [0, 0]


def test_noops_are_drawn_separately_for_every_environment() -> None:
    assert frames_before_play(noop_max=30, num_games=5, index=0) != frames_before_play(
        noop_max=30, num_games=5, index=1
    )


def test_fire_is_pressed_for_one_step_at_the_start_of_a_game_that_uses_it() -> None:
    game = AtariGame("breakout", AtariSettings(noop_max=0), index=0, seed=0)
    game.reset()
    assert game._ale.getEpisodeFrameNumber() == 4


def test_fire_is_not_pressed_in_a_game_that_does_not_use_it() -> None:
    game = AtariGame("freeway", AtariSettings(noop_max=0), index=0, seed=0)
    game.reset()
    assert game._ale.getEpisodeFrameNumber() == 0


def frames_before_play(*, noop_max: int, num_games: int, index: int = 0) -> list[int]:
    """Return how many frames each of an environment's first games begins with; Freeway does not use FIRE."""
    game = AtariGame("freeway", AtariSettings(noop_max=noop_max), index=index, seed=0)
    frames = []
    for _ in range(num_games):
        game.reset()
        frames.append(game._ale.getEpisodeFrameNumber())
    return frames


@pytest.mark.parametrize("rom", ["breakout", "ms_pacman"])
def test_an_environment_is_the_same_whatever_block_it_is_in(rom: str) -> None:
    # Games are cut, in steps of their own, and sizes are such that blocks of all sizes are resized together.
    world, blocks = AtariSettings(sticky_actions=0.25, max_frames=150), [range(7), range(3), range(3, 5), range(5, 7)]
    whole, *parts = (AtariEnvironments(rom, world, indices=indices, seed=3) for indices in blocks)
    for envs in (whole, *parts):
        envs.reset()
    num_ends = 0
    for actions in np.random.default_rng(0).integers(0, 4, (60, 7)):
        observations, _, _, truncated, info = whole.step(actions)
        num_ends += truncated.sum()
        for part, block in zip(parts, blocks[1:], strict=True):
            own = slice(block.start, block.stop)
            shown, _, _, cut, final = part.step(actions[own])
            np.testing.assert_array_equal(observations[own], shown)
            np.testing.assert_array_equal(info["final_obs"][own][cut], final["final_obs"][cut])
    assert num_ends >= 7


def test_environments_of_a_block_begin_differently() -> None:
    envs = AtariEnvironments("freeway", AtariSettings(), indices=range(4), seed=0)
    observations, _ = envs.reset()
    assert len({observation.tobytes() for observation in observations}) > 1


def test_the_seed_changes_how_games_begin() -> None:
    firsts = [AtariEnvironments("freeway", AtariSettings(), indices=range(2), seed=seed).reset()[0] for seed in (0, 1)]
    assert not np.array_equal(firsts[0], firsts[1])


# ---------------------------------------------------------------------------------------------------- lives and ends


def breakout_without_pressing_fire(*, fire_reset: bool, num_steps: int) -> Played:
    """Move at random and never fire; the ball comes into play only if the environment fires."""
    moves = np.random.default_rng(0).choice([NOOP, 2, 3], (num_steps, 1))
    world = AtariSettings(noop_max=0, fire_reset=fire_reset)
    return play(AtariEnvironments("breakout", world, indices=range(1), seed=0), moves)


def test_fire_after_a_lost_life_brings_the_ball_back_into_play() -> None:
    played = breakout_without_pressing_fire(fire_reset=True, num_steps=200)
    assert played.life_lost.sum() >= 4 and played.terminated.sum() == 1


def test_without_fire_reset_a_policy_that_never_fires_waits_for_ever() -> None:
    played = breakout_without_pressing_fire(fire_reset=False, num_steps=200)
    assert not played.life_lost.any() and not played.terminated.any() and not played.rewards.any()


def test_a_lost_life_is_not_a_termination() -> None:
    played = breakout_without_pressing_fire(fire_reset=True, num_steps=200)
    assert not (played.life_lost & (played.terminated | played.truncated)).any()


def test_the_return_of_a_game_is_the_sum_of_its_raw_rewards() -> None:
    # Without no-ops and FIRE every frame belongs to a step.
    envs = AtariEnvironments("qbert", BARE, indices=range(1), seed=0)
    envs.reset()
    total, length = 0.0, 0
    for action in random_actions("qbert", 500):
        _, rewards, terminated, _, info = envs.step(action)
        total, length = total + rewards[0], length + 1
        if terminated[0]:
            break
    assert terminated[0] and total > 25.0
    assert (info["episode_return"][0], info["episode_length"][0]) == (total, length)


def test_rewards_are_not_clipped() -> None:
    played = play(AtariEnvironments("qbert", BARE, indices=range(1), seed=0), random_actions("qbert", 200))
    assert played.rewards.max() == 25.0


def test_a_new_game_counts_from_zero() -> None:
    envs = AtariEnvironments("pong", AtariSettings(noop_max=0, max_frames=40), indices=range(1), seed=0)
    envs.reset()
    lengths = []
    for action in random_actions("pong", 40):
        _, _, _, truncated, info = envs.step(action)
        if truncated[0]:
            lengths.append(int(info["episode_length"][0]))
    # FIRE takes 4 of the 40 frames.
    assert lengths == [9, 9, 9, 9]


def test_max_frames_truncates_and_does_not_terminate() -> None:
    world = AtariSettings(noop_max=0, fire_reset=False, max_frames=100)
    played = play(AtariEnvironments("pong", world, indices=range(1), seed=0), random_actions("pong", 30))
    assert np.flatnonzero(played.truncated).tolist() == [24]
    assert not played.terminated.any()


def test_the_final_observation_of_a_cut_game_is_what_the_uncut_game_shows() -> None:
    # Here AtariVectorEnv differs: it stops at frame max_frames and does not read the screen of its last frame.
    actions = random_actions("pong", 30)
    world = AtariSettings(noop_max=0, fire_reset=False, max_frames=100)
    cut = play(AtariEnvironments("pong", world, indices=range(1), seed=0), actions)
    uncut = play(AtariEnvironments("pong", BARE, indices=range(1), seed=0), actions)
    np.testing.assert_array_equal(cut.final_observations[0], uncut.observations[25])


def test_after_an_end_the_observation_is_the_first_of_the_next_game() -> None:
    played = play(AtariEnvironments("breakout", BARE, indices=range(1), seed=0), random_actions("breakout", 300))
    end = int(np.flatnonzero(played.terminated)[0])
    np.testing.assert_array_equal(played.observations[end + 1], played.observations[0])


def test_a_game_that_is_over_in_its_last_frame_is_not_also_cut() -> None:
    actions = random_actions("breakout", 300)
    over = int(
        np.flatnonzero(play(AtariEnvironments("breakout", BARE, indices=range(1), seed=0), actions).terminated)[0]
    )
    world = AtariSettings(noop_max=0, fire_reset=False, max_frames=4 * over + 1)
    played = play(AtariEnvironments("breakout", world, indices=range(1), seed=0), actions[: over + 1])
    assert played.terminated[over] and not played.truncated[over]


def test_an_end_in_one_environment_leaves_the_others_playing() -> None:
    envs = AtariEnvironments("freeway", AtariSettings(max_frames=80), indices=range(3), seed=0)
    envs.reset()
    ends = [tuple(envs.step(np.full(3, NOOP))[3].tolist()) for _ in range(20)]
    # Different no-ops, so that each game is cut in a step of its own.
    assert sorted(end for end in ends if any(end)) == [(False, False, True), (False, True, False), (True, False, False)]


# ------------------------------------------------------------------------------------------------------ observations


def test_observations_are_channel_first_bytes() -> None:
    envs = AtariEnvironments("pong", AtariSettings(), indices=range(2), seed=0)
    observations, _ = envs.reset()
    assert (observations.shape, observations.dtype) == ((2, 4, 84, 84), np.uint8)
    assert envs.observation_space.contains(observations)


def test_observations_lie_channels_last_in_memory() -> None:
    observations, _ = AtariEnvironments("pong", AtariSettings(), indices=range(2), seed=0).reset()
    assert observations.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("depth", [3, 4])
def test_the_stack_moves_on_by_one_screen_with_the_newest_last(depth: int) -> None:
    world = AtariSettings(noop_max=0, fire_reset=False, frame_stack=depth)
    played = play(AtariEnvironments("freeway", world, indices=range(1), seed=0), np.full((20, 1), NOOP))
    stacks = played.observations
    np.testing.assert_array_equal(stacks[1:, :-1], stacks[:-1, 1:])
    assert not np.array_equal(stacks[-1, -1], stacks[-1, -2])


def test_a_new_stack_holds_one_screen_behind_empty_ones() -> None:
    observations, _ = AtariEnvironments("pong", AtariSettings(), indices=range(1), seed=0).reset()
    assert not observations[0, :3].any() and observations[0, 3].any()


def test_frame_stack_one_shows_the_newest_screen_of_a_stack() -> None:
    actions = random_actions("pong", 20)
    world = AtariSettings(noop_max=0, fire_reset=False, frame_stack=1)
    single = play(AtariEnvironments("pong", world, indices=range(1), seed=0), actions).observations
    stacked = play(AtariEnvironments("pong", BARE, indices=range(1), seed=0), actions).observations
    assert single.shape == (21, 1, 84, 84)
    np.testing.assert_array_equal(single[:, 0], stacked[:, 3])


def test_a_screen_is_the_maximum_of_the_last_two_frames() -> None:
    # Space Invaders draws its shots on every other frame, so that neither frame alone shows all.
    game = AtariGame("space_invaders", BARE, index=0, seed=0)
    emulator = ale_py.ALEInterface()
    emulator.setFloat("repeat_action_probability", 0.0)
    emulator.loadROM(ale_py.roms.get_rom_path("space_invaders"))
    game.reset()
    emulator.reset_game()
    stack, steps_where_both_frames_matter = np.zeros((84, 84, 4), np.uint8), 0
    for action in random_actions("space_invaders", 100)[:, 0]:
        game.step(int(action))
        frames = []
        for _ in range(4):
            emulator.act(emulator.getMinimalActionSet()[action])
            frames.append(emulator.getScreenGrayscale())
        pooled = np.maximum(frames[2], frames[3])
        push_screens(stack, game.screens, game.greys)
        np.testing.assert_array_equal(game.greys[game.screens[0]], pooled)
        steps_where_both_frames_matter += (pooled > frames[2]).any() and (pooled > frames[3]).any()
    assert steps_where_both_frames_matter > 0


def test_a_frame_listener_receives_every_frame_of_the_first_environment_in_colour() -> None:
    frames: list[NDArray[np.uint8]] = []
    envs = AtariEnvironments("pong", BARE, indices=range(2), seed=0, on_frame=frames.append)
    envs.reset()
    envs.step(np.array([0, 0]))
    envs.step(np.array([0, 0]))
    assert len(frames) == 8
    assert (frames[0].shape, frames[0].dtype) == ((210, 160, 3), np.uint8)


def test_a_frame_listener_changes_nothing() -> None:
    actions = random_actions("breakout", 60)
    watched = play(AtariEnvironments("breakout", BARE, indices=range(1), seed=0, on_frame=lambda frame: None), actions)
    unwatched = play(AtariEnvironments("breakout", BARE, indices=range(1), seed=0), actions)
    np.testing.assert_array_equal(watched.observations, unwatched.observations)


# ----------------------------------------------------------------------------------------------------------- actions


def test_sticky_actions_change_the_game() -> None:
    actions = random_actions("breakout", 100)
    world = AtariSettings(noop_max=0, fire_reset=False, sticky_actions=0.25)
    sticky = play(AtariEnvironments("breakout", world, indices=range(1), seed=0), actions)
    plain = play(AtariEnvironments("breakout", BARE, indices=range(1), seed=0), actions)
    assert not np.array_equal(sticky.observations, plain.observations)


def test_sticky_actions_are_the_same_again_with_the_same_seed_only() -> None:
    actions = random_actions("breakout", 100)
    world = AtariSettings(noop_max=0, fire_reset=False, sticky_actions=0.25)
    first, again, other = (
        play(AtariEnvironments("breakout", world, indices=range(1), seed=seed), actions).observations
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_sticky_actions_differ_between_environments() -> None:
    world = AtariSettings(noop_max=0, fire_reset=False, sticky_actions=0.25)
    envs = AtariEnvironments("breakout", world, indices=range(2), seed=0)
    envs.reset()
    for action in random_actions("breakout", 60):
        envs.step(action.repeat(2))
    assert not np.array_equal(envs.observations[0], envs.observations[1])


def test_sticky_actions_repeat_the_previous_action_with_their_probability() -> None:
    class CountingEmulator:
        """Notes the actions that reach the emulator."""

        def __init__(self) -> None:
            self.actions: list[int] = []

        def act(self, action: int) -> int:
            self.actions.append(action)
            return 0

    game = AtariGame("pong", AtariSettings(sticky_actions=0.25), index=0, seed=0)
    emulator = CountingEmulator()
    game._ale = emulator  # type: ignore[assignment]
    for frame in range(8000):
        game._act(2 + frame % 2)
    asked = np.array([2 + frame % 2 for frame in range(8000)])
    repeated = np.array(emulator.actions) != asked
    # Asked for A B A B ..., a repeat shows as the wrong letter unless the frame before was a repeat too, so that the
    # wrong letter has the probability p / (1 + p).
    assert repeated.mean() == pytest.approx(0.25 / 1.25, abs=0.015)


def test_the_full_action_space_has_18_actions() -> None:
    envs = AtariEnvironments("pong", AtariSettings(full_action_space=True), indices=range(2), seed=0)
    assert envs.single_action_space.n == 18
    assert envs.action_space.nvec.tolist() == [18, 18]


def test_actions_are_those_the_game_uses_by_default() -> None:
    assert AtariEnvironments("breakout", AtariSettings(), indices=range(1), seed=0).single_action_space.n == 4


# ------------------------------------------------------------------------------------------------------------ states


def one_game(rom: str, *, sticky_actions: float = 0.0, max_frames: int = 108_000, index: int = 3) -> AtariEnvironments:
    world = AtariSettings(sticky_actions=sticky_actions, max_frames=max_frames)
    return AtariEnvironments(rom, world, indices=range(index, index + 1), seed=1)


def play_until(envs: AtariEnvironments, actions: NDArray[np.int64]) -> AtariEnvironments:
    envs.reset()
    for action in actions:
        envs.step(action)
    return envs


def assert_go_on_alike(original: AtariEnvironments, fresh: AtariEnvironments, actions: NDArray[np.int64]) -> int:
    """Step both and compare all there is; return how many games ended."""
    np.testing.assert_array_equal(fresh.observations, original.observations)
    ends = 0
    for action in actions:
        for before, after in zip(original.step(action)[:4], fresh.step(action)[:4], strict=True):
            np.testing.assert_array_equal(after, before)
        np.testing.assert_array_equal(fresh.arrays.life_lost, original.arrays.life_lost)
        np.testing.assert_array_equal(fresh._games[0]._ale.getRAM(), original._games[0]._ale.getRAM())
        if original.arrays.terminated[0] or original.arrays.truncated[0]:
            ends += 1
            for key in ("final_obs", "episode_return", "episode_length"):
                np.testing.assert_array_equal(getattr(fresh.arrays, key), getattr(original.arrays, key))
    return ends


def assert_same_state(first: dict[str, NDArray], second: dict[str, NDArray]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.parametrize("sticky_actions", [0.0, 0.25])
@pytest.mark.parametrize("rom", ["pong", "breakout", "seaquest", "qbert", "tetris"])
def test_a_fresh_block_continues_from_a_state_bit_for_bit(rom: str, sticky_actions: float) -> None:
    actions = random_actions(rom, 357)
    original = play_until(one_game(rom, sticky_actions=sticky_actions), actions[:237])
    fresh = one_game(rom, sticky_actions=sticky_actions)
    assert fresh.set_states(original.get_states()) == []
    assert_go_on_alike(original, fresh, actions[237:])


@pytest.mark.parametrize(("saved_at", "sticky_actions"), [(95, 0.25), (210, 0.0)])
def test_berzerk_continues_exactly_from_a_saved_state(saved_at: int, sticky_actions: float) -> None:
    actions = random_actions("berzerk", 400)
    original = play_until(one_game("berzerk", sticky_actions=sticky_actions), actions[:saved_at])
    fresh = one_game("berzerk", sticky_actions=sticky_actions)
    assert fresh.set_states(original.get_states()) == []
    assert assert_go_on_alike(original, fresh, actions[saved_at:]) > 0


# The start of these games depends on the RAM that the last game left behind.
@pytest.mark.parametrize("rom", ["crossbow", "haunted_house", "yars_revenge"])
def test_a_game_that_begins_with_what_the_last_one_left_in_ram_continues_exactly(rom: str) -> None:
    actions = random_actions(rom, 160)
    original = play_until(one_game(rom, max_frames=250), actions[:100])
    assert original._games[0].episode > 0
    fresh = one_game(rom, max_frames=250)
    assert fresh.set_states(original.get_states()) == []
    assert assert_go_on_alike(original, fresh, actions[100:]) > 0


# Tic-Tac-Toe 3D computes for longer than a frame, so the chip draws only a part of it. ALE cannot copy that.
def test_a_game_that_is_saved_while_a_frame_is_half_drawn_continues_exactly() -> None:
    actions = random_actions("tic_tac_toe_3d", 60)
    original = play_until(one_game("tic_tac_toe_3d"), actions[:31])
    fresh = one_game("tic_tac_toe_3d")
    assert fresh.set_states(original.get_states()) == []
    assert_go_on_alike(original, fresh, actions[31:])


def test_a_state_from_the_step_before_a_game_ends_is_exact_to_the_final_observation() -> None:
    actions = random_actions("berzerk", 400)
    original = one_game("berzerk")
    original.reset()
    end = next(step for step, action in enumerate(actions) if original.step(action)[2][0])
    original, fresh = play_until(one_game("berzerk"), actions[:end]), one_game("berzerk")
    assert fresh.set_states(original.get_states()) == []
    assert assert_go_on_alike(original, fresh, actions[end : end + 5]) == 1


@pytest.mark.parametrize("saved_at", [0, 150])
def test_a_restored_game_saves_what_the_game_that_was_never_stopped_saves(saved_at: int) -> None:
    actions = random_actions("qbert", 200)
    original = play_until(one_game("qbert", sticky_actions=0.25, max_frames=300), actions[:saved_at])
    fresh = one_game("qbert", sticky_actions=0.25, max_frames=300)
    fresh.set_states(original.get_states())
    assert_same_state(fresh.get_states()[0], original.get_states()[0])
    assert_go_on_alike(original, fresh, actions[saved_at:])
    assert_same_state(fresh.get_states()[0], original.get_states()[0])


CONTINUE = """
import sys, numpy as np
from ppo.families import AtariSettings
from ppo.envs.atari.block import AtariEnvironments
saved = dict(np.load(sys.argv[1]))
actions, observations = saved.pop("next_actions"), saved.pop("observations")
envs = AtariEnvironments("berzerk", AtariSettings(sticky_actions=0.25), indices=range(3, 4), seed=1)
assert envs.set_states([saved]) == []
for action, expected in zip(actions, observations, strict=True):
    assert (envs.step(action)[0] == expected).all()
"""


def test_another_process_continues_exactly(tmp_path: Path) -> None:
    actions = random_actions("berzerk", 150)
    original = play_until(one_game("berzerk", sticky_actions=0.25), actions[:90])
    state = original.get_states()[0]
    observations = np.array([original.step(action)[0].copy() for action in actions[90:]])
    np.savez(tmp_path / "state.npz", **state, next_actions=actions[90:], observations=observations)
    subprocess.run([sys.executable, "-c", CONTINUE, tmp_path / "state.npz"], check=True, timeout=120)


def test_a_block_goes_back_to_a_state_of_its_own() -> None:
    # Sticky actions are drawn 4096 frames at a time: 1100 steps later the numbers of the state have been replaced.
    envs = AtariEnvironments("freeway", AtariSettings(sticky_actions=0.25), indices=range(1), seed=1)
    envs.reset()
    actions = random_actions("freeway", 1100)
    states, observations = envs.get_states(), []
    for action in actions:
        observations.append(envs.step(action)[0].copy())
    envs.set_states(states)
    for action, expected in zip(actions[:60], observations, strict=False):
        np.testing.assert_array_equal(envs.step(action)[0], expected)


def test_a_restored_game_ends_with_its_whole_return_and_length() -> None:
    actions = random_actions("breakout", 300)
    original = AtariEnvironments("breakout", AtariSettings(), indices=range(1), seed=1)
    original.reset()
    for action in actions[:100]:
        original.step(action)
    fresh = AtariEnvironments("breakout", AtariSettings(), indices=range(1), seed=1)
    fresh.set_states(original.get_states())
    for action in actions[100:]:
        over = original.step(action)[2][0]
        fresh.step(action)
        if over:
            break
    assert original.arrays.episode_length[0] > 100
    for key in ("episode_return", "episode_length", "final_obs"):
        np.testing.assert_array_equal(getattr(fresh.arrays, key), getattr(original.arrays, key))


def test_a_restored_game_is_cut_at_the_same_frame() -> None:
    world = AtariSettings(max_frames=200)
    original = AtariEnvironments("pong", world, indices=range(1), seed=1)
    original.reset()
    for _ in range(20):
        original.step(np.array([0]))
    fresh = AtariEnvironments("pong", world, indices=range(1), seed=1)
    fresh.set_states(original.get_states())
    cuts = [(bool(original.step(np.array([0]))[3][0]), bool(fresh.step(np.array([0]))[3][0])) for _ in range(40)]
    assert (True, True) in cuts and (True, False) not in cuts and (False, True) not in cuts


def test_the_games_after_a_restored_one_begin_as_they_would_have() -> None:
    world = AtariSettings(max_frames=100)
    original = AtariEnvironments("pong", world, indices=range(1), seed=1)
    original.reset()
    fresh = AtariEnvironments("pong", world, indices=range(1), seed=1)
    for _ in range(30):
        original.step(np.array([0]))
    fresh.set_states(original.get_states())
    for _ in range(60):
        original.step(np.array([0]))
        fresh.step(np.array([0]))
        np.testing.assert_array_equal(fresh.observations, original.observations)


@pytest.mark.parametrize("rom", ["qbert", "berzerk"])
def test_taking_a_state_does_not_disturb_the_game(rom: str) -> None:
    actions = random_actions(rom, 130)
    undisturbed = play(AtariEnvironments(rom, BARE, indices=range(1), seed=0), actions).observations
    envs = AtariEnvironments(rom, BARE, indices=range(1), seed=0)
    envs.reset()
    for step, action in enumerate(actions):
        envs.get_states()
        envs.step(action)
        np.testing.assert_array_equal(envs.observations[0], undisturbed[step + 1])


def test_a_frame_listener_is_not_called_during_a_replay() -> None:
    frames: list[NDArray[np.uint8]] = []
    original = play_until(one_game("pong"), random_actions("pong", 20))
    envs = AtariEnvironments("pong", AtariSettings(), indices=range(3, 4), seed=1, on_frame=frames.append)
    assert envs.set_states(original.get_states()) == []
    assert frames == []
    envs.step(np.array([0]))
    assert len(frames) == 4


# -------------------------------------------------------------------------- states that are not exact, or not states


State = dict[str, NDArray]


def one_short_game(rom: str, *, index: int = 0) -> AtariEnvironments:
    return one_game(rom, sticky_actions=0.25, max_frames=240, index=index)


@cache
def state_of(rom: str) -> State:
    """Return a state of `one_short_game`, in its second game."""
    return play_until(one_short_game(rom), random_actions(rom, 70)).get_states()[0]


@pytest.mark.parametrize("part", ["counters", "generator", "ram", "actions", "digest"])
def test_whatever_part_of_a_state_is_forgotten_is_noticed(part: str) -> None:
    state = state_of("haunted_house")
    assert one_short_game("haunted_house").set_states([state]) == []
    assert one_short_game("haunted_house").set_states([{**state, part: np.zeros_like(state[part])}]) == [0]


def test_the_state_of_another_environment_is_noticed() -> None:
    assert one_short_game("pong", index=7).set_states([state_of("pong")]) == [7]


def test_an_inexact_game_begins_the_next_game_and_can_be_saved_again() -> None:
    state = state_of("pong")
    envs, fresh = one_short_game("pong"), one_short_game("pong")
    assert envs.set_states([{**state, "digest": state["digest"] ^ 1}]) == [0]
    assert envs.get_states()[0]["counters"][0] == state["counters"][0] + 1
    assert envs.get_states()[0]["actions"].size == 0
    assert not envs.observations[0, :3].any() and envs.observations[0, 3].any()
    assert fresh.set_states(envs.get_states()) == []
    assert_go_on_alike(envs, fresh, random_actions("pong", 30))


def test_actions_that_continue_past_the_end_of_a_game_are_not_exact() -> None:
    envs = one_short_game("breakout")
    assert envs.set_states([{**state_of("breakout"), "actions": np.ones(59, np.uint8)}]) == [0]
    assert envs._games[0].episode_length == 0


def test_only_the_games_that_are_not_exact_are_restarted() -> None:
    original = AtariEnvironments("pong", AtariSettings(), indices=range(4, 7), seed=0)
    original.reset()
    for action in random_actions("pong", 30):
        original.step(action.repeat(3))
    states = original.get_states()
    states[1]["actions"][:] = 2
    fresh = AtariEnvironments("pong", AtariSettings(), indices=range(4, 7), seed=0)
    assert fresh.set_states(states) == [5]
    np.testing.assert_array_equal(fresh.observations[[0, 2]], original.observations[[0, 2]])
    assert not fresh.observations[1, :3].any()


def changed(state: State, part: str, position: int, value: int) -> State:
    array = state[part].copy()
    array[position] = value
    return {**state, part: array}


MALFORMED: dict[str, Callable[[State], State]] = {
    "with a part missing": lambda state: {name: array for name, array in state.items() if name != "actions"},
    "with a part too many": lambda state: {**state, "more": np.zeros(1)},
    "with too few counters": lambda state: {**state, "counters": state["counters"][:1]},
    "with a negative game": lambda state: changed(state, "counters", 0, -1),
    "with a game at the limit": lambda state: changed(state, "counters", 0, 2**48),
    "with more frames than there can be": lambda state: changed(state, "counters", 1, 2**62),
    "with counters of another type": lambda state: {**state, "counters": state["counters"].astype(np.float64)},
    "with a generator cut short": lambda state: {**state, "generator": state["generator"][:-1]},
    "with a word too large": lambda state: changed(state, "generator", 0, 2**32),
    "with a negative word": lambda state: changed(state, "generator", 5, -1),
    "with a position past the end": lambda state: changed(state, "generator", 624, 625),
    "with a negative position": lambda state: changed(state, "generator", 624, -1),
    "with too much RAM": lambda state: {**state, "ram": np.zeros(129, np.uint8)},
    "with an action there is not": lambda state: changed(state, "actions", 3, 6),
    "with actions in two dimensions": lambda state: {**state, "actions": state["actions"][None]},
    "with an action in none": lambda state: {**state, "actions": state["actions"][0]},
    "with signed actions": lambda state: {**state, "actions": state["actions"].astype(np.int8)},
    "with more actions than a game has": lambda state: {**state, "actions": np.zeros(27_000, np.uint8)},
    "with half a digest": lambda state: {**state, "digest": state["digest"][:16]},
    "of an emulator copied whole": lambda state: {"emulator": np.zeros(14_000, np.uint8)},
}


def test_from_the_last_game_that_can_be_saved_a_run_goes_on_to_states_that_can_be_read() -> None:
    envs, other = (AtariEnvironments("pong", AtariSettings(), indices=range(5, 6), seed=0) for _ in range(2))
    last = changed(changed(state_of("pong"), "counters", 0, 2**48 - 1), "counters", 1, 2**48 - 1)
    envs.set_states([last])
    for _ in range(2):
        envs.end_episode(0)
        assert other.set_states(envs.get_states()) == []


@pytest.fixture(scope="module")
def untouched() -> AtariEnvironments:
    """Environments that no test brings to a state."""
    return AtariEnvironments("pong", AtariSettings(), indices=range(5, 7), seed=0)


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_state_is_refused_naming_its_environment_before_any_is_touched(
    kind: str, untouched: AtariEnvironments
) -> None:
    state = state_of("pong")
    with pytest.raises(ValueError, match=r"saved .* of environment 6"):
        untouched.set_states([state, MALFORMED[kind](state)])
    assert untouched._games[0].episode == -1


def test_states_for_another_number_of_environments_are_refused(untouched: AtariEnvironments) -> None:
    with pytest.raises(ValueError, match="the number of states must be 2, one per environment, got 1"):
        untouched.set_states([state_of("pong")])


CORRUPT = """
import numpy as np
from ppo.families import AtariSettings
from ppo.envs.atari.block import AtariEnvironments
rng = np.random.default_rng(0)
envs = AtariEnvironments("qbert", AtariSettings(sticky_actions=0.25), indices=range(1), seed=0)
envs.reset()
for _ in range(20):
    envs.step(np.array([1]))
(good,) = envs.get_states()
outcomes = {"refused": 0, "restarted": 0}
while min(outcomes.values()) < 6:
    state = {name: array.copy() for name, array in good.items()}
    for name in rng.choice(list(state), 2):
        data = state[name].view(np.uint8)
        data[rng.integers(data.size, size=rng.integers(1, 40))] = rng.integers(256)
    try:
        restarted = envs.set_states([state])
    except ValueError:
        outcomes["refused"] += 1
        continue
    outcomes["restarted"] += restarted == [0]
    # What passes for exact is exact: this game does not depend on the RAM of the one before.
    assert restarted or (envs.get_states()[0]["digest"] == good["digest"]).all()
    envs.step(np.array([1]))
print("survived")
"""


def test_no_corruption_of_a_state_crashes_or_goes_unnoticed() -> None:
    job = subprocess.run([sys.executable, "-c", CORRUPT], capture_output=True, text=True, timeout=120)
    assert (job.returncode, job.stdout) == (0, "survived\n"), job.stderr


# ------------------------------------------------------------------------------------------------------------- names


def check(env_name: str) -> None:
    """Check an id under the default protocol of its family."""
    check_environment(Config(run=RunSettings(env_name=env_name), world=family_of(env_name).settings()))


@pytest.mark.parametrize("env_name", ["MsPacmanNoFrameskip-v4", "ALE/MsPacman-v5"])
def test_both_spellings_name_the_same_rom(env_name: str) -> None:
    assert family_of(env_name).name == "atari"
    assert rom_name(env_name) == "ms_pacman"


@pytest.mark.parametrize(
    ("env_name", "nearest"),
    [("PnogNoFrameskip-v4", "PongNoFrameskip-v4"), ("ALE/Breakuot-v5", "ALE/Breakout-v5")],
)
def test_an_unknown_game_is_refused_with_the_nearest_known_one(env_name: str, nearest: str) -> None:
    with pytest.raises(Refusal, match=f"did you mean '{nearest}'"):
        check(env_name)


@pytest.mark.parametrize("env_name", ["Pong-v4", "Pong-v0", "PongNoFrameskip-v0", "Pong-ram-v4"])
def test_an_id_whose_own_protocol_would_be_ignored_is_refused_naming_one_that_is_served(env_name: str) -> None:
    with pytest.raises(Refusal, match=r"(try|did you mean) '?(PongNoFrameskip-v4|ALE/Pong-v5)"):
        check(env_name)


@pytest.fixture
def combat() -> Iterator[str]:
    """The id of a two-player game that ALE has no support for, though a ROM of that name may exist."""
    env_name = "ALE/Combat-v5"
    gymnasium.register(env_name, entry_point="ale_py.env:AtariEnv", kwargs={"game": "combat"})
    yield env_name
    del gymnasium.registry[env_name]


def test_a_game_that_ale_cannot_load_is_refused_without_ending_the_process(combat: str) -> None:
    with pytest.raises(Refusal, match="cannot load"):
        check(combat)


@pytest.mark.parametrize("kind", ["plain", "sticky", "drawn"])
def test_a_closed_block_leaves_no_emulator_for_ale_to_report_at_exit(kind: str) -> None:
    program = """
import gc, sys
from ppo.envs.atari.block import AtariEnvironments
from ppo.families import AtariSettings

world = AtariSettings(sticky_actions=0.25 if sys.argv[1] == "sticky" else 0.0)
listener = print if sys.argv[1] == "drawn" else None
envs = AtariEnvironments("pong", world, indices=range(2), seed=0, on_frame=listener)
gc.freeze()  # as the program does, so as not to collect cycles at exit
envs.close()
envs.close()
"""
    done = subprocess.run([sys.executable, "-c", program, kind], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout + done.stderr == ""
