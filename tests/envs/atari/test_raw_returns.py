"""Returns of whole games compared with the rewards of a second emulator that gets the same actions frame by frame."""

import ale_py
import numpy as np
import pytest
from ale_py import roms
from numpy.typing import NDArray

from ppo.envs.atari.block import AtariEnvironments
from ppo.envs.atari.game import AtariGame
from ppo.envs.atari.vector import AtariVectorEnvironments
from ppo.families import AtariSettings

# Skiing has a reward in every frame and a penalty at the end, Double Dunk and Private Eye have rewards of both signs,
# Video Pinball large ones; Tennis is a match to 24 points. The last number is for how many steps an action is held.
GAMES = [
    ("skiing", 1),
    pytest.param("double_dunk", 1, marks=pytest.mark.slow),
    ("video_pinball", 1),
    pytest.param("private_eye", 10, marks=pytest.mark.slow),
    ("tennis", 1),
]


def added_up(rom: str, frames: list[int]) -> tuple[float, int]:
    """Return the sum of ALE's own rewards until a game is over, and how many frames were left then."""
    emulator = ale_py.ALEInterface()
    emulator.setFloat("repeat_action_probability", 0.0)
    emulator.loadROM(roms.get_rom_path(rom))
    emulator.reset_game()
    total = 0.0
    for number, action in enumerate(frames, start=1):
        total += emulator.act(action)
        if emulator.game_over():
            return total, len(frames) - number
    raise AssertionError("the game goes on")


def whole_game(envs: AtariEnvironments | AtariVectorEnvironments, steps_held: int) -> tuple[float, NDArray[np.float64]]:
    """Play a game at random to its end and return its return as reported, and the rewards of its steps."""
    rng, rewards = np.random.default_rng(0), []
    while True:
        action = rng.integers(int(envs.single_action_space.n), size=1)
        for _ in range(steps_held):
            _, reward, terminated, truncated, info = envs.step(action)
            rewards.append(float(reward[0]))
            assert not truncated[0]
            if terminated[0]:
                return float(info["episode_return"][0]), np.array(rewards)


@pytest.mark.parametrize(("rom", "steps_held"), GAMES)
def test_the_return_of_a_whole_game_is_the_sum_of_the_rewards_of_ale(rom: str, steps_held: int) -> None:
    envs = AtariEnvironments(rom, AtariSettings(), indices=range(1), seed=0)
    (game,) = envs._games
    frames: list[int] = []
    frames_of_games: list[list[int]] = []
    act, reset = game._act, game.reset

    def noted(action: int) -> int:
        frames.append(action)
        return act(action)

    def reset_noted() -> None:
        frames_of_games.append(frames.copy())
        frames.clear()
        reset()

    game._act, game.reset = noted, reset_noted  # type: ignore[method-assign]
    envs.reset()
    episode_return, rewards = whole_game(envs, steps_held)
    assert added_up(rom, frames_of_games[1]) == (episode_return, 0)
    assert len(np.unique(rewards)) > 1


# Skiing has no FIRE. The vector engine does not know the rewards of no-ops.
@pytest.mark.parametrize("rom", ["skiing", "tennis"])
def test_so_is_that_of_the_vector_engine(rom: str) -> None:
    envs = AtariVectorEnvironments(rom, AtariSettings(noop_max=0), indices=range(1), seed=0, threads=1)
    engine = envs._engines[0]
    meanings = AtariGame(rom, AtariSettings(), index=0, seed=0).actions
    actions: list[int] = []
    send = engine.send

    def noted(sent: NDArray[np.int64]) -> None:
        actions.append(meanings[int(sent[0])])
        send(sent)

    engine.send = noted  # type: ignore[method-assign]
    envs.reset()
    episode_return, _ = whole_game(envs, 1)
    total, frames_left = added_up(rom, [action for action in actions for _ in range(4)])
    assert episode_return == total and frames_left < 4
