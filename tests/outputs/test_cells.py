"""A terminal shows what was drawn, and gets no more than what differs."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from ppo.outputs.cells import Cells, fitted, narrow

BLACK, RED, BLUE = (0, 0, 0), (248, 0, 0), (0, 0, 248)
Cell = tuple[str, tuple[int, ...], tuple[int, ...]]


def packed(pixels: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return pixels (H, W, 3) as a picture has them."""
    red, green, blue = np.moveaxis(pixels.astype(np.uint32), 2, 0)
    return np.asarray(blue << 16 | green << 8 | red, np.uint32)


def unpacked(pixels: NDArray[np.uint32]) -> NDArray[np.uint8]:
    return np.stack([pixels & 255, pixels >> 8 & 255, pixels >> 16 & 255], 2).astype(np.uint8)


class Screen:
    """As much of a terminal as is needed here."""

    def __init__(self, rows: int, columns: int) -> None:
        self.cells: list[list[Cell]] = [[("?", (), ())] * columns for _ in range(rows)]
        self.written = 0

    def obey(self, text: str) -> None:
        row = column = 0
        front: tuple[int, ...] = ()
        back: tuple[int, ...] = ()
        for match in re.finditer(r"\x1b\[\?2026[hl]|\x1b\[(\d+);(\d+)H|\x1b\[([\d;]+)m|([^\x1b])", text):
            if match[1]:
                row, column = int(match[1]) - 1, int(match[2]) - 1
            elif match[3]:
                numbers = [int(number) for number in match[3].split(";")]
                while len(numbers) >= 5:
                    kind, two, *colour = numbers[:5]
                    assert two == 2
                    front, back = (tuple(colour), back) if kind == 38 else (front, tuple(colour))
                    del numbers[:5]
            elif match[4]:
                self.cells[row][column] = (match[4], front if match[4] != " " else (), back)
                column += 1
                self.written += 1
        assert re.sub(r"\x1b\[\?2026[hl]|\x1b\[[\d;]+[Hm]", "", text).isprintable()


def test_a_terminal_shows_the_colours_of_a_picture_two_pixels_in_a_cell() -> None:
    cells, screen = Cells(2, 3, BLACK), Screen(2, 3)
    pixels = np.zeros((4, 3, 3), np.uint8)
    pixels[0, 0], pixels[1, 0], pixels[2:, 2] = RED, BLUE, BLUE
    cells.picture(0, 0, packed(pixels))
    screen.obey(cells.changes())
    assert screen.cells[0][0] == ("\u2580", RED, BLUE)
    assert screen.cells[1][2] == (" ", (), BLUE)
    assert screen.cells[0][1] == (" ", (), BLACK)


def test_only_what_differs_is_written_and_it_is_enough() -> None:
    random = np.random.default_rng(0)
    cells, screen = Cells(12, 40, BLACK), Screen(12, 40)
    pixels = random.integers(0, 256, (24, 30, 3), np.uint8)
    for _ in range(20):
        pixels[tuple(random.integers(0, 24, 3)), tuple(random.integers(0, 30, 3))] = random.integers(0, 256, 3)
        cells.picture(0, 0, packed(pixels))
        cells.write(int(random.integers(0, 12)), 31, f"{random.integers(0, 99)} %", RED)
        cells.curve(11, 31, random.random(6), BLUE, BLACK)
        before = screen.written
        screen.obey(cells.changes())
        anew, copy = Screen(12, 40), Cells(12, 40, BLACK)
        copy._cells[:] = cells._cells
        anew.obey(copy.changes())
        assert screen.cells == anew.cells
    assert screen.written - before < 30
    assert cells.changes() == ""


