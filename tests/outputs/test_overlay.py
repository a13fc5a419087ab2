"""The running return under the pictures of a video."""

import numpy as np
import pytest

from ppo.outputs.overlay import ReturnOverlay, with_strip


def picture(brightness: int, height: int = 40, width: int = 60) -> np.ndarray:
    return np.full((height, width, 3), brightness, np.uint8)


def test_the_frames_of_a_step_wait_for_its_return_and_stay_as_they_are() -> None:
    shown: list[np.ndarray] = []
    overlay = ReturnOverlay(shown.append)
    frame = picture(10)
    overlay.hold(frame)
    frame[:] = 20  # as an emulator does with its screen
    overlay.hold(frame)
    assert shown == []
    overlay.end_step(-3.0)
    overlay.end_step(-4.0)  # a step that draws nothing
    assert [image[:40].mean() for image in shown] == [10.0, 20.0]
    strip = with_strip(picture(0), "return -3")[40:]
    assert strip.any()
    assert all(np.array_equal(image[40:], strip) for image in shown)


@pytest.mark.parametrize(
    ("episode_return", "text"), [(0.0, "return 0"), (-20.0, "return -20"), (1234.56, "return 1,234.6")]
)
def test_the_return_is_rounded_to_tenths(episode_return: float, text: str) -> None:
    shown: list[np.ndarray] = []
    overlay = ReturnOverlay(shown.append)
    overlay.hold(picture(0))
    overlay.end_step(episode_return)
    assert np.array_equal(shown[0], with_strip(picture(0), text))


@pytest.mark.parametrize("width", [160, 600, 1000])
def test_the_strip_is_as_wide_as_the_picture_and_the_text_fits(width: int) -> None:
    image = with_strip(picture(0, 100, width), "return -12,345.6")
    strip = image[100:]
    assert strip.shape[1] == width
    lit = np.flatnonzero(strip.any((0, 2)))
    assert 0 < lit.min() < lit.max() < width - 1
    assert not strip[0].any()
    assert not strip[-1].any()
