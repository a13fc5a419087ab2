"""Videos of games: screens go to disk as they come, at the game's own speed, and become an mp4 and a gif at the end."""

import math
import os
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
from moviepy import VideoFileClip
from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter
from numpy.typing import NDArray

GIF_SECONDS = 30
_GIF_MAX_RATE = 25.0
_SMALL_HEIGHT = 300


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
        self._writers: dict[str, FFMPEG_VideoWriter] = {}
        self.num_frames = 0

    def __enter__(self) -> "VideoRecorder":
        """Open the scratch folder the frames go to."""
        self._scratch = tempfile.TemporaryDirectory(prefix=".video-", dir=self._path.parent)
        return self

    def write(self, frame: NDArray[np.uint8]) -> None:
        """Add a frame, (H, W, 3) RGB."""
        small = frame.shape[0] <= _SMALL_HEIGHT
        self._writer("mp4", frame, self._rate).write_frame(_enlarge(frame) if small else frame)
        if self.num_frames % self._gif_step == 0 and self.num_frames < GIF_SECONDS * self._rate:
            merged = frame if self._previous is None else np.maximum(frame, self._previous)
            self._writer("gif", frame, self._rate / self._gif_step).write_frame(merged)
        self._previous = frame.copy()
        self.num_frames += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Encode both files, unless the block failed, and remove the scratch folder."""
        try:
            for writer in self._writers.values():
                writer.close()
            if error is None and self.num_frames:
                self._encode()
        finally:
            self._scratch.cleanup()

    def _writer(self, kind: str, frame: NDArray[np.uint8], rate: float) -> FFMPEG_VideoWriter:
        """Return the writer of a lossless scratch file, opened at the first frame."""
        if kind not in self._writers:
            height, width = frame.shape[:2]
            scale = 2 if kind == "mp4" and height <= _SMALL_HEIGHT else 1
            self._writers[kind] = FFMPEG_VideoWriter(
                self._scratch_path(f"{kind}.mkv"),
                (width * scale, height * scale),
                rate,
                codec="libx264rgb",
                preset="ultrafast",
                pixel_format="rgb24",
                ffmpeg_params=["-qp", "0"],
            )
        return self._writers[kind]

    def _encode(self) -> None:
        mp4, gif = self._scratch_path("done.mp4"), self._scratch_path("done.gif")
        with VideoFileClip(self._scratch_path("mp4.mkv"), audio=False) as clip:
            clip.write_videofile(
                mp4, codec="libx264", audio=False, logger=None, pixel_format="yuv420p", ffmpeg_params=["-crf", "20"]
            )
        with VideoFileClip(self._scratch_path("gif.mkv"), audio=False) as clip:
            clip.write_gif(gif, fps=self._rate / self._gif_step, logger=None)
        os.replace(mp4, f"{self._path}.mp4")
        os.replace(gif, f"{self._path}.gif")

    def _scratch_path(self, name: str) -> str:
        return os.path.join(os.path.abspath(self._scratch.name), name)


def _enlarge(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Double every pixel, so that the mp4's halved colour resolution costs nothing."""
    return np.ascontiguousarray(frame.repeat(2, axis=0).repeat(2, axis=1))
