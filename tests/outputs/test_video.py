"""An mp4 and a gif that play at the game's own speed, or nothing at all."""

import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from numpy.typing import NDArray
from PIL import Image

from ppo.outputs.lock import sign
from ppo.outputs.video import GIF_SECONDS, VideoError, VideoRecorder
from tests.disks import SmallDisk, small_disk

HEIGHT, WIDTH = 32, 48
BLACK = (0, 0, 0)

Frame = NDArray[np.uint8]


def frame(brightness: int = 0) -> Frame:
    return np.full((HEIGHT, WIDTH, 3), brightness, np.uint8)


def record(path: Path, frames: Iterable[Frame], rate: float) -> str:
    """Record frames and return how the files are described."""
    with VideoRecorder(path, rate) as video:
        for screen in frames:
            video.write(screen)
    return video.describe()


def decode_mp4(path: Path) -> tuple[list[Frame], float]:
    """Return an mp4's frames and its rate."""
    frames, video = [], cv2.VideoCapture(str(path))
    while (read := video.read())[0]:
        frames.append(read[1][..., ::-1])
    return frames, video.get(cv2.CAP_PROP_FPS)


def described_by_ffmpeg(path: Path) -> str:
    """Return what ffmpeg says of a file: its duration, and how its stream is stored."""
    said = subprocess.run([get_ffmpeg_exe(), "-i", str(path)], capture_output=True, text=True, check=False).stderr
    return said[said.index("Duration") :]


def decode_gif(path: Path) -> tuple[list[Frame], list[int]]:
    """Return a gif's frames and for how many hundredths of a second each is shown."""
    frames, delays = [], []
    with Image.open(path) as image:
        for position in range(image.n_frames):
            image.seek(position)
            frames.append(np.asarray(image.convert("RGB")))
            delays.append(image.info["duration"] // 10)
    return frames, delays


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


def test_the_gif_shows_every_third_frame_at_the_games_speed(recorded: Path) -> None:
    frames, delays = decode_gif(recorded.with_suffix(".gif"))
    assert delays == [5] * 30
    np.testing.assert_allclose([screen.mean() for screen in frames], np.arange(0, 180, 6), atol=1)


RATES = (0.3, 1.0, 4.0, 15.0, 24.0, 25.0, 29.97, 30.0, 50.0, 60.0, 62.5, 200 / 3, 125.0, 144.0, 1000.0)
LENGTHS = (1, 2, 3, 5, 7, 8, 9, 16, 25, 31, 50, 64, 100)
EVERY_PAIR = [(number, rate) for number in LENGTHS for rate in RATES]
# ffmpeg takes 3 frames at 125 a second for 120 a second unless it is told twice.
QUICK = {*EVERY_PAIR[::13], (8, 15.0), (1, 60.0), (3, 125.0)}


@pytest.mark.parametrize(
    ("number", "rate"), [pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow) for pair in EVERY_PAIR]
)
def test_both_files_have_the_frames_and_the_duration_of_the_game(tmp_path: Path, number: int, rate: float) -> None:
    record(tmp_path / "game", [frame(17 * position % 256) for position in range(number)], rate)
    frames, mp4_rate = decode_mp4(tmp_path / "game.mp4")
    assert len(frames) == number
    assert mp4_rate == pytest.approx(rate, rel=1e-4)
    hours, minutes, seconds = described_by_ffmpeg(tmp_path / "game.mp4").split()[1].rstrip(",").split(":")
    assert 3600 * int(hours) + 60 * int(minutes) + float(seconds) == pytest.approx(number / rate, abs=0.011)
    frames, delays = decode_gif(tmp_path / "game.gif")
    step = math.ceil(rate / 25)
    shown = [position for position in range(0, number, step) if position < GIF_SECONDS * rate]
    np.testing.assert_allclose([screen.mean() for screen in frames], [17 * p % 256 for p in shown], atol=1)
    # A delay of 1/100 s is shown for ten times as long.
    assert min(delays) >= 2
    assert sum(delays) == pytest.approx(min(100 * number / rate, 100 * GIF_SECONDS), abs=2)
    assert max(delays[:-1], default=0) - min(delays[:-1], default=0) <= 1


def test_the_gif_shows_every_colour_that_comes_back(tmp_path: Path) -> None:
    brightness = [0, 100, 200, 0, 255, 0, 100, 100, 0, 1, 0, 254]
    screens = [frame(number) for number in brightness]
    # A second recording has a stripe of another colour in the middle.
    striped = [np.concatenate([screen[:9], 255 - screen[:3], screen[9:]]) for screen in screens]
    for number, recorded in enumerate((screens, striped)):
        record(tmp_path / str(number), recorded, 25.0)
        np.testing.assert_allclose(decode_gif(tmp_path / f"{number}.gif")[0], recorded, atol=1)


