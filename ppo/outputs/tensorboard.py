"""What TensorBoard shows of a run: its curves, settings, histograms, texts and clips, in one file per start.

TensorBoard's own writer has a thread that dies when the disk is full, which loses all later events of the run; so its
functions only encode records, and ours write them.
"""

import io
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ppo.outputs.folders import GrowingFile
from ppo.outputs.histograms import Look
from ppo.outputs.trackers import Clips, FinishedEpisode, Metrics, loss_of, newest_clip, removal_note, trouble_with

UPDATES_BETWEEN_LOOKS = 10
_EVENTS_PREFIX = "events.out.tfevents."
# From TensorFlow's enumerations of data types and colour spaces.
_STRING = 7
_RGB = 3

Hyperparameter = str | float | int | bool | None


class TensorBoard:
    """Curves for `tensorboard --logdir runs`, under the names of the CSV columns; settings, histograms and clips."""

    def __init__(
        self,
        folder: Path,
        resumed_steps: int,
        *,
        texts: Mapping[str, str] = MappingProxyType({}),
        hyperparameters: Mapping[str, Hyperparameter] = MappingProxyType({}),
        look: Callable[[], Look] | None = None,
        clips: Clips = lambda _: None,
    ) -> None:
        """Prepare an event file; events past `resumed_steps` in earlier files become void.

        Args:
            folder: folder of the file.
            resumed_steps: agent steps at which this start begins.
            texts: Markdown by title, logged at `resumed_steps`.
            hyperparameters: settings by name, for the HPARAMS table, which compares runs.
            look: summarises the newest rollout; called in the first of every ten updates.
            clips: shown among the images.
        """
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        self.notes: list[str] = []
        self._folder, self._look, self._clips = folder, look, clips
        self._event: Any = Event
        self._record_writer: Any = RecordWriter
        restart = Event(wall_time=time.time(), step=resumed_steps + 1)
        restart.session_log.status = restart.session_log.START
        header = self._record(Event(wall_time=time.time(), file_version="brain.Event:2")) + self._record(restart)
        self._file = GrowingFile(folder / _new_events_name(folder), header)
        event = Event(wall_time=time.time(), step=resumed_steps)
        for title, text in texts.items():
            value = event.summary.value.add(tag=title)
            value.metadata.plugin_data.plugin_name = "text"
            value.tensor.dtype = _STRING
            value.tensor.string_val.append(text.encode())
        self._file.add(self._record(event))
        if hyperparameters:
            self._add_hyperparameters(hyperparameters, resumed_steps)

    def log(self, metrics: Metrics, episodes: Sequence[FinishedEpisode]) -> None:
        """Write every known metric at this number of steps."""
        known = {k: v for k, v in metrics.items() if v is not None and k not in ("update", "env_steps")}
        env_steps = metrics["env_steps"] or 0
        self._add(env_steps, known)
        for game in episodes:
            self._add(game.env_steps, {"episode/return": game.episode_return, "episode/length": game.episode_length})
        if self._look and (metrics["update"] or 0) % UPDATES_BETWEEN_LOOKS == 1:
            self._add_look(env_steps, self._look())
        with trouble_with(self._folder):
            self._write()
        if clip := newest_clip(self._clips, metrics, self.notes):
            self._add_clip(env_steps, clip)

    def say(self, text: str) -> None:
        """Ignore messages."""

    def sync(self) -> None:
        """Flush all events to disk."""
        with trouble_with(self._folder):
            self._write()
            self._file.sync()

    def close(self) -> None:
        """Write the waiting events, without a later retry."""
        with loss_of(self._folder):
            self._write()

    def _add(self, step: float, values: Mapping[str, float]) -> None:
        event = self._event(wall_time=time.time(), step=int(step))
        for name, value in values.items():
            event.summary.value.add(tag=name, simple_value=float(value))
        self._file.add(self._record(event))

    def _add_look(self, step: float, look: Look) -> None:
        self._add(step, look.means)
        event = self._event(wall_time=time.time(), step=int(step))
        for name, histogram in look.histograms.items():
            numbers, histo = histogram.numbers, event.summary.value.add(tag=name).histo
            histo.num, histo.sum, histo.sum_squares = len(numbers), numbers.sum(), numbers @ numbers
            lowest, *limits = histogram.edges.tolist()
            histo.min, histo.max = lowest, limits[-1]
            histo.bucket_limit.extend(limits)
            histo.bucket.extend(histogram.counts.tolist())
        self._file.add(self._record(event))

    def _add_hyperparameters(self, values: Mapping[str, Hyperparameter], step: int) -> None:
        from tensorboard.plugins.hparams import summary_v2  # type: ignore[import-untyped]

        shown = {name: "none" if value is None else value for name, value in values.items()}
        # Without an explicit list, TensorBoard first shows the hyperparameters that differ between runs.
        summary = summary_v2.hparams_pb(shown, trial_id=self._folder.name)
        self._file.add(self._record(self._event(wall_time=time.time(), step=step, summary=summary)))

    def _add_clip(self, step: float, gif: bytes) -> None:
        event = self._event(wall_time=time.time(), step=int(step))
        image = event.summary.value.add(tag="clip").image
        image.encoded_image_string = gif
        image.width, image.height = struct.unpack("<HH", gif[6:10])
        image.colorspace = _RGB
        self._file.add(self._record(event))
        with trouble_with(self._folder):
            self._write()

    def _record(self, event: Any) -> bytes:
        content = io.BytesIO()
        self._record_writer(content).write(event.SerializeToString())
        return content.getvalue()

    def _write(self) -> None:
        if self._file.write():
            self.notes.append(removal_note(self._folder))


def _new_events_name(folder: Path) -> str:
    """Return a file name that TensorBoard, which reads files in name order, reads last, whatever the clock says."""
    seconds = int(time.time())
    for path in folder.glob(f"{_EVENTS_PREFIX}*"):
        number = path.name.removeprefix(_EVENTS_PREFIX).partition(".")[0]
        if len(number) == 10 and number.isdecimal():
            seconds = max(seconds, int(number) + 1)
    return f"{_EVENTS_PREFIX}{seconds:010}.{socket.gethostname()}.{os.getpid()}.0"
