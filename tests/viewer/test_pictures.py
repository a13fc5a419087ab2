import numpy as np
import pytest

from ppo.viewer.pictures import PictureCoder


def restored(coder, frames):
    """Return what a page makes of encoded frames."""
    palette, pictures = coder.encode(frames)
    return palette[pictures] if len(palette) else pictures


def noise(colours, height, width, seed):
    generator = np.random.default_rng(seed)
    return colours[generator.integers(0, len(colours), (height, width))]


COLOURS = np.random.default_rng(9).integers(0, 256, (200, 3)).astype(np.uint8)


@pytest.mark.parametrize("width", [32, 33])  # a row of 96 bytes is compared in units of eight, one of 99 is not
def test_every_pixel_is_restored(width):
    coder, frames = PictureCoder(), [noise(COLOURS, 20, width, 0)]
    for row, column, channel in ((0, 0, 0), (19, width - 1, 2), (7, 5, 1), (7, 6, 0)):
        frames.append(frames[-1].copy())
        frames[-1][row, column, channel] ^= 128
    frames += [frames[-1], np.zeros((20, width, 3), np.uint8), frames[0]]
    for count in (1, 3, 4):  # a message begins with what the one before has left
        np.testing.assert_array_equal(restored(coder, frames[:count]), np.stack(frames[:count]))
    np.testing.assert_array_equal(restored(coder, frames), np.stack(frames))


def test_colours_that_come_later_replace_earlier_ones_where_there_are_too_many():
    coder = PictureCoder()
    for level in (*range(0, 256, 16), *range(0, 256, 64)):  # some come again
        frame = noise(COLOURS // 2 + np.uint8(level // 2), 24, 24, level)
        np.testing.assert_array_equal(restored(coder, [frame, frame[::-1].copy()]), np.stack([frame, frame[::-1]]))
        palette, _ = coder.encode([frame])
        assert 0 < len(palette) <= 256


def test_256_colours_fit_into_a_palette():
    greys = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    palette, _ = PictureCoder().encode([greys])
    assert len(palette) == 256


def test_frames_of_more_than_256_colours_are_sent_as_they_are():
    frames = [np.random.default_rng(seed).integers(0, 256, (30, 30, 3)).astype(np.uint8) for seed in range(2)]
    palette, pictures = PictureCoder().encode(frames)
    assert len(palette) == 0
    np.testing.assert_array_equal(pictures, np.stack(frames))


def test_a_frame_of_another_size_is_restored_too():
    coder = PictureCoder()
    for shape in ((8, 8), (10, 12), (8, 8)):
        frame = noise(COLOURS, *shape, seed=1)
        np.testing.assert_array_equal(restored(coder, [frame])[0], frame)


def test_large_frames_are_made_smaller_in_proportion():
    _, pictures = PictureCoder().encode([np.zeros((1000, 1600, 3), np.uint8)])
    assert pictures.shape == (1, 400, 640)
    many = np.random.default_rng(0).integers(0, 256, (400, 600, 3)).astype(np.uint8)
    assert PictureCoder().encode([many])[1].shape == (1, 213, 320, 3)
