"""A training run in a separate job, followed through the files it writes."""

import csv
import io
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ppo.config import Config
from ppo.settings import REFUSED, Refusal
from ppo.supervision.signals import INTERRUPTED, PREEMPTED

Row = dict[str, float | None]
"""A row of progress.csv; None where a column is empty."""
OnUpdate = Callable[[Row], bool | None]

_SECONDS_BETWEEN_LOOKS = 0.2
_LAST_LINES = 5


class TrainingJob:
    """A job as `ppo.train` starts it."""

    def __init__(self, command: Sequence[str], config: Config, on_update: OnUpdate | None = None) -> None:
        """Start a command that trains with these settings."""
        self.checkpoint_folder = config.checkpoint_folder.absolute()
        self.run_folder = config.run_folder.absolute()
        self._on_update, self._was_stopped = on_update, False
        self._log = _Log(self.run_folder / "progress.csv")
        self._output, self._printed = tempfile.TemporaryFile(), ""
        # A new session, so that a Ctrl-C here does not reach the job.
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output, start_new_session=True
        )

    @property
    def is_running(self) -> bool:
        """Whether the job has not ended yet."""
        return self._process.poll() is None

    @property
    def output(self) -> str:
        """Everything the job has printed so far."""
        if self._output.closed:
            return self._printed
        descriptor = self._output.fileno()
        # Read without moving the file position, at which the job writes.
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def updates(self) -> list[Row]:
        """Return the rows of progress.csv that are new since the last call.

        After a restart, the job repeats the updates since its checkpoint, and their rows are returned again.
        """
        return list(self._log.new_rows())

    def wait(self, seconds: float | None = None) -> int:
        """Follow the job to its end, call `on_update` for each update, and return the exit code.

        Args:
            seconds: the longest time to wait; None: no limit.

        Returns:
            0 if the job is done; 75 if it saved and left on a signal, as after `stop`; 130 after a Ctrl-C to the job.

        Raises:
            TimeoutError: the job has not ended in time; it keeps running.
            Refusal: the job was refused; nothing was changed.
            RuntimeError: the job failed; the message has its last output.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            has_ended = not self.is_running  # checked first, so that the last read has every row
            if self._on_update is not None:
                for row in self.updates():
                    if self._on_update(row) is False and not self._was_stopped:
                        self._ask_to_stop()
            if has_ended:
                return self._result()
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"the job of {self.run_folder.name} has not ended within {seconds:g} seconds")
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def stop(self) -> int:
        """Have the job save and leave after its current update, wait for that, and return the exit code.

        Raises:
            RuntimeError: as from `wait`.
        """
        self._ask_to_stop()
        return self.wait()

    def _ask_to_stop(self) -> None:
        self._was_stopped = True
        self._process.send_signal(signal.SIGUSR1)  # does nothing if the job has ended

    def _result(self) -> int:
        if not self._output.closed:
            self._printed = self.output
            self._output.close()
        code = self._process.returncode
        if code == -signal.SIGUSR1 and self._was_stopped:  # sent before the job handled it: nothing to save
            code = PREEMPTED
        if code in (0, PREEMPTED, INTERRUPTED):
            return code
        lines = self.output.strip().splitlines()
        if code == REFUSED:
            raise Refusal(next((line.removeprefix("ppo: ") for line in lines if line.startswith("ppo: ")), "refused"))
        said = "\n".join(lines[-_LAST_LINES:])
        raise RuntimeError(f"the job failed with exit code {code}; its last output:\n{said}")


class _Log:
    """The rows of a growing CSV file, which a resumed run may first truncate to its checkpoint."""

    def __init__(self, path: Path) -> None:
        """Treat the rows already there as seen."""
        self._path = path
        self._when: tuple[int, int] | None = None
        self._seen = b""
        self._seen = self._read()

    def new_rows(self) -> Iterator[Row]:
        """Yield the complete rows that have been written since the last call."""
        content = self._read()
        if content.startswith(self._seen):
            new = content[len(self._seen) :]
        else:
            before, now = self._seen.splitlines(keepends=True), content.splitlines(keepends=True)
            same = next((n for n, pair in enumerate(zip(before, now, strict=False)) if pair[0] != pair[1]), len(now))
            new = b"".join(now[same:])
        self._seen = content
        header, _, _ = content.partition(b"\n")
        text = (header + b"\n" + new.removeprefix(header + b"\n")).decode()
        for row in csv.DictReader(io.StringIO(text)):
            yield {name: float(value) if value else None for name, value in row.items()}

    def _read(self) -> bytes:
        """Return the file up to its last complete row; the content seen last if the file is unchanged."""
        try:
            status = self._path.stat()
            when = (status.st_mtime_ns, status.st_size)
            if when == self._when:
                return self._seen
            content = self._path.read_bytes()
        except FileNotFoundError:
            return b""
        self._when = when
        return content[: content.rfind(b"\n") + 1]
