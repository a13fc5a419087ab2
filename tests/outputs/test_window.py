"""The keys of the window, on SDL's dummy display."""

import numpy as np
import pytest

from ppo.outputs.window import GameWindow, WindowClosedError

pygame = pytest.importorskip("pygame")


@pytest.fixture
def window(monkeypatch: pytest.MonkeyPatch) -> GameWindow:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    window = GameWindow("a game", 1000.0)
    window.show(np.zeros((20, 30, 3), np.uint8))
    return window


def pressed(window: GameWindow, *keys: int) -> None:
    for key in keys:
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key))
    window.show(np.zeros((20, 30, 3), np.uint8))


def test_plus_and_minus_change_the_speed_and_the_title_says_so(window: GameWindow) -> None:
    pressed(window, pygame.K_PLUS, pygame.K_UP)
    assert pygame.display.get_caption()[0] == "a game (4x)"
    pressed(window, pygame.K_MINUS, pygame.K_DOWN)
    assert pygame.display.get_caption()[0] == "a game"
    window.close()


def test_space_pauses_until_it_is_pressed_again(window: GameWindow, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[str] = []

    def sleep(seconds: float) -> None:
        slept.append(pygame.display.get_caption()[0])
        if len(slept) == 5:
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_SPACE))

    monkeypatch.setattr("ppo.outputs.window.time.sleep", sleep)
    pressed(window, pygame.K_SPACE)
    assert slept[:5] == ["a game (paused)"] * 5
    assert not window._pace.is_paused
    window.close()


@pytest.mark.parametrize("event", ["escape", "close"])
def test_escape_and_the_frame_s_button_close_it(window: GameWindow, event: str) -> None:
    with pytest.raises(WindowClosedError):
        if event == "close":
            pygame.event.post(pygame.event.Event(pygame.QUIT))
            pressed(window)
        pressed(window, pygame.K_ESCAPE)
    window.close()
