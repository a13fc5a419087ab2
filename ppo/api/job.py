"""A training that runs as a job of its own, followed through the files that it writes."""

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
"""A row of progress.csv; None where a column had no number."""
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
        # A session of its own: a Ctrl-C here is not one there.
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output, start_new_session=True
        )

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    @property
    def output(self) -> str:
        """All that it has printed so far."""
        if self._output.closed:
            return self._printed
        descriptor = self._output.fileno()
        # Without moving the position, which is also where the job writes.
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="replace")

    def updates(self) -> list[Row]:
        """Return the rows of progress.csv that are new since the last call.

        After a restart of the job the updates since its checkpoint are made again, and their rows come again.
        """
        return list(self._log.new_rows())

    def wait(self, seconds: float | None = None) -> int:
        """Follow the job to its end, call `on_update` with each update, and return the exit code.

        Args:
            seconds: how long to wait at most; None: as long as it takes.

        Returns:
            0 if it is done; 75 if it has saved and left on a signal, as after `stop`; 130 after a Ctrl-C to the job.

        Raises:
            TimeoutError: it has not ended in time, and goes on.
            Refusal: it was refused; nothing was changed.
            RuntimeError: it failed; the message has what it printed last.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            has_ended = not self.is_running  # asked first: what it wrote before its end is all there then
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
        self._process.send_signal(signal.SIGUSR1)  # nothing happens if it has ended

    def _result(self) -> int:
        if not self._output.closed:
            self._printed = self.output
            self._output.close()
        code = self._process.returncode
        if code == -signal.SIGUSR1 and self._was_stopped:  # it came before the job listened: there is nothing to save
            code = PREEMPTED
        if code in (0, PREEMPTED, INTERRUPTED):
            return code
        lines = self.output.strip().splitlines()
        if code == REFUSED:
            raise Refusal(next((line.removeprefix("ppo: ") for line in lines if line.startswith("ppo: ")), "refused"))
        said = "\n".join(lines[-_LAST_LINES:])
        raise RuntimeError(f"the job failed with exit code {code}; it said last:\n{said}")


class _Log:
    """The rows of a CSV file that grows, and that a resumed run may first cut back to its checkpoint."""

    def __init__(self, path: Path) -> None:
        """Take what is there for seen."""
        self._path = path
        self._when: tuple[int, int] | None = None
        self._seen = b""
        self._seen = self._read()

    def new_rows(self) -> Iterator[Row]:
        """Yield the whole rows that are there and were not when the last call looked."""
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
        """Return the file up to the end of its last whole row; what was seen if nothing has been written since."""
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
