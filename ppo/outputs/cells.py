"""A terminal's screen as cells of one character and two colours; only cells that changed are written.

A picture has two pixels per cell, one above the other: the character is an upper half block. The lowest three bits of
each 8-bit colour channel are cut off, so that cells that barely change are not rewritten.
"""

import functools
import unicodedata
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ppo.settings import printable

Colour = tuple[int, int, int]

_HALF, _SPACE = ord("\u2580"), ord(" ")
_CHARACTER, _FRONT, _BACK = 0, 1, 2
# Not a colour, so that every cell differs from it.
_UNKNOWN = 0xFFFFFFFF
_KEPT_BITS = np.uint32(0xF8F8F8)
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
"""A terminal that knows these shows everything between them in a single refresh."""
_BARS = " \u258f\u258e\u258d\u258c\u258b\u258a\u2589\u2588"
_STEPS = " \u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_STANDING_OUT = 0.45
"""Pictures scaled down to this factor or less keep the pixels that stand out."""
_OWN = frozenset(_BARS + _STEPS)


class Cells:
    """A screen (R, C) to draw on, and what the terminal currently shows."""

    def __init__(self, rows: int, columns: int, background: Colour) -> None:
        """Start with an empty screen that the terminal does not show yet."""
        self.rows, self.columns = rows, columns
        self._empty = np.array([_SPACE, 0, _packed(background)], np.uint32)
        self._cells = np.tile(self._empty, (rows, columns, 1))
        self._shown = np.full_like(self._cells, _UNKNOWN)

    def clear(self, top: int, left: int, rows: int, columns: int) -> None:
        """Clear the part of a rectangle that is on the screen."""
        self._cells[top : top + rows, left : left + columns] = self._empty

    def write(self, row: int, column: int, text: str, colour: Colour, back: Colour | None = None) -> None:
        """Write any text in one row, cut off at the edge of the screen."""
        if not 0 <= row < self.rows or column >= self.columns:
            return
        codes = np.frombuffer(narrow(text)[: self.columns - column].encode("utf-32-le"), "<u4")
        place = self._cells[row, column : column + len(codes)]
        place[:, _CHARACTER], place[:, _FRONT] = codes, _packed(colour)
        if back is not None:
            place[:, _BACK] = _packed(back)

    def bar(self, row: int, column: int, width: int, fraction: float, colour: Colour, back: Colour) -> None:
        """Draw a bar that fills a fraction of a width, to an eighth of a cell."""
        eighths = round(8 * width * min(1.0, max(0.0, fraction)))
        full, part = divmod(eighths, 8)
        text = _BARS[8] * full + (_BARS[part] if part else "")
        self.write(row, column, f"{text:<{width}}"[:width], colour, back)

    def curve(self, row: int, column: int, heights: NDArray[np.float64], colour: Colour, back: Colour) -> None:
        """Draw heights from 0 to 1, one per cell, to an eighth of a cell."""
        text = "".join(_STEPS[step] for step in (8.0 * heights.clip(0.0, 1.0)).round().astype(int).tolist())
        self.write(row, column, text, colour, back)

    def picture(self, top: int, left: int, pixels: NDArray[np.uint32]) -> None:
        """Draw pixels (2 R, C) from `fitted`, two rows of pixels per row of cells."""
        pixels = pixels[: 2 * (self.rows - top), : self.columns - left] & _KEPT_BITS
        upper, lower = pixels[::2], pixels[1::2]
        is_even = upper == lower
        place = self._cells[top : top + len(upper), left : left + upper.shape[1]]
        place[..., _CHARACTER] = np.where(is_even, _SPACE, _HALF)
        place[..., _FRONT] = np.where(is_even, 0, upper)
        place[..., _BACK] = lower

    def changes(self) -> str:
        """Return the output that updates the terminal to this screen, and record the screen as shown."""
        character_differs, front_differs, back_differs = np.moveaxis(self._cells != self._shown, 2, 0)
        differs = character_differs | front_differs | back_differs
        rows, columns = differs.nonzero()
        if not len(rows):
            return ""
        written, at, front, back = [_BEGIN], (-1, -1), -1, -1
        places = zip(rows.tolist(), columns.tolist(), self._cells[rows, columns].tolist(), strict=True)
        for row, column, (character, fore, behind) in places:
            if (row, column) != at:
                written.append(f"\x1b[{row + 1};{column + 1}H")
            wanted = [f"48;2;{_digits(behind)}"] if behind != back else []
            if fore != front and character != _SPACE:
                wanted.append(f"38;2;{_digits(fore)}")
                front = fore
            if wanted:
                written.append(f"\x1b[{';'.join(wanted)}m")
            written.append(chr(character))
            at, back = (row, column + 1), behind
        self._shown[:] = self._cells
        return "".join([*written, "\x1b[0m", _END])


