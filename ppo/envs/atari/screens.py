"""Computes the stacked observations of an agent from the screens of a console.

Shapes: a stack of C pictures of 84x84 greys, the newest last, in memory as (84, 84, C); screens of H x W colours.

A colour is an index into the console's palette. ALE's `getScreen` copies a screen of colours in 1 us;
`getScreenGrayscale` takes 21 us, because it looks up their greys. This module has the greys of the NTSC standard and
looks up only those it needs.
"""

import numpy as np
from numpy.typing import NDArray

try:
    from ppo.envs.atari import _screens
except ImportError:  # no compiler when the package was installed
    _screens = None  # type: ignore[assignment]

SCREEN_SIZE = 84
IS_COMPILED = _screens is not None
"""Whether `push_screens` is compiled code; the results are the same either way."""

# ALE's greys of the colours 0, 2, ... 254: one row per hue, by brightness. A test finds all of them in the games and
# compares them with ALE. Games show no odd colours unless console memory was overwritten; the ones seen then (1, 3, 5
# and 7) each had the grey of the next even colour.
_NTSC_HUES = (
    (0, 74, 111, 142, 170, 192, 214, 236),
    (64, 95, 122, 148, 172, 193, 214, 233),
    (63, 87, 110, 131, 150, 167, 184, 199),
    (59, 85, 107, 129, 148, 167, 183, 199),
    (44, 68, 90, 110, 128, 146, 161, 176),
    (51, 74, 95, 115, 132, 149, 164, 178),
    (39, 63, 85, 107, 125, 143, 159, 174),
    (22, 49, 73, 96, 116, 136, 153, 169),
    (17, 41, 64, 85, 104, 121, 137, 153),
    (32, 60, 85, 109, 130, 150, 168, 186),
    (40, 69, 95, 120, 141, 162, 182, 200),
    (43, 74, 101, 127, 151, 173, 193, 212),
    (40, 71, 98, 124, 147, 169, 189, 207),
    (41, 74, 104, 132, 157, 181, 203, 223),
    (47, 79, 107, 133, 157, 179, 200, 220),
    (47, 79, 107, 133, 157, 179, 200, 220),
)
_EVEN_COLOURS = np.array(_NTSC_HUES, np.uint8).reshape(128)
NTSC_GREYS: NDArray[np.uint8] = np.stack([_EVEN_COLOURS, np.roll(_EVEN_COLOURS, -1)], axis=-1).reshape(256)
"""The grey of every colour of the NTSC standard, (256,)."""
IDENTITY_GREYS: NDArray[np.uint8] = np.arange(256, dtype=np.uint8)
"""For screens that are already grey."""


def push_screens(stack: NDArray[np.uint8], screens: NDArray[np.uint8], greys: NDArray[np.uint8]) -> None:
    """Push the pixelwise maximum of a game's last two screens, resized by area interpolation, onto a stack.

    Args:
        stack: (84, 84, C), contiguous.
        screens: (2, H, W), contiguous, the newer first, which is overwritten with the lighter colour at each pixel.
        greys: grey of each colour, (256,).
    """
    if _screens is not None:
        _screens.push_screens(stack, screens, greys)
    else:
        push_screens_by_opencv(stack, screens, greys)


def push_screens_by_opencv(stack: NDArray[np.uint8], screens: NDArray[np.uint8], greys: NDArray[np.uint8]) -> None:
    """Compute `push_screens` with OpenCV: bit-identical and a few times slower."""
    import cv2

    newer, older = screens
    pooled, older_greys = cv2.LUT(newer, greys), cv2.LUT(older, greys)
    np.copyto(newer, older, where=older_greys > pooled)
    np.maximum(pooled, older_greys, out=pooled)
    push(stack, cv2.resize(pooled, stack.shape[:2], interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False))


def push(stacks: NDArray[np.uint8], pictures: NDArray[np.uint8]) -> None:
    """Push new pictures (..., 84, 84) onto stacks (..., 84, 84, C)."""
    if stacks.shape[-1] == 4:
        # The four bytes of a pixel are one little-endian word, so pushing is one shift.

        words = stacks.view("<u4")[..., 0]
        np.right_shift(words, 8, out=words)
        stacks[..., 3] = pictures
    else:
        stacks[..., :-1] = stacks[..., 1:]
        stacks[..., -1] = pictures
