"""The running return of a game, written under its pictures."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SCALE_AND_HEIGHT = 0.5, 20
"""Of the font and of the strip, for a picture of 300 pixels' width."""
_USUAL_WIDTH = 300
_WHITE = (255, 255, 255)


class ReturnOverlay:
    """Holds the frames of a step until its reward is known, and passes them on with the return under them."""

    def __init__(self, show: Callable[[NDArray[np.uint8]], None]) -> None:
        """Prepare to pass frames (H + strip, W, 3) to `show`."""
        self._show = show
        self._frames: list[NDArray[np.uint8]] = []

    def hold(self, frame: NDArray[np.uint8]) -> None:
        """Take a frame (H, W, 3) RGB of the step that is under way."""
        self._frames.append(frame.copy())

    def end_step(self, episode_return: float) -> None:
        """Pass the frames of a step on; `episode_return` is the raw return of its game so far."""
        for frame in self._frames:
            self._show(with_strip(frame, f"return {episode_return:,.1f}".removesuffix(".0")))
        self._frames.clear()


def with_strip(frame: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) with a black strip below it that has a text in white."""
    width = frame.shape[1]
    scale, height = (size * max(1.0, width / _USUAL_WIDTH) for size in _SCALE_AND_HEIGHT)
    strip = np.zeros((round(height), width, 3), np.uint8)
    thickness = max(1, round(scale))
    cv2.putText(strip, text, (round(0.25 * height), round(0.75 * height)), _FONT, scale, _WHITE, thickness, cv2.LINE_AA)
    return np.concatenate([frame, strip])