def fitted(frames: Sequence[NDArray[np.uint8]], rows: int, columns: int) -> NDArray[np.uint32]:
    """Merge frames (H, W, 3) and scale them, in proportion, to at most `rows` and `columns` of cells.

    Where frames differ, the brighter pixel is kept, so that objects drawn only on every other frame are visible.

    Returns:
        Pixels (2 R, C): red, green and blue from the lowest byte up; the highest byte is meaningless.
    """
    height, width = frames[0].shape[:2]
    scale = min(2 * rows / height, columns / width)
    size = max(1, round(width * scale)), max(2, 2 * round(height * scale / 2))
    frame: cv2.typing.MatLike = functools.reduce(np.maximum, frames)
    if scale > _STANDING_OUT:
        return _pixels(cv2.resize(frame, size, interpolation=cv2.INTER_NEAREST))
    stride = max(1, int(0.5 / scale))
    frame = cv2.resize(frame, (-(-width // stride), -(-height // stride)), interpolation=cv2.INTER_NEAREST)
    finer = _pixels(cv2.resize(frame, (2 * size[0], 2 * size[1]), interpolation=cv2.INTER_LINEAR))
    # A ball smaller than a pixel would vanish in a mean, so of a pixel's four quarters the one that differs most from
    # the median is shown. The difference is the highest byte, so the maximum selects that quarter.
    bytes_of = finer.view(np.uint8).reshape(*finer.shape, 4)
    green = np.ascontiguousarray(bytes_of[..., 1])
    bytes_of[..., 3] = cv2.absdiff(green, _median(green[::3, ::3]))
    taller = np.maximum(finer[::2], finer[1::2])
    return np.maximum(taller[:, ::2], taller[:, 1::2])


def _pixels(frame: cv2.typing.MatLike) -> NDArray[np.uint32]:
    packed: NDArray[np.uint32] = cv2.cvtColor(frame, cv2.COLOR_RGB2RGBA).view("<u4")[..., 0]
    return packed


def _median(values: NDArray[np.uint8]) -> Any:
    """Return the (upper) median in a fraction of the time that np.median takes."""
    return float(np.partition(values, values.size // 2, axis=None)[values.size // 2])


@functools.lru_cache(maxsize=4096)
def narrow(text: str) -> str:
    """Return a text in which every character takes one cell and none controls the terminal."""
    shown = printable(text)
    # The characters that this program draws with are all narrow.
    if shown.isascii() or not set(shown) - _OWN:
        return shown
    return "".join(
        character if unicodedata.east_asian_width(character) not in "WF" and not _combines(character) else "?"
        for character in shown
    )


def _combines(character: str) -> bool:
    return unicodedata.category(character) in ("Mn", "Me", "Mc", "Cf")


def _packed(colour: Colour) -> int:
    red, green, blue = colour
    return blue << 16 | green << 8 | red


def _digits(colour: int) -> str:
    return f"{colour & 255};{colour >> 8 & 255};{colour >> 16}"
