"""The clips of the gallery show what was asked for, with the return so far."""

import dataclasses

import numpy as np
import pytest

from scripts.make_clip import Options, frames_of, with_return


def test_a_clip_has_its_seconds_of_the_game_at_its_rate_and_width():
    # CartPole has 50 frames a second; every second one is shown.
    frames, milliseconds = frames_of(Options("CartPole-v1", start=0.5, seconds=0.6, rate=25.0, width=120))
    assert (milliseconds, len(frames)) == (40.0, 15)
    assert {frame.shape for frame in frames} == {(80 + 16, 120, 3)}
    # The return grows with every step, and so does what the line says.
    assert len({frame[:16].tobytes() for frame in frames}) == len(frames)


def test_with_the_overlay_the_policy_stands_beside_the_game():
    plain, _ = frames_of(Options("CartPole-v1", start=0.0, seconds=0.2, width=120))
    beside, _ = frames_of(Options("CartPole-v1", start=0.0, seconds=0.2, width=240, overlay=True))
    assert len(beside) == len(plain)
    assert {frame.shape[1] for frame in beside} == {240}
    panels = [frame[:, 180:] for frame in beside]
    assert all(panel.mean() < 80.0 for panel in panels)  # dark
    assert (panels[0] != panels[-1]).any()


@pytest.mark.parametrize("overlay", [False, True])
def test_a_part_of_the_picture_can_be_shown(overlay):
    options = Options("CartPole-v1", start=0.0, seconds=0.1, width=200, overlay=overlay)
    whole, part = (frames_of(dataclasses.replace(options, rows=rows))[0] for rows in ((0.0, 1.0), (0.25, 0.75)))
    assert len(part[0]) < 0.8 * len(whole[0])


def test_the_line_says_the_return():
    frame = np.zeros((40, 100, 3), np.uint8)
    assert (with_return(frame, 12.0, 100)[16:] == 0).all()
    assert (with_return(frame, 12.0, 100)[:16] != with_return(frame, 13.0, 100)[:16]).any()