def test_frames_that_are_all_alike_are_all_there(tmp_path: Path) -> None:
    record(tmp_path / "still", [frame(90)] * 20, 15.0)
    assert len(decode_mp4(tmp_path / "still.mp4")[0]) == 20
    assert sum(decode_gif(tmp_path / "still.gif")[1]) == 133


@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 7), (3, 2), (31, 47), (299, 301), (301, 2), pytest.param((401, 602), marks=pytest.mark.slow)]
    + [pytest.param(size, marks=pytest.mark.slow) for size in [(400, 601), (481, 641), (1081, 3)]],
)
def test_frames_of_any_size_become_a_video_that_every_player_shows(tmp_path: Path, size: tuple[int, int]) -> None:
    # Dark in the middle, bright at the sides.
    screen = np.full((*size, 3), 40, np.uint8)
    screen[-1], screen[:, -1] = 220, 220
    record(tmp_path / "odd", [screen] * 3, 25.0)
    assert "yuv420p" in described_by_ffmpeg(tmp_path / "odd.mp4")
    frames, _ = decode_mp4(tmp_path / "odd.mp4")
    height, width, _ = frames[0].shape
    scale = 2 if size[0] <= 300 else 1
    assert (len(frames), height, width) == (3, *(side * scale + side * scale % 2 for side in size))
    assert frames[0][-1].mean() == pytest.approx(220, abs=12)
    assert [screen.shape for screen in decode_gif(tmp_path / "odd.gif")[0]] == [(*size, 3)] * 3


def test_large_screens_keep_their_size(tmp_path: Path) -> None:
    record(tmp_path / "large", [np.zeros((400, 600, 3), np.uint8)] * 3, 50.0)
    assert decode_mp4(tmp_path / "large.mp4")[0][0].shape == (400, 600, 3)


def test_what_is_drawn_on_every_other_frame_only_does_not_flicker_in_the_gif(tmp_path: Path) -> None:
    record(tmp_path / "flicker", [frame(200 if number % 2 else 0) for number in range(30)], 60.0)
    frames, _ = decode_gif(tmp_path / "flicker.gif")
    assert all(screen.min() > 180 for screen in frames[1:])


def test_where_the_gif_shows_every_frame_what_shakes_is_shown_as_it_is(tmp_path: Path) -> None:
    record(tmp_path / "shaking", [frame(200 if number % 2 else 0) for number in range(10)], 25.0)
    assert [round(screen.mean()) for screen in decode_gif(tmp_path / "shaking.gif")[0]] == [0, 200] * 5


