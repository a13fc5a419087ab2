"""Videos of games: screens go to disk as they come, at the game's own speed, and become an mp4 and a gif at the end."""

import contextlib
import errno
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

GIF_SECONDS = 30
_GIF_MAX_RATE = 25.0
_SMALL_HEIGHT = 300


# What ffmpeg says among other things when the fault is not its own.
_CAUSES = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO))


class VideoError(Exception):
    """A video could not be made; the message says which and why. Nothing of it is left."""


class VideoRecorder:
    """A context that turns frames into `<path>.mp4` and `<path>.gif`; neither exists until both are whole."""

    def __init__(self, path: Path, frames_per_second: float) -> None:
        """Prepare to write beside `path`, a name without suffix in a folder that exists.

        The gif shows every k-th frame, each merged with the one before it, because Atari games draw some things on
        every other frame only; k keeps the gif at the game's speed at no more than 25 frames per second.
        """
        self._path, self._rate = path, frames_per_second
        self._gif_step = math.ceil(frames_per_second / _GIF_MAX_RATE)
        self._previous: NDArray[np.uint8] | None = None
        self._encoders: dict[str, _Encoder] = {}
        self.num_frames = 0

    def __enter__(self) -> "VideoRecorder":
        """Open the scratch folder the frames go to.

        Raises:
            VideoError: it cannot be made, or there is no ffmpeg.
        """
        with self._told():
            import moviepy  # noqa: F401  looks for ffmpeg

            self._scratch = tempfile.TemporaryDirectory(
                prefix=".video-", dir=self._path.parent, ignore_cleanup_errors=True
            )
        return self

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Add a frame, (H, W, 3) RGB.

        Raises:
            VideoError: it cannot be written.
        """
        small = frame.shape[0] <= _SMALL_HEIGHT
        with self._told():
            self._encoder("mp4", frame, self._rate).write(_enlarge(frame) if small else frame)
            if self.num_frames % self._gif_step == 0 and self.num_frames < GIF_SECONDS * self._rate:
                merged = frame if self._previous is None else np.maximum(frame, self._previous)
                self._encoder("gif", frame, self._rate / self._gif_step).write(merged)
        self._previous = frame.copy()
        self.num_frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Encode both files, unless the block failed, and remove the scratch folder.

        Raises:
            VideoError: the block did not fail, but there is no video.
        """
        try:
            if error is None and self.num_frames:
                with self._told():
                    for encoder in self._encoders.values():
                        encoder.finish()
                    self._encode()
        finally:
            for encoder in self._encoders.values():
                encoder.stop()
            self._scratch.cleanup()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what goes wrong on the way to ffmpeg, within it or on the disk into one line."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise VideoError(f"the video {self._path}.mp4 was not made: {_reason(error)}") from error

    def _encoder(self, kind: str, frame: NDArray[np.uint8], rate: float) -> "_Encoder":
        """Return the encoder of a lossless scratch file, started at the first frame."""
        if kind not in self._encoders:
            height, width = frame.shape[:2]
            scale = 2 if kind == "mp4" and height <= _SMALL_HEIGHT else 1
            self._encoders[kind] = _Encoder(
                self._scratch_path(f"{kind}.mkv"),
                (width * scale, height * scale),
                rate,
                codec="libx264rgb",
                preset="ultrafast",
                ffmpeg_params=["-qp", "0"],
            )
        return self._encoders[kind]

    def _encode(self) -> None:
        from moviepy import VideoFileClip

        mp4, gif = self._scratch_path("done.mp4"), self._scratch_path("done.gif")
        with VideoFileClip(self._scratch_path("mp4.mkv"), audio=False) as clip:
            encoder = _Encoder(mp4, clip.size, clip.fps, codec="libx264", ffmpeg_params=["-crf", "20"])
            try:
                for frame in clip.iter_frames(dtype="uint8"):
                    encoder.write(frame)
                encoder.finish()
            finally:
                encoder.stop()
        with VideoFileClip(self._scratch_path("gif.mkv"), audio=False) as clip:
            clip.write_gif(gif, fps=self._rate / self._gif_step, logger=None)
        os.replace(mp4, f"{self._path}.mp4")
        os.replace(gif, f"{self._path}.gif")

    def _scratch_path(self, name: str) -> str:
        return os.path.join(os.path.abspath(self._scratch.name), name)


class _Encoder:
    """ffmpeg as it writes one file. moviepy feeds it, but does not ask whether it succeeded in the end."""

    def __init__(self, path: str, size: tuple[int, int], rate: float, **options: Any) -> None:
        from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

        self._writer = FFMPEG_VideoWriter(path, size, rate, **options)
        self._process: Any = self._writer.proc

    def write(self, frame: NDArray[np.uint8]) -> None:
        self._writer.write_frame(frame)

    def finish(self) -> None:
        """Have the file whole.

        Raises:
            OSError: it is not.
        """
        _, said = self._process.communicate()
        if self._process.returncode:
            raise OSError(said.decode(errors="replace") or f"ffmpeg ended with code {self._process.returncode}")

    def stop(self) -> None:
        """End the process if it still runs."""
        if self._process.returncode is None:
            self._process.kill()
            self._process.communicate()


def _reason(error: OSError | RuntimeError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    text = str(error)
    lines = [line for line in text.splitlines() if line.strip()]
    return next((cause for cause in _CAUSES if cause in text), lines[-1].strip() if lines else type(error).__name__)


def _enlarge(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Double every pixel, so that the mp4's halved colour resolution costs nothing."""
    return np.ascontiguousarray(frame.repeat(2, axis=0).repeat(2, axis=1))
