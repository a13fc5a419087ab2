"""Pooling, resizing and stacking screens compared with OpenCV, and the greys with ALE."""

import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ppo.envs.atari import accepted_names, game, rom_name, screens
from ppo.envs.atari.block import AtariEnvironments
from ppo.envs.atari.game import AtariGame
from ppo.envs.atari.screens import IDENTITY_GREYS, NTSC_GREYS, push_screens, push_screens_by_opencv
from ppo.families import AtariSettings

GAMES = sorted({rom_name(name) for name in accepted_names()})
# Of all games that ALE can load.
HEIGHTS = (210, 214, 220, 230, 250)
BARE = AtariSettings(noop_max=0, fire_reset=False)


def noise(generator: np.random.Generator, height: int) -> NDArray[np.uint8]:
    return generator.integers(0, 256, (2, height, 160), dtype=np.uint8)


def few_colours(generator: np.random.Generator, height: int) -> NDArray[np.uint8]:
    """Many averages of these lie halfway between two whole numbers."""
    return generator.choice(np.array([0, 90, 142, 200], np.uint8), (2, height, 160))


def blocks(generator: np.random.Generator, height: int) -> NDArray[np.uint8]:
    """Rows that repeat the one above, as in games."""
    coarse = generator.integers(0, 256, (2, height // 2, 40), dtype=np.uint8)
    return np.repeat(np.repeat(coarse, 2, axis=1), 4, axis=2)


def single_pixels(generator: np.random.Generator, height: int) -> NDArray[np.uint8]:
    """Rows, and screens, that differ in one pixel here and there."""
    seen = np.full((2, height, 160), 90, np.uint8)
    places = generator.integers(0, seen.size, 60)
    seen.reshape(-1)[places] = generator.integers(0, 256, 60)
    seen[0, 50, 159], seen[1, 100, 159], seen[:, 150, 159] = 200, 210, 220
    return seen


@pytest.mark.parametrize("push", [push_screens, push_screens_by_opencv])
@pytest.mark.parametrize("height", HEIGHTS)
@pytest.mark.parametrize("draw", [noise, few_colours, blocks, single_pixels])
def test_the_newest_picture_is_opencvs_area_interpolation_of_the_maximum_to_the_last_bit(
    draw: Callable[[np.random.Generator, int], NDArray[np.uint8]], height: int, push: Callable[..., None]
) -> None:
    generator = np.random.default_rng(height)
    for depth in (4, 1, 3, 4):
        seen = np.ascontiguousarray(draw(generator, height))
        greys = generator.permutation(256).astype(np.uint8)
        pooled = greys[seen].max(axis=0)
        stack = generator.integers(0, 256, (84, 84, depth), dtype=np.uint8)
        before = stack.copy()
        push(stack, seen, greys)
        np.testing.assert_array_equal(stack[..., -1], cv2.resize(pooled, (84, 84), interpolation=cv2.INTER_AREA))
        np.testing.assert_array_equal(stack[..., :-1], before[..., 1:])
        np.testing.assert_array_equal(greys[seen[0]], pooled)


def test_the_faster_code_is_compiled_wherever_there_is_a_compiler() -> None:
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    headers = Path(sysconfig.get_path("include"), "Python.h")
    assert screens.IS_COMPILED or shutil.which(compiler) is None or not headers.exists()


@pytest.mark.skipif(not screens.IS_COMPILED, reason="needs a C compiler where the package is installed")
@pytest.mark.parametrize(
    ("shape_of_stack", "shape_of_screens", "num_greys"),
    [
        ((84, 84, 4), (2, 210, 160), 255),
        ((84, 83, 4), (2, 210, 160), 256),
        ((84, 84, 0), (2, 210, 160), 256),
        ((84, 84, 4), (1, 210, 160), 256),
        ((84, 84, 4), (2, 257, 160), 256),
        ((84, 84, 4), (2, 210, 84), 256),
        ((84, 84, 4), (2, 210, 168), 256),
        ((20, 20, 4), (2, 210, 160), 256),
        ((84, 84), (2, 210, 160), 256),
    ],
)
def test_compiled_code_refuses_arrays_that_it_would_read_or_write_beyond(
    shape_of_stack: tuple[int, ...], shape_of_screens: tuple[int, ...], num_greys: int
) -> None:
    with pytest.raises(ValueError, match="push_screens takes"):
        push_screens(
            np.zeros(shape_of_stack, np.uint8), np.zeros(shape_of_screens, np.uint8), IDENTITY_GREYS[:num_greys]
        )


@pytest.mark.skipif(not screens.IS_COMPILED, reason="needs a C compiler where the package is installed")
def test_compiled_code_refuses_arrays_of_another_kind() -> None:
    stack, seen = np.zeros((84, 84, 4), np.uint8), np.zeros((2, 210, 160), np.uint8)
    with pytest.raises(ValueError, match="push_screens takes bytes"):
        push_screens(stack.astype(np.float32), seen, IDENTITY_GREYS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not C-contiguous"):
        push_screens(np.zeros((84, 84, 8), np.uint8)[..., ::2], seen, IDENTITY_GREYS)
    with pytest.raises(ValueError, match="not C-contiguous"):
        push_screens(stack.transpose(2, 0, 1), seen, IDENTITY_GREYS)


@pytest.mark.parametrize("rom", GAMES)
def test_the_greys_of_every_game_are_those_of_ale(rom: str) -> None:
    game = AtariGame(rom, BARE, index=0, seed=0)
    game.reset()
    assert (game.greys is NTSC_GREYS) == (game._ale.getScreenDims()[0] < 250)
    generator = np.random.default_rng(0)
    for _ in range(20):
        _, over, _, _ = game.step(int(generator.integers(len(game.actions))))
        if game.greys is NTSC_GREYS:
            np.testing.assert_array_equal(NTSC_GREYS[game._ale.getScreen()], game._ale.getScreenGrayscale())
        else:
            np.testing.assert_array_equal(game._ale.getScreenGrayscale(), game.screens[0])
        if over:
            game.reset()


def test_a_palette_that_is_not_known_is_looked_up_by_ale(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = AtariEnvironments("pong", BARE, indices=range(1), seed=0)
    monkeypatch.setattr(game, "NTSC_GREYS", NTSC_GREYS[::-1].copy())
    unknown = AtariEnvironments("pong", BARE, indices=range(1), seed=0)
    np.testing.assert_array_equal(unknown.reset()[0], expected.reset()[0])
    assert unknown._games[0].greys is IDENTITY_GREYS
    for action in np.random.default_rng(0).integers(6, size=(30, 1)):
        np.testing.assert_array_equal(unknown.step(action)[0], expected.step(action)[0])
