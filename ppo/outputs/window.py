"""A window that shows a game at its own speed if there is a display; keys pause it and change the speed."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TARGET_HEIGHT = 630
_UNSEEN = ("dummy", "offscreen", "evdev")
_SLOWEST, _FASTEST = 0.125, 16.0
_SECONDS_BETWEEN_KEYS = 0.05
_MOST_SECONDS_LATE = 0.25


def has_display() -> bool:
    """Return whether a window can be opened."""
    return sys.platform in ("darwin", "win32") or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY"))


def keep_drawing_quiet() -> None:
    """Silence pygame's greeting and, without a display, use dummy drivers; variables the user has set are kept."""
    quiet = {"PYGAME_HIDE_SUPPORT_PROMPT": "1"}
    if not has_display():
        quiet |= {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}
    for name, value in quiet.items():
        os.environ.setdefault(name, value)


class WindowClosedError(Exception):
    """The user closed the window."""


class NoWindowError(Exception):
    """There seems to be a display, but no window can be opened or drawn on it; the message says why."""


class Pace:
    """How fast the pictures of a game follow each other, and whether the game is paused."""

    def __init__(self, per_second: float, most_per_second: float = 1000.0) -> None:
        """Start at the game's own speed.

        Args:
            per_second: pictures per second at the game's own speed.
            most_per_second: pictures shown per second at most, however fast the game runs.
        """
        self._per_second, self._between = per_second, 1.0 / most_per_second
        self._due = self._shown = 0.0
        self.speed, self.is_paused = 1.0, False

    def press(self, key: str) -> None:
        """Apply a key: pause, faster or slower; others are ignored."""
        if key == "pause":
            self.is_paused = not self.is_paused
        elif key in ("faster", "slower"):
            self.speed = min(_FASTEST, max(_SLOWEST, self.speed * (2.0 if key == "faster" else 0.5)))

    def wait(self, look_at_keys: Callable[[], None]) -> bool:
        """Wait until the game is not paused and the next picture is due; return whether to show it.

        Args:
            look_at_keys: called immediately, and every twentieth of a second while waiting.
        """
        look_at_keys()
        while self.is_paused:
            time.sleep(_SECONDS_BETWEEN_KEYS)
            look_at_keys()
        now, period = time.monotonic(), 1.0 / (self._per_second * self.speed)
        # When far behind, do not try to catch up.
        self._due = now if now > self._due + _MOST_SECONDS_LATE else self._due + period
        while (left := self._due - time.monotonic()) > 0.0:
            time.sleep(min(left, _SECONDS_BETWEEN_KEYS))
            if left > _SECONDS_BETWEEN_KEYS:
                look_at_keys()
        if time.monotonic() - self._shown < 0.9 * self._between:
            return False
        self._shown = time.monotonic()
        return True

    def describe(self) -> str:
        """Return the speed in words."""
        return "paused" if self.is_paused else f"{self.speed:g}x"


class GameWindow:
    """A pygame window: Esc closes it, space pauses, + and - change the speed."""

    def __init__(self, title: str, frames_per_second: float) -> None:
        """Prepare to show frames at this rate; the window opens with the first frame.

        Raises:
            NoWindowError: no window can be opened.
        """
        import pygame

        self._pygame: Any = pygame
        try:
            pygame.display.init()
        except pygame.error as error:
            raise NoWindowError(f"no window can be opened on this display: {error}") from error
        # If the display does not respond, SDL falls back to a driver that shows nothing.
        if pygame.display.get_driver() in _UNSEEN and "SDL_VIDEODRIVER" not in os.environ:
            pygame.display.quit()
            raise NoWindowError("no window can be opened: the display does not answer")
        self._title, self._pace = title, Pace(frames_per_second)
        self._surface: Any = None

    def show(self, frame: NDArray[np.uint8]) -> None:
        """Show a frame (H, W, 3) and wait until the next is due.

        Raises:
            WindowClosedError: the window was closed.
            NoWindowError: the frame cannot be shown.
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
        self._pace.wait(self._look_at_keys)

    def _look_at_keys(self) -> None:
        """Handle pressed keys and update the caption."""
        pygame = self._pygame
        for event in pygame.event.get():
            key = getattr(event, "key", None) if event.type == pygame.KEYDOWN else None
            if event.type == pygame.QUIT or key == pygame.K_ESCAPE:
                raise WindowClosedError
            if key == pygame.K_SPACE:
                self._pace.press("pause")
            elif key in (pygame.K_PLUS, pygame.K_EQUALS, pygame.K_KP_PLUS, pygame.K_UP):
                self._pace.press("faster")
            elif key in (pygame.K_MINUS, pygame.K_KP_MINUS, pygame.K_DOWN):
                self._pace.press("slower")
        speed = self._pace.describe()
        pygame.display.set_caption(self._title if speed == "1x" else f"{self._title} ({speed})")
