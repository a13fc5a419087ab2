"""Videos of games: an mp4 and a gif, at the game's own speed.

Frames are streamed to ffmpeg, so that a game of any length needs little memory. The delays of a gif are whole
hundredths of a second; they differ by one where the frame rate requires it, so that their sum is right.
"""

import contextlib
import errno
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo.outputs.lock import is_abandoned, sign

GIF_SECONDS = 30
_GIF_MAX_RATE = 25
# Browsers show a frame of 1/100 s for ten times as long.
_GIF_MIN_DELAY = 2
_SMALL_HEIGHT = 300
_SCRATCH = ".video-"

_LOSSLESS = ("-c:v", "libx264rgb", "-preset", "ultrafast", "-qp", "0")
# Not all players show other pixel formats.
_PLAYABLE = ("-c:v", "libx264", "-crf", "20", "-pix_fmt", "yuv420p")
_IN_PALETTE = "paletteuse=dither=none"

# Texts within ffmpeg's output when the fault is not ffmpeg's.
_CAUSES = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO))


class VideoError(Exception):
    """A video could not be made; the message says which and why, and no file of it is left."""


class VideoRecorder:
    """A context manager that turns frames into `<path>.mp4` and `<path>.gif`; neither exists until both are whole."""

    def __init__(self, path: Path, frames_per_second: float, *, with_mp4: bool = True) -> None:
        """Prepare to write both files, or only the gif; `path` has no suffix and its folder exists.

        The gif shows every k-th frame, with flicker removed; k is the smallest that keeps it at the game's speed with
        at most 25 frames per second.
        """
        self._path, self._with_mp4 = path, with_mp4
        self._rate = Fraction(frames_per_second).limit_denominator(1000)
        self._gif_step = math.ceil(self._rate / _GIF_MAX_RATE)
        self._encoders: list[_Encoder] = []
        self._size: tuple[int, ...] = ()
        self._past: list[NDArray[np.uint8]] = []
        self.num_frames = 0

    def __enter__(self) -> "VideoRecorder":
        """Create a scratch folder for the files, and delete the scratch folders of killed recorders.

        Raises:
            VideoError: the folder cannot be created, or there is no ffmpeg.
        """
        with self._told():
            from imageio_ffmpeg import get_ffmpeg_exe

            program = get_ffmpeg_exe()
            found = shutil.which(program)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
            self._program = os.path.abspath(found)
            for leftover in self._path.parent.glob(f"{_SCRATCH}*"):
                if is_abandoned(leftover):
                    shutil.rmtree(leftover, ignore_errors=True)
            self._scratch = tempfile.TemporaryDirectory(
                prefix=_SCRATCH, dir=self._path.parent, ignore_cleanup_errors=True
            )
            try:
                sign(Path(self._scratch.name))
            except OSError:
                self._scratch.cleanup()
                raise
        return self

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Add, and keep, an RGB frame (H, W, 3) of the same size as the first.

        Raises:
            VideoError: the frame has another size, or cannot be written.
        """
        with self._told():
            if not self.num_frames:
                self._size = frame.shape
                if self._with_mp4:
                    self._start_encoder(_for_mp4(frame), self._rate, *_PLAYABLE, "done.mp4")
                self._start_encoder(frame, self._rate / self._gif_step, *_LOSSLESS, "gif.mkv")
            if frame.shape != self._size:
                sizes = " and ".join(f"{height} x {width}" for height, width, _ in (self._size, frame.shape))
                raise ValueError(f"its frames must have one size, got {sizes} (frame {self.num_frames + 1})")
            *mp4, gif = self._encoders
            for encoder in mp4:
                encoder.write(_for_mp4(frame))
            if self.num_frames % self._gif_step == 0 and self.num_frames < GIF_SECONDS * self._rate:
                # If every frame is shown, no frame needs another one's objects.
                gif.write(frame if self._gif_step == 1 else _without_flicker(frame, self._past))
        self._past = [frame, *self._past[:2]]
        self.num_frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Finish both files, unless the block failed, and remove the scratch folder.

        Raises:
            VideoError: the block succeeded, but the video could not be made.
        """
        try:
            if error is None:
                with self._told():
                    self._finish()
        finally:
            for encoder in self._encoders:
                encoder.stop()
            self._scratch.cleanup()

    def describe(self) -> str:
        """Return the names of the files and what they show, in words."""
        seconds = self.num_frames / self._rate
        shown = "all of it" if seconds <= GIF_SECONDS else f"its first {GIF_SECONDS} seconds"
        if self._gif_step > 1:
            shown += f", one frame in {self._gif_step}"
        of_mp4 = f"{self.num_frames:,} frames, {float(seconds):,.1f} seconds"
        return f"{self._path}.mp4 ({of_mp4}) and {self._path}.gif ({shown})"

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn errors of the frames, ffmpeg or the disk into a one-line VideoError."""
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            raise VideoError(f"the video {self._path}.mp4 was not made: {_reason(error)}") from error

    def _start_encoder(self, frame: NDArray[np.uint8], rate: Fraction, *output: str) -> None:
        """Start encoding frames of this one's size."""
        height, width = frame.shape[:2]
        size, rates = f"{width}x{height}", ("-r", str(rate))
        raw = ("-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", size, *rates, "-i", "pipe:")
        self._start(*raw, *output)

    def _start(self, *arguments: str) -> "_Encoder":
        self._encoders.append(_Encoder(self._program, self._scratch.name, *arguments))
        return self._encoders[-1]

    def _finish(self) -> None:
        if not self.num_frames:
            raise ValueError("no frame was drawn")
        for encoder in self._encoders:
            encoder.finish()
        rate = self._rate / self._gif_step
        seconds = min(self.num_frames / self._rate, Fraction(GIF_SECONDS))
        last_delay = _hundredths(seconds) - _hundredths((math.ceil(seconds * rate) - 1) / rate)
        frames, delay = ("-r", str(rate), "-i", "gif.mkv"), ("-final_delay", str(max(_GIF_MIN_DELAY, last_delay)))
        # One palette for all frames: with one for each, ffmpeg 9 drops what differs only in the palette.
        self._start(*frames, "-vf", "palettegen", "palette.png").finish()
        self._start(*frames, "-i", "palette.png", "-filter_complex", _IN_PALETTE, *delay, "done.gif").finish()
        for kind in ("mp4", "gif") if self._with_mp4 else ("gif",):
            os.replace(f"{self._scratch.name}/done.{kind}", f"{self._path}.{kind}")


