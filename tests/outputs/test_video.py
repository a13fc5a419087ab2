"""An mp4 and a gif that play at the game's own speed, or nothing at all."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ppo.outputs.video import GIF_SECONDS, VideoError, VideoRecorder
from tests.disks import SmallDisk, small_disk

HEIGHT, WIDTH = 32, 48


def frame(brightness: int = 0) -> NDArray[np.uint8]:
    return np.full((HEIGHT, WIDTH, 3), brightness, np.uint8)


def record(path: Path, frames: Iterator[NDArray[np.uint8]] | list[NDArray[np.uint8]], rate: float) -> None:
    with VideoRecorder(path, rate) as video:
        for screen in frames:
            video.write(screen)


def decode_mp4(path: Path) -> tuple[list[NDArray[np.uint8]], float]:
    """Return an mp4's frames and its rate."""
    frames, video = [], cv2.VideoCapture(str(path))
    while (read := video.read())[0]:
        frames.append(read[1][..., ::-1])
    return frames, video.get(cv2.CAP_PROP_FPS)


def decode_gif(path: Path) -> tuple[list[NDArray[np.uint8]], float]:
    """Return a gif's frames and its duration in seconds."""
    frames, milliseconds = [], 0
    with Image.open(path) as image:
        for position in range(image.n_frames):
            image.seek(position)
            frames.append(np.asarray(image.convert("RGB")))
            milliseconds += image.info["duration"]
    return frames, milliseconds / 1000


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path, without suffix, of a recording of 90 frames at 60 a second that grow brighter."""
    path = tmp_path_factory.mktemp("video") / "step_1"
    record(path, [frame(2 * number) for number in range(90)], 60.0)
    return path


def test_an_mp4_and_a_gif_are_all_that_remains(recorded: Path) -> None:
    assert sorted(path.name for path in recorded.parent.iterdir()) == ["step_1.gif", "step_1.mp4"]


def test_the_mp4_has_every_frame_at_the_games_speed(recorded: Path) -> None:
    frames, rate = decode_mp4(recorded.with_suffix(".mp4"))
    assert (len(frames), rate) == (90, 60.0)


def test_the_mp4_shows_the_frames_in_order(recorded: Path) -> None:
    frames, _ = decode_mp4(recorded.with_suffix(".mp4"))
    np.testing.assert_allclose([screen.mean() for screen in frames], np.arange(0, 180, 2), atol=4)


def test_small_screens_are_doubled_in_the_mp4(recorded: Path) -> None:
    assert decode_mp4(recorded.with_suffix(".mp4"))[0][0].shape == (2 * HEIGHT, 2 * WIDTH, 3)


def test_the_gif_runs_at_the_games_speed_with_every_third_frame(recorded: Path) -> None:
    frames, seconds = decode_gif(recorded.with_suffix(".gif"))
    assert len(frames) == 30
    assert seconds == pytest.approx(1.5, abs=0.02)
    assert frames[0].shape == (HEIGHT, WIDTH, 3)


def test_large_screens_keep_their_size(tmp_path: Path) -> None:
    record(tmp_path / "large", [np.zeros((400, 600, 3), np.uint8)] * 3, 50.0)
    assert decode_mp4(tmp_path / "large.mp4")[0][0].shape == (400, 600, 3)


def test_what_is_drawn_on_every_other_frame_only_does_not_flicker_in_the_gif(tmp_path: Path) -> None:
    record(tmp_path / "flicker", [frame(200 if number % 2 else 0) for number in range(30)], 60.0)
    frames, _ = decode_gif(tmp_path / "flicker.gif")
    assert all(screen.min() > 180 for screen in frames[1:])


def test_the_gif_ends_after_30_seconds_and_the_mp4_does_not(tmp_path: Path) -> None:
    # Every frame differs, or the gif would merge those that are equal.
    screens = (frame(number % 2 * 255) for number in range(33 * 10))
    record(tmp_path / "long", screens, 10.0)
    assert decode_gif(tmp_path / "long.gif")[1] == pytest.approx(GIF_SECONDS, abs=0.1)
    assert len(decode_mp4(tmp_path / "long.mp4")[0]) == 330


def test_colours_are_kept(tmp_path: Path) -> None:
    red = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    red[..., 0] = 220
    record(tmp_path / "red", [red] * 6, 60.0)
    for screen in (decode_mp4(tmp_path / "red.mp4")[0][0], decode_gif(tmp_path / "red.gif")[0][0]):
        np.testing.assert_allclose(screen.reshape(-1, 3).mean(axis=0), [220, 0, 0], atol=8)


def test_a_frame_may_be_overwritten_after_it_was_given(tmp_path: Path) -> None:
    # The emulator returns its own buffer.
    buffer = frame()
    with VideoRecorder(tmp_path / "reused", 10.0) as video:
        for colour in ([200, 0, 0], [0, 200, 0], [0, 0, 200]):
            buffer[...] = colour
            video.write(buffer)
    colours = [screen[0, 0] for screen in decode_gif(tmp_path / "reused.gif")[0]]
    # Each is merged with the one before as it was.
    np.testing.assert_allclose(colours, [[200, 0, 0], [200, 200, 0], [0, 200, 200]], atol=8)


def test_an_exception_leaves_nothing_behind(tmp_path: Path) -> None:
    def one_frame_and_an_error() -> Iterator[NDArray[np.uint8]]:
        yield frame()
        raise RuntimeError("the emulator fell over")

    with pytest.raises(RuntimeError, match="fell over"):
        record(tmp_path / "broken", one_frame_and_an_error(), 60.0)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_an_earlier_recording_alone(tmp_path: Path) -> None:
    (tmp_path / "step_1.mp4").write_bytes(b"earlier")
    with pytest.raises(KeyboardInterrupt), VideoRecorder(tmp_path / "step_1", 60.0) as video:
        video.write(frame())
        raise KeyboardInterrupt
    assert (tmp_path / "step_1.mp4").read_bytes() == b"earlier"


def test_a_recording_without_frames_is_no_file(tmp_path: Path) -> None:
    record(tmp_path / "empty", [], 60.0)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- trouble


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path) as mounted:
        yield mounted


def noise(number: int) -> list[NDArray[np.uint8]]:
    """Return screens that cannot be compressed, some 100 kB each."""
    return list(np.random.default_rng(0).integers(0, 256, (number, 210, 160, 3), dtype=np.uint8))


# It is full at once, when the scratch files are ended, or when the video is.
@pytest.mark.parametrize(("num_frames", "free_bytes"), [(60, 0), (6, 0), (60, 600_000), (6, 500_000), (3, 900_000)])
def test_a_full_disk_is_one_line_and_leaves_nothing(disk: SmallDisk, num_frames: int, free_bytes: int) -> None:
    disk.fill()
    os.truncate(disk.path / "ballast", max(0, (disk.path / "ballast").stat().st_size - free_bytes))
    with pytest.raises(VideoError, match=r"^the video .*/step_1\.mp4 was not made: No space left on device$"):
        record(disk.path / "step_1", noise(num_frames), 60.0)
    assert [path.name for path in disk.path.iterdir()] == ["ballast"]


def test_a_disk_that_fills_up_leaves_an_earlier_recording_alone(disk: SmallDisk) -> None:
    (disk.path / "step_1.mp4").write_bytes(b"earlier")
    disk.fill()
    with pytest.raises(VideoError, match="No space left"):
        record(disk.path / "step_1", noise(6), 60.0)
    assert (disk.path / "step_1.mp4").read_bytes() == b"earlier"


def test_a_read_only_disk_is_refused_before_the_first_frame(disk: SmallDisk) -> None:
    disk.set_writable(False)
    with pytest.raises(VideoError, match="Read-only file system"), VideoRecorder(disk.path / "step_1", 60.0):
        pytest.fail("there is nowhere to record to")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"No such file or directory: .*/nowhere/"):
        record(tmp_path / "nowhere" / "step_1", [frame()], 60.0)


def test_a_folder_at_the_path_of_the_video_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "step_1.mp4").mkdir()
    with pytest.raises(VideoError, match="Is a directory"):
        record(tmp_path / "step_1", [frame()] * 3, 60.0)
    assert [path.name for path in tmp_path.iterdir()] == ["step_1.mp4"]


def test_without_ffmpeg_the_error_says_so_before_the_first_frame(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path\n"
        "from ppo.outputs.video import VideoError, VideoRecorder\n"
        "try:\n"
        "    with VideoRecorder(Path('step_1'), 60.0): print('recording')\n"
        "except VideoError as error: print(error)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "FFMPEG_BINARY": "no-such-ffmpeg"},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = finished.stdout.splitlines()
    assert line.startswith("the video step_1.mp4 was not made: ") and "no-such-ffmpeg" in line


def test_an_ffmpeg_that_fails_in_the_end_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moviepy.video.io import ffmpeg_writer

    (tmp_path / "ffmpeg").write_text("#!/bin/sh\ncat > /dev/null\necho out of luck >&2\nexit 3\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setattr(ffmpeg_writer, "FFMPEG_BINARY", str(tmp_path / "ffmpeg"))
    with pytest.raises(VideoError, match=r"was not made: out of luck$"):
        record(tmp_path / "step_1", [frame()] * 3, 60.0)
    assert [path.name for path in tmp_path.iterdir()] == ["ffmpeg"]


def test_an_ffmpeg_that_is_gone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moviepy.video.io import ffmpeg_writer

    monkeypatch.setattr(ffmpeg_writer, "FFMPEG_BINARY", "no-such-ffmpeg")
    with pytest.raises(VideoError, match="No such file or directory: no-such-ffmpeg"):
        record(tmp_path / "step_1", [frame()], 60.0)
    assert list(tmp_path.iterdir()) == []


def test_no_process_is_left_when_a_recording_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), VideoRecorder(tmp_path / "step_1", 60.0) as video:
        video.write(frame())
        processes = [encoder._process for encoder in video._encoders.values()]
        raise RuntimeError
    assert len(processes) == 2
    assert all(process.returncode is not None for process in processes)
