"""Locks beside the checkpoint and log folders of a model, so that only one run at a time writes it.

    <checkpoint_dir>/.<model_name>.lock         locked with flock while the process lives
    <checkpoint_dir>/.<model_name>.lock.json    the holder, for messages to other runs and for other machines
    <run_dir>/.<model_name>.lock, .lock.json    the same

The operating system releases the flock however the process ends, kill -9 included; the record then remains and is taken
over. Only the record counts if the file system has no flock, and for other machines: some shared file systems enforce
flock on one machine only. A record is JSON; at most 64 kB of it are read, and nothing in it is executed.
"""

import contextlib
import dataclasses
import errno
import json
import os
import re
import shlex
import socket
import stat
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import filelock

from ppo.outputs.untrusted import DamagedCheckpointError, open_regular
from ppo.settings import Refusal, printable

_MAX_RECORD_BYTES = 65_536
_SIGNATURE = "owner.json"
_MAX_COMMAND_LENGTH = 500
_MAX_DESCRIPTION_LENGTH = 700
# A new holder may not have written its record yet; an ending one may just have removed it.
_SECONDS_TO_SETTLE = 1.0
_SECONDS_BETWEEN_TRIES = 0.02
_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)
_LOCAL_FILE_SYSTEMS = ("btrfs", "ext2", "ext3", "ext4", "f2fs", "ntfs3", "overlay", "tmpfs", "vfat", "xfs", "zfs")
_OTHER_NAME = "wait until it has ended, stop it, or choose another --model_name"


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, as described in its own record."""

    host: str
    boot_id: str | None
    """The same in all containers of a machine, whatever their host names, until a reboot; Linux only."""
    pid_namespace: str | None
    """The namespace in which `pid` is valid; Linux only."""
    pid: int
    start_ticks: int | None
    """Start of the process in clock ticks since boot, since process ids are reused; Linux only."""
    started: str
    slurm_job_id: str | None
    command: str

    def __str__(self) -> str:
        """Return a printable description of bounded length."""
        job = f" (Slurm job {self.slurm_job_id})" if self.slurm_job_id else ""
        text = f"process {self.pid} on {self.host}{job}, started {self.started}: {self.command}"
        return printable(text[:_MAX_DESCRIPTION_LENGTH])

    def shares_machine_with(self, other: "Holder") -> bool:
        """Return whether both are on the same machine, possibly across a reboot."""
        return self.host == other.host or (self.boot_id is not None and self.boot_id == other.boot_id)

    def is_alive(self, me: "Holder") -> bool | None:
        """Return whether the process still runs, or None if that cannot be determined from here."""
        if not self.shares_machine_with(me):
            return None
        if self.boot_id != me.boot_id:
            return None if None in (self.boot_id, me.boot_id) else False
        if self.pid_namespace != me.pid_namespace:
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it exists, but belongs to another user
        now = _start_ticks(self.pid)
        return now is None or self.start_ticks is None or now == self.start_ticks


class ModelLock:
    """The lock of one model; every rank may make it, rank 0 acquires and holds it."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Prepare to lock a model's folders, such as <checkpoint_dir>/<model_name>, whose parents must exist.

        The lock files lie beside the folders because --fresh renames the folders. All spellings of a folder, and
        symbolic links to it, share one lock.
        """
        spelled = {os.path.join(os.path.realpath(folder.parent), folder.name): folder for folder in folders}
        linked = {os.path.realpath(folder): folder for folder in folders if os.path.exists(folder)}
        # If no file can be created beside a link's target, only runs that use the link exclude each other.
        linked = {real: shown for real, shown in linked.items() if os.access(os.path.dirname(real), os.W_OK)}
        # All processes acquire the locks in this order.
        self._locks = [_FolderLock(real, shown) for real, shown in sorted({**linked, **spelled}.items())]

    def acquire(self, *, take_over: bool) -> list[str]:
        """Acquire the lock until `release`, or until this process ends, and return the messages.

        Args:
            take_over: override an unreadable record, or one of a process that cannot be checked from here.

        Raises:
            Refusal: another process holds the lock, or may hold it; nothing stays locked or is left behind.
        """
        me = _this_process()
        notes: list[str] = []
        try:
            for lock in self._locks:
                notes += lock.acquire(me, take_over=take_over)
        except BaseException:
            self.release()
            raise
        return list(dict.fromkeys(notes))

    def release(self) -> None:
        """Release what is held and remove the lock files; never raises."""
        for lock in reversed(self._locks):
            lock.release()


def sign(folder: Path) -> None:
    """Record this process as the owner of a scratch folder.

    Raises:
        OSError: the record could not be written.
    """
    _create(folder / _SIGNATURE, json.dumps(dataclasses.asdict(_this_process())).encode())


def is_abandoned(folder: Path) -> bool:
    """Return whether the process that signed a scratch folder has certainly ended; False if it is unsigned."""
    with contextlib.suppress(DamagedCheckpointError), open_regular(folder / _SIGNATURE, _MAX_RECORD_BYTES) as (file, _):
        owner = _parse(file.read())
        return owner is not None and owner.is_alive(_this_process()) is False
    return False


class _FolderLock:
    """The lock of one folder: `flock` if the file system supports it, and a record of the holder."""

    def __init__(self, folder: str, shown: Path) -> None:
        parent, name = os.path.split(folder)
        self._parent, self._shown = parent, shown
        self._path = os.path.join(parent, f".{name}.lock")
        self._record_path = Path(f"{self._path}.json")
        self._flock: filelock.BaseFileLock | None = None
        self._identity: os.stat_result | None = None
        self._was_there = False
        self._me: Holder | None = None
        """This process, once it holds the lock."""

    def acquire(self, me: Holder, *, take_over: bool) -> list[str]:
        """Acquire the lock and return the messages.

        Raises:
            Refusal: the lock cannot be acquired.
        """
        self._was_there = os.path.lexists(self._path)
        deadline = time.monotonic() + _SECONDS_TO_SETTLE
        try:
            while True:
                free = self._lock()
                before = self._read()
                settled = isinstance(before, Holder) and before.is_alive(me) is not False
                if not free and (settled or time.monotonic() > deadline):
                    raise Refusal(
                        f"another run is already writing to {self._shown}: {_describe(before)}; {_OTHER_NAME}"
                    )
                if free:
                    note = self._judge(before, me, take_over=take_over)
                    if self._write(before, me):
                        self._me = me
                        return [note] if note else []
                    if time.monotonic() > deadline:
                        raise Refusal(f"{self._shown} cannot be locked: {self._record_path} is in the way")
                time.sleep(_SECONDS_BETWEEN_TRIES)
        except OSError as error:
            raise Refusal(f"{self._shown} cannot be locked: {error.strerror}: {self._path}") from error

    def release(self) -> None:
        with contextlib.suppress(OSError):
            # Another process may have taken the record over.
            if self._me is not None and self._read() == self._me:
                self._record_path.unlink()
        ours = self._me is not None or not self._was_there
        self._me = None
        if self._flock is None:
            return
        with contextlib.suppress(OSError):
            # No race: the file is still locked, and a process that opened it earlier finds it unlinked and retries.
            if ours and self._identity and os.path.samestat(os.stat(self._path), self._identity):
                os.unlink(self._path)
        with contextlib.suppress(OSError):
            self._flock.release()
        self._flock = self._identity = None

    def _lock(self) -> bool:
        """Try to acquire the flock; return False only if another process holds it."""
        if self._flock is not None:
            return True
        # No fallback to filelock's soft lock, which is a file: the record already serves as one.
        flock = filelock.FileLock(self._path, fallback_to_soft=False)
        try:
            flock.acquire(timeout=0)
        except filelock.Timeout:
            return False
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_FLOCK:
                raise
            if not self._was_there:
                Path(self._path).unlink(missing_ok=True)
            return True
        self._flock = flock
        self._identity = os.stat(self._path)
        return True

    def _read(self) -> "Holder | _Damaged | None":
        """Return the recorded holder, or None if there is no record."""
        try:
            # A named pipe in place of the record must not block.
            descriptor = os.open(self._record_path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return _Damaged(b"")
            content = os.read(descriptor, _MAX_RECORD_BYTES + 1)
        finally:
            os.close(descriptor)
        return _parse(content) or _Damaged(content)

    def _judge(self, before: "Holder | _Damaged | None", me: Holder, *, take_over: bool) -> str | None:
        """Decide whether this process may replace the recorded holder; return a note if it takes over.

        Raises:
            Refusal: it may not.
        """
        if before is None:
            return None
        locked = self._flock is not None
        by_force = f"took over the lock of {_describe(before)} because of --take_over_lock"
        if isinstance(before, _Damaged):
            if locked and _is_local(self._parent):
                return f"took over the lock of {_describe(before)}, which has ended"
            if take_over:
                return by_force
            raise Refusal(
                f"{self._shown} is locked by {_describe(before)}: {self._record_path}; "
                "if no other run writes there, add --take_over_lock"
            )
        if dataclasses.replace(me, started=before.started, slurm_job_id=before.slurm_job_id) == before:
            return None  # this process, which could not remove its record
        alive = before.is_alive(me)
        if alive:
            raise Refusal(f"another run is already writing to {self._shown}: {before}; {_OTHER_NAME}")
        if alive is False or (locked and before.shares_machine_with(me)):
            return f"took over the lock of {before}, which has ended"
        if before.slurm_job_id is not None and before.slurm_job_id == me.slurm_job_id:
            return f"took over the lock left by an earlier start of this Slurm job: {before}"
        if take_over:
            return by_force
        raise Refusal(
            f"{self._shown} is locked by {before}, which cannot be checked from {me.host}; {_OTHER_NAME}; "
            "if you are sure it has ended, add --take_over_lock"
        )

    def _write(self, before: "Holder | _Damaged | None", me: Holder) -> bool:
        """Record this process as the holder; return False if the record has changed from `before` meanwhile."""
        content = json.dumps(dataclasses.asdict(me), indent=1).encode() + b"\n"
        if self._flock is not None:
            self._replace_record(content)
            return True
        try:
            if before is None:
                _create(self._record_path, content)
                return True
            # Without flock, only the process that creates this file may take the record over.
            taking = Path(f"{self._record_path}.taking")
            _create(taking, b"")
        except FileExistsError as error:
            if before is None:
                return False
            raise Refusal(
                f"the lock of {self._shown} is being taken over by another process; "
                f"if no other run was started just now, delete {error.filename}"
            ) from error
        try:
            if self._read() != before:
                return False
            self._replace_record(content)
            return True
        finally:
            taking.unlink(missing_ok=True)

    def _replace_record(self, content: bytes) -> None:
        scratch = Path(f"{self._record_path}.tmp")
        scratch.unlink(missing_ok=True)
        try:
            _create(scratch, content)
            os.replace(scratch, self._record_path)
        finally:
            scratch.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Damaged:
    """A record that cannot be read."""

    content: bytes


def _describe(before: Holder | _Damaged | None) -> str:
    return str(before) if isinstance(before, Holder) else "a process that left no readable record"


def _this_process() -> Holder:
    pid_namespace = None
    with contextlib.suppress(OSError):
        pid_namespace = os.readlink("/proc/self/ns/pid")
    boot_id = None
    with contextlib.suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return Holder(
        host=socket.gethostname(),
        boot_id=boot_id,
        pid_namespace=pid_namespace,
        pid=os.getpid(),
        start_ticks=_start_ticks(os.getpid()),
        started=datetime.now().astimezone().isoformat(timespec="seconds"),
        slurm_job_id=os.environ.get("SLURM_JOB_ID"),
        command=shlex.join(sys.orig_argv)[:_MAX_COMMAND_LENGTH],
    )


def _start_ticks(pid: int) -> int | None:
    """Return a process's start in clock ticks, -1 if it is dead but not yet reaped, None if unknown."""
    try:
        # The name, in parentheses, may hold anything; the state is the first field after it, the start time the 20th.
        values = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return -1 if values[0] in "ZX" else int(values[19])
    except (OSError, ValueError, IndexError):
        return None