def test_what_hardly_differs_is_not_written_again() -> None:
    cells = Cells(1, 1, BLACK)
    cells.picture(0, 0, packed(np.full((2, 1, 3), 100, np.uint8)))
    assert cells.changes()
    cells.picture(0, 0, packed(np.full((2, 1, 3), 102, np.uint8)))
    assert cells.changes() == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[2J\x1b]0;title\x07red\x9b31m", "?[2J?]0;title?red?31m"),
        ("a\nb\tc\r", "a b c "),
        ("\u8eca wide", "? wide"),
        ("e\u0301 joined \u202e back", "e? joined ? back"),
        ("\u2580\u2588", "\u2580\u2588"),
    ],
)
def test_no_text_is_obeyed_or_wider_than_it_has_characters(text: str, shown: str) -> None:
    assert narrow(text) == shown
    cells, screen = Cells(1, 40, BLACK), Screen(1, 40)
    cells.write(0, 0, text, RED)
    screen.obey(cells.changes())
    assert "".join(character for character, _, _ in screen.cells[0]).rstrip() == shown.rstrip()


@pytest.mark.parametrize(("row", "column"), [(-1, 0), (3, 0), (1, 9), (1, 100)])
def test_what_is_off_the_screen_is_cut(row: int, column: int) -> None:
    cells = Cells(3, 10, BLACK)
    cells.write(row, column, "abcdef", RED)
    cells.bar(row, column, 6, 0.5, RED, BLUE)
    cells.picture(max(0, row), column, packed(np.full((8, 20, 3), 200, np.uint8)))
    screen = Screen(3, 10)
    screen.obey(cells.changes())


@pytest.mark.parametrize(
    ("fraction", "text"), [(0.0, "    "), (0.5, "██  "), (0.53, "██▏ "), (1.0, "████"), (7.0, "████")]
)
def test_a_bar_fills_its_share_to_an_eighth_of_a_cell(fraction: float, text: str) -> None:
    cells, screen = Cells(1, 4, BLACK), Screen(1, 4)
    cells.bar(0, 0, 4, fraction, RED, BLUE)
    screen.obey(cells.changes())
    assert "".join(character for character, _, _ in screen.cells[0]) == text


@pytest.mark.parametrize("shape", [(210, 160), (400, 600), (96, 96), (3, 200), (200, 3), (1, 1), (1080, 1920)])
@pytest.mark.parametrize("room", [(23, 40), (52, 110), (2, 5), (1, 1)])
def test_a_picture_of_any_size_fits_in_its_proportions(shape: tuple[int, int], room: tuple[int, int]) -> None:
    rows, columns = room
    pixels = unpacked(fitted([np.full((*shape, 3), 90, np.uint8)], rows, columns))
    height, width = pixels.shape[:2]
    assert 2 <= height <= 2 * rows and height % 2 == 0
    assert 1 <= width <= columns
    assert (pixels == 90).all()
    assert abs(height / shape[0] - width / shape[1]) < 2.1 / min(shape)


def test_a_ball_that_is_smaller_than_a_pixel_can_be_seen_wherever_it_is() -> None:
    for place in range(40):
        frame = np.full((210, 160, 3), 60, np.uint8)
        frame[50 + place : 54 + place, 30 + place : 32 + place] = 236
        assert unpacked(fitted([frame], 23, 40)).max() > 140


def test_a_thin_pole_is_not_broken() -> None:
    for place in range(20):
        frame = np.full((400, 600, 3), 255, np.uint8)
        frame[100:300, 300 + place : 310 + place] = (200, 150, 100)
        rows = unpacked(fitted([frame], 23, 46))[10:20, :, 1]
        assert (rows.min(1) < 200).all()


@pytest.mark.parametrize("room", [(23, 40), (105, 160)])
def test_what_is_on_one_of_two_frames_is_seen(room: tuple[int, int]) -> None:
    frames = [np.full((210, 160, 3), (10, 60, 30), np.uint8) for _ in range(2)]
    frames[1][40:80, 40:80] = (250, 90, 40)
    pixels = unpacked(fitted(frames, *room))
    assert {tuple(pixel) for pixel in pixels.reshape(-1, 3).tolist()} >= {(10, 60, 30), (250, 90, 40)}
    assert (fitted(frames[::-1], *room) & 0xFFFFFF == fitted(frames, *room) & 0xFFFFFF).all()
