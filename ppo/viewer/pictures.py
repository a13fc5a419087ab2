"""Frames as palette indices, with exact colours.

Frames of more than 256 colours have no palette; they are shrunk further instead.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

_MOST_COLOURS = 256
_LARGEST = 640, 480
_LARGEST_WITHOUT_PALETTE = 320, 240

Frame = NDArray[np.uint8]
"""(H, W, 3), contiguous."""


class PictureCoder:
    """Numbers colours as they occur, and starts over when there are too many.

    Only the rectangle of a frame that differs from the previous frame is processed: in most games it is small.
    """

    def __init__(self) -> None:
        """Begin without colours."""
        # Of each of the 2^24 colours: its number + 1, or 0. Memory is allocated only where it is written.
        self._numbers = np.zeros(1 << 24, np.uint16)
        self._known = np.zeros(0, np.uint32)
        self._frame: Frame = np.zeros((0, 0, 3), np.uint8)
        self._picture = np.zeros((0, 0), np.uint8)
        self._has_few = True

    def encode(self, frames: Sequence[Frame]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return a palette (K, 3) and pictures (T, H, W); for more than 256 colours, (0, 3) and (T, H, W, 3).

        Args:
            frames: T frames of one size; shrunk if larger than 640 x 480, or than 320 x 240 without a palette.
        """
        frames = [_fitting(frame, _LARGEST) for frame in frames]
        pictures = self._coded(frames) if self._has_few else None
        if pictures is None and self._has_few:
            self._forget()
            pictures = self._coded(frames)
            self._has_few = pictures is not None  # not retried: counting colours every time would dominate
        if pictures is None:
            return np.zeros((0, 3), np.uint8), np.stack([_fitting(frame, _LARGEST_WITHOUT_PALETTE) for frame in frames])
        return self._known.view(np.uint8).reshape(-1, 4)[:, :3], np.stack(pictures)

    def _forget(self) -> None:
        self._numbers[self._known] = 0
        self._known = self._known[:0]
        self._frame = self._frame[:0]

    def _coded(self, frames: Sequence[Frame]) -> list[NDArray[np.uint8]] | None:
        """Return pictures (H, W), or None if there are too many colours."""
        pictures = []
        for frame in frames:
            if frame.shape != self._frame.shape:
                self._picture = np.zeros(frame.shape[:2], np.uint8)
                part = slice(None), slice(None)
            else:
                self._picture = self._picture.copy()
                part = _changed(self._frame, frame)
            codes = _codes(frame[part])
            numbers = self._numbers[codes]
            if not numbers.all():
                if not self._learn(codes[numbers == 0]):
                    return None
                numbers = self._numbers[codes]
            self._picture[part] = numbers - 1
            self._frame = frame
            pictures.append(self._picture)
        return pictures

    def _learn(self, new: NDArray[np.uint32]) -> bool:
        """Number new colours; return whether there is room for them."""
        colours = np.unique(new)
        first, end = len(self._known), len(self._known) + len(colours)
        if end > _MOST_COLOURS:
            return False
        self._numbers[colours] = np.arange(first + 1, end + 1, dtype=np.uint16)
        self._known = np.concatenate([self._known, colours])
        return True


def _changed(before: Frame, now: Frame) -> tuple[slice, slice]:
    """Return the rows and columns that bound the differences between two frames."""
    height, width, _ = now.shape
    # Compare eight bytes at a time where a row is a multiple of that.
    unit = np.dtype(np.uint64 if 3 * width % 8 == 0 else np.uint8)
    differs = before.reshape(height, -1).view(unit) != now.reshape(height, -1).view(unit)
    rows, units = np.flatnonzero(differs.any(1)), np.flatnonzero(differs.any(0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    left, right = units[0] * unit.itemsize // 3, ((units[-1] + 1) * unit.itemsize - 1) // 3
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(left), int(right) + 1)


def _codes(frame: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return the colours of a frame or part of one, (H, W, 3), as integers with the bytes red, green, blue, 0."""
    if not frame.size:
        return np.zeros(frame.shape[:2], np.uint32)
    with_opacity = cv2.cvtColor(frame, cv2.COLOR_RGB2RGBA)
    codes: NDArray[np.uint32] = with_opacity.view("<u4").reshape(frame.shape[:2]) & np.uint32(0xFFFFFF)
    return codes


def _fitting(frame: Frame, largest: tuple[int, int]) -> Frame:
    """Return the frame, shrunk to fit `largest` (width, height) if it exceeds that."""
    height, width, _ = frame.shape
    scale = min(1.0, largest[0] / width, largest[1] / height)
    if scale == 1.0:
        return frame
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.uint8)