class _Encoder:
    """An ffmpeg process that makes one file."""

    def __init__(self, program: str, folder: str, *arguments: str) -> None:
        """Start ffmpeg in a folder."""
        command, pipe = (program, "-loglevel", "error", *arguments), subprocess.PIPE
        self._process = subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe)
        self._input: Any = self._process.stdin

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Pass a frame to ffmpeg.

        Raises:
            OSError: ffmpeg accepts no more frames.
        """
        try:
            self._input.write(frame.tobytes())
        except BrokenPipeError:
            self.finish()
            raise

    def finish(self) -> None:
        """Wait until the file is complete.

        Raises:
            OSError: ffmpeg failed.
        """
        _, said = self._process.communicate()
        if self._process.returncode:
            raise OSError(said.decode(errors="replace") or f"ffmpeg ended with code {self._process.returncode}")

    def stop(self) -> None:
        """End the process if it still runs."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.communicate()


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = str(error)
    lines = [line for line in text.splitlines() if line.strip()]
    return next((cause for cause in _CAUSES if cause in text), lines[0].strip() if lines else type(error).__name__)


def _for_mp4(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Double a small frame, so that the mp4's halved colour resolution costs nothing; pad others to even sides."""
    height, width = frame.shape[:2]
    if height <= _SMALL_HEIGHT:
        return frame.repeat(2, axis=0).repeat(2, axis=1)
    return np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _without_flicker(frame: NDArray[np.uint8], past: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return a frame with the brighter of two colours wherever it has alternated between them for four frames.

    Atari games draw some objects only on every other frame, so that every k-th frame might never show them. Moving
    objects are left as they are.

    Args:
        frame: the newest frame.
        past: up to three frames before it, latest first.
    """
    if len(past) < 3:
        return frame
    alternates = (frame == past[1]) & (past[0] == past[2])
    return np.where(alternates, np.maximum(frame, past[0]), frame)


def _hundredths(seconds: Fraction) -> int:
    """Round to hundredths as ffmpeg does."""
    return math.floor(100 * seconds + Fraction(1, 2))
