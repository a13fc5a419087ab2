"""A window that shows a game at its own speed, where there is a display."""

import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TARGET_HEIGHT = 630
_UNSEEN = ("dummy", "offscreen", "evdev")


def has_display() -> bool:
    """Return whether a window can be opened."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY"))


def keep_drawing_quiet() -> None:
    """Let what worlds draw with neither greet nor miss a screen or a loudspeaker; what the user has set stays."""
    quiet = {"PYGAME_HIDE_SUPPORT_PROMPT": "1"}
    if not has_display():
        quiet |= {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}
    for name, value in quiet.items():
        os.environ.setdefault(name, value)


class WindowClosedError(Exception):
    """The user closed the window."""


class NoWindowError(Exception):
    """There seems to be a display, but no window can be opened or drawn on it; the message says why."""


class GameWindow:
    """A pygame window."""

    def __init__(self, title: str, frames_per_second: float) -> None:
        """Prepare to show frames at this rate; the window opens with the first.

        Raises:
            NoWindowError: it could not be opened.
        """
        import pygame

        self._pygame: Any = pygame
        try:
            pygame.display.init()
        except pygame.error as error:
            raise NoWindowError(f"no window can be opened on this display: {error}") from error
        # Without a display that answers, SDL draws where nobody sees it.
        if pygame.display.get_driver() in _UNSEEN and "SDL_VIDEODRIVER" not in os.environ:
            pygame.display.quit()
            raise NoWindowError("no window can be opened: the display does not answer")
        self._title, self._rate = title, frames_per_second
        self._surface: Any = None
        self._clock = pygame.time.Clock()

    def show(self, frame: NDArray[np.uint8]) -> None:
        """Show a frame (H, W, 3) and wait until the next is due.

        Raises:
            WindowClosedError: the window was closed.
            NoWindowError: there is none.
        """
        try:
            self._show(frame)
        except self._pygame.error as error:
            raise NoWindowError(f"nothing can be shown on this display: {error}") from error

    def close(self) -> None:
        """Close the window."""
        self._pygame.display.quit()
        self._surface = None

    def _show(self, frame: NDArray[np.uint8]) -> None:
        pygame = self._pygame
        height, width = frame.shape[:2]
        scale = max(1, round(_TARGET_HEIGHT / height))
        if self._surface is None:
            self._surface = pygame.display.set_mode((width * scale, height * scale))
            pygame.display.set_caption(self._title)
        image = pygame.surfarray.make_surface(frame.swapaxes(0, 1))
        self._surface.blit(pygame.transform.scale(image, self._surface.get_size()), (0, 0))
        pygame.display.flip()
        if any(event.type == pygame.QUIT for event in pygame.event.get()):
            raise WindowClosedError
        self._clock.tick(self._rate)
