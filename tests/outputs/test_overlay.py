"""What is drawn beside the pictures of a video."""

import numpy as np
import pytest

from ppo.models.decisions import Decision
from ppo.models.distributions.base import Marginal
from ppo.outputs.overlay import Overlay, enlarged, in_short, title

ORANGE, BLUE = (255, 160, 60), (92, 156, 236)


def picture(brightness: int = 0, height: int = 400, width: int = 60) -> np.ndarray:
    return np.full((height, width, 3), brightness, np.uint8)


def categories(*probabilities: float, chosen: int = 0, value: float = 0.0, length: int = 1) -> Decision:
    marginal = Marginal(np.array(probabilities))
    return Decision(np.zeros(1), value, [marginal], np.array([float(chosen)]), -12345.6, length)


def densities(*chosen: float) -> Decision:
    curve = Marginal(np.exp(-(np.linspace(-3, 3, 100) ** 2)), (-1.0, 1.0))
    return Decision(np.zeros(1), 0.0, [curve] * len(chosen), np.array(chosen), 1.0, 1)


def panel(decision: Decision, frame: np.ndarray | None = None, names: tuple[str, ...] = ()) -> np.ndarray:
    """Return what is drawn beside a frame."""
    shown: list[np.ndarray] = []
    overlay = Overlay(shown.append, names)
    frame = picture() if frame is None else frame
    overlay.hold(frame)
    overlay.end_step(decision)
    assert len(shown) == 1
    return shown[0][:, enlarged(frame).shape[1] :]


def count(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((image == colour).all(-1).sum())


def test_the_frames_of_a_step_wait_for_its_decision() -> None:
    shown: list[np.ndarray] = []
    overlay = Overlay(shown.append)
    overlay.hold(picture(10))
    overlay.hold(picture(20))
    assert shown == []
    overlay.end_step(categories(0.5, 0.5))
    overlay.end_step(categories(0.5, 0.5, length=2))  # a step that draws nothing
    assert [image[:, :60].mean() for image in shown] == [10.0, 20.0]
    assert np.array_equal(shown[0][:, 60:], shown[1][:, 60:])


@pytest.mark.parametrize(
    ("number", "text"), [(0.0, "0"), (-0.01, "0"), (-20.0, "-20"), (1234.56, "1,234.6"), (123456789.0, "1.23e+08")]
)
def test_a_return_has_the_digits_that_are_worth_reading(number: float, text: str) -> None:
    assert in_short(number) == text


def test_bars_are_as_long_as_the_probabilities_and_the_chosen_one_is_orange() -> None:
    drawn = panel(categories(0.6, 0.3, 0.1, chosen=1))
    assert count(drawn, BLUE) / count(drawn, ORANGE) == pytest.approx((0.6 + 0.1) / 0.3, rel=0.1)


def test_a_density_is_marked_where_the_action_was_chosen() -> None:
    places = []
    for chosen in (-1.0, 0.0, 1.0, 7.0):  # what is beyond the range is at its edge
        drawn = panel(densities(chosen))
        upright = (drawn == ORANGE).all(-1).sum(0)
        places.append(int(upright.argmax()))
    assert places == [10, 130, 249, 249]


@pytest.mark.parametrize("decision", [categories(0.5, 0.5), densities(0.1, 0.2, 0.3)])
def test_names_are_written_only_where_they_fit_what_there_is(decision: Decision) -> None:
    number = len(decision.marginals[0].values) if len(decision.marginals) == 1 else 3
    plain, named = panel(decision), panel(decision, names=("brake",) * number)
    assert not np.array_equal(plain, named)
    assert np.array_equal(plain, panel(decision, names=("brake",) * (number + 1)))


@pytest.mark.parametrize("shape", [(210, 160), (96, 96), (400, 600), (64, 64), (1, 3), (1080, 1920), (321, 50)])
@pytest.mark.parametrize("decision", [categories(*[1 / 18] * 18), densities(*[0.0] * 17), categories(*[0.01] * 100)])
def test_a_frame_of_any_size_has_a_panel_of_its_height_and_text_of_a_readable_one(
    shape: tuple[int, int], decision: Decision
) -> None:
    frame = np.full((*shape, 3), 200, np.uint8)
    drawn = panel(decision, frame)
    assert len(drawn) == len(enlarged(frame)) >= 320
    assert 260 <= drawn.shape[1] <= drawn.shape[0]
    text = (drawn[: len(drawn) // 10] > 150).any((1, 2))
    assert text.sum() >= 10  # rows of the letters of the return


def test_a_world_whose_actions_are_unknown_has_its_return_and_value_all_the_same() -> None:
    unknown = Decision(np.zeros(1), 1.5, [], np.zeros(0), 3.0, 1)
    assert count(panel(unknown), (228, 230, 234)) > 50


def test_the_course_of_the_value_begins_anew_with_a_game() -> None:
    shown: list[np.ndarray] = []
    overlay = Overlay(shown.append)
    for length, value in ((1, 1.0), (2, 5.0), (3, 2.0), (1, 1.0)):
        overlay.hold(picture())
        overlay.end_step(categories(1.0, value=value, length=length))
    assert np.array_equal(shown[0], shown[3])
    assert not np.array_equal(shown[0], shown[2])


@pytest.mark.parametrize("width", [40, 160, 600])
def test_a_title_fits_its_width(width: int) -> None:
    strip = title("12,345,678 steps: return -12,345.6", width)
    assert strip.shape[1:] == (width, 3)
    if width > 100:
        assert (strip[:, -2:] == strip[0, 0]).all()