@pytest.mark.parametrize("rate", [15.0, 50.0])
@pytest.mark.parametrize("colours", [(BLACK, (255, 255, 255)), ((220, 40, 40), BLACK)])
def test_what_moves_is_shown_in_the_gif_as_it_is_whatever_its_colour(
    tmp_path: Path, rate: float, colours: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    screens = []
    for position in range(0, 40, 4):
        screens.append(frame())
        screens[-1][...] = colours[1]
        screens[-1][:, position : position + 4] = colours[0]
    record(tmp_path / "moving", screens, rate)
    frames, _ = decode_gif(tmp_path / "moving.gif")
    np.testing.assert_allclose(frames, screens[:: math.ceil(rate / 25)], atol=1)


def test_the_gif_ends_after_30_seconds_and_the_mp4_does_not(tmp_path: Path) -> None:
    screens = (frame(number % 2 * 255) for number in range(33 * 10))
    record(tmp_path / "long", screens, 10.0)
    assert decode_gif(tmp_path / "long.gif")[1] == [10] * 10 * GIF_SECONDS
    assert len(decode_mp4(tmp_path / "long.mp4")[0]) == 330


@pytest.mark.parametrize(
    ("number", "rate", "mp4", "gif"),
    [
        (90, 15.0, "90 frames, 6.0 seconds", "all of it"),
        (90, 60.0, "90 frames, 1.5 seconds", "all of it, one frame in 3"),
        (60, 2.0, "60 frames, 30.0 seconds", "all of it"),
        (61, 2.0, "61 frames, 30.5 seconds", "its first 30 seconds"),
        (1001, 26.0, "1,001 frames, 38.5 seconds", "its first 30 seconds, one frame in 2"),
    ],
)
def test_each_file_is_described_by_what_it_shows(tmp_path: Path, number: int, rate: float, mp4: str, gif: str) -> None:
    path = tmp_path / "step_1"
    assert record(path, (frame() for _ in range(number)), rate) == f"{path}.mp4 ({mp4}) and {path}.gif ({gif})"


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
    frames = [*decode_gif(tmp_path / "reused.gif")[0], *decode_mp4(tmp_path / "reused.mp4")[0]]
    np.testing.assert_allclose([screen[0, 0] for screen in frames], [[200, 0, 0], [0, 200, 0], [0, 0, 200]] * 2, atol=8)


def test_a_frame_of_another_size_is_refused_with_both_sizes(tmp_path: Path) -> None:
    screens = [frame(), frame(), np.zeros((HEIGHT, WIDTH + 2, 3), np.uint8)]
    with pytest.raises(VideoError, match=r"made: its frames must have one size, got 32 x 48 and 32 x 50 \(frame 3\)$"):
        record(tmp_path / "step_1", screens, 60.0)
    assert list(tmp_path.iterdir()) == []


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


def test_a_recording_without_frames_is_an_error_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no frame was drawn"):
        record(tmp_path / "empty", [], 60.0)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_recorder_left_goes_with_the_next_recording_and_what_others_have_stays(tmp_path: Path) -> None:
    for name in ("killed", "living", "unknown"):
        (tmp_path / f".video-{name}").mkdir()
        (tmp_path / f".video-{name}" / "mp4.mkv").touch()
    sign(tmp_path / ".video-living")
    program = "import sys; from pathlib import Path; from ppo.outputs.lock import sign; sign(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / ".video-killed")], check=True)
    record(tmp_path / "step_1", [frame()] * 3, 60.0)
    assert sorted(path.name for path in tmp_path.glob(".video-*")) == [".video-living", ".video-unknown"]


@pytest.mark.parametrize("target", ["precious", "nowhere"])
def test_a_video_is_not_written_where_a_link_leads(tmp_path: Path, target: str) -> None:
    (tmp_path / "precious").write_text("precious")
    for suffix in (".mp4", ".gif"):
        (tmp_path / f"step_1{suffix}").symlink_to(target)
    record(tmp_path / "step_1", [frame()] * 3, 60.0)
    assert all((tmp_path / f"step_1{suffix}").stat().st_size > 100 for suffix in (".mp4", ".gif"))
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


# ------------------------------------------------------------------------------------------------------------- trouble


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path) as mounted:
        yield mounted


def noise(number: int) -> list[NDArray[np.uint8]]:
    """Return screens that cannot be compressed, some 100 kB each."""
    return list(np.random.default_rng(0).integers(0, 256, (number, 210, 160, 3), dtype=np.uint8))


# It is full at once, during the game, when the mp4 is ended, or when the gif is made.
@pytest.mark.parametrize(("num_frames", "free_bytes"), [(20, 0), (6, 0), (12, 600_000), (6, 500_000), (3, 325_000)])
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


def test_without_ffmpeg_the_error_says_so_before_the_first_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "no-such-ffmpeg")
    with pytest.raises(VideoError, match="No such file or directory: no-such-ffmpeg"), VideoRecorder(tmp_path / "x", 1):
        pytest.fail("there is nothing to record with")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is run in place of ffmpeg, for a test to write."""
    path = tmp_path / "ffmpeg"
    path.touch(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
    return path


def test_an_ffmpeg_that_fails_in_the_end_is_noticed(program: Path) -> None:
    program.write_text("#!/bin/sh\ncat > /dev/null\necho out of luck >&2\nexit 3\n")
    with pytest.raises(VideoError, match=r"was not made: out of luck$"):
        record(program.parent / "step_1", [frame()] * 3, 60.0)
    assert list(program.parent.iterdir()) == [program]


@pytest.mark.parametrize("code", [0, 3])
def test_an_ffmpeg_that_reads_no_frame_is_noticed(program: Path, code: int) -> None:
    program.write_text(f"#!/bin/sh\nexit {code}\n")
    with pytest.raises(VideoError, match=r"was not made: (Broken pipe|ffmpeg ended with code 3)"):
        record(program.parent / "step_1", noise(6), 60.0)


def test_an_ffmpeg_that_goes_during_the_recording_is_named(program: Path) -> None:
    with (
        pytest.raises(VideoError, match=r"No such file or directory: .*ffmpeg"),
        VideoRecorder(program.parent / "step_1", 60.0) as video,
    ):
        program.unlink()
        video.write(frame())
    assert list(program.parent.iterdir()) == []


def test_no_process_is_left_when_a_recording_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), VideoRecorder(tmp_path / "step_1", 60.0) as video:
        video.write(frame())
        processes = [encoder._process for encoder in video._encoders]
        raise RuntimeError
    assert len(processes) == 2
    assert all(process.returncode is not None for process in processes)