def _parse(content: bytes) -> Holder | None:
    """Return the holder that a record describes, or None if the record is invalid."""
    if len(content) > _MAX_RECORD_BYTES:
        return None
    try:
        data = json.loads(content)
        holder = Holder(**{field.name: data[field.name] for field in dataclasses.fields(Holder)})
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    texts = (holder.host, holder.started, holder.command)
    may_lack = (holder.boot_id, holder.pid_namespace, holder.slurm_job_id)
    whole = (
        all(isinstance(text, str) for text in texts)
        and all(text is None or isinstance(text, str) for text in may_lack)
        and type(holder.pid) is int
        and 0 < holder.pid < 2**31
        and (holder.start_ticks is None or type(holder.start_ticks) is int)
    )
    return holder if whole else None


def _is_local(folder: str) -> bool:
    """Return whether a folder is certainly on a local disk, where no other machine can hold a lock."""
    types = {}
    try:
        with open("/proc/self/mountinfo", errors="surrogateescape") as file:
            for line in file:
                mount, _, rest = line.partition(" - ")
                point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), mount.split()[4])
                types[point] = rest.split()[0]
    except (OSError, IndexError):
        return False
    for point in map(str, (Path(folder), *Path(folder).parents)):
        if point in types:
            return types[point] in _LOCAL_FILE_SYSTEMS
    return False


def _create(path: Path, content: bytes) -> None:
    """Create a file and flush it to disk.

    Raises:
        FileExistsError: the file exists.
        OSError: the file could not be written; it is not left behind.
    """
    with open(path, "xb") as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            path.unlink(missing_ok=True)
            raise
