"""Jobs to inject faults into: started under a real mpirun, with access to every process, and always cleaned up."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from tests.jobs import CARTPOLE, environment, rows

MPIRUN = str(Path(sys.executable).with_name("mpirun"))
ROOT = Path(__file__).parent.parent.parent
# Weights must not depend on where a run ends, or it could not be compared with one that ends later.
STEADY = ["--learning_rate_schedule=constant"]
ENDLESS = "--env_steps=100000000"


class RunningJob:
    """A job in a folder, as a context manager; on exit all its processes are ended."""

    def __init__(self, folder, *flags, ranks=2, fault=None, program="tests.faults.faulty", launcher=None, **variables):
        self.folder, self.token = Path(folder), uuid.uuid4().hex
        self.log_path = self.folder / f"log-{self.token}"
        flags = flags or (*CARTPOLE, *STEADY, ENDLESS)
        command = [sys.executable, "-m", program, *flags] if program else [*flags]
        if launcher is None:
            launcher = [MPIRUN, "-np", str(ranks)] if ranks else []
        variables = {"PPO_TEST_JOB": self.token, "PYTHONPATH": str(ROOT), **variables}
        if fault:
            variables["PPO_FAULT"] = fault
        self.started = time.time()
        with open(self.log_path, "w") as log:
            self.process = subprocess.Popen(
                [*launcher, *command],
                cwd=folder,
                env=environment(**variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for _ in range(3):
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self.process.wait(timeout=10)

    @property
    def log(self):
        """Everything the job has printed so far."""
        return self.log_path.read_text(errors="replace")

    def processes(self):
        """Return the ids of all live processes of the job, the launcher included."""
        return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if self._owns(pid)]

    def rank(self, number):
        """Return the process id of a rank."""
        for pid in self.processes():
            of_rank = f"OMPI_COMM_WORLD_RANK={number}".encode() in variables_of(pid)
            if of_rank and b"ppo.envs.worker" not in command_of(pid):
                return pid
        raise AssertionError(f"rank {number} does not run:\n{self.log}")

    def wait_for_updates(self, number, timeout=90, name="CartPole-v1"):
        """Wait until so many updates are in progress.csv."""
        progress = self.folder / f"runs/{name}/progress.csv"
        self.wait_until(lambda: progress.exists() and len(progress.read_text().splitlines()) > number, timeout)

    def wait_until(self, condition, timeout=90):
        """Wait until a condition holds while the job runs."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"the job has ended ({self.process.returncode}):\n{self.log}"
            assert time.monotonic() < deadline, f"waited for {timeout} s:\n{self.log}"
            time.sleep(0.02)

    def end(self, within, since=None):
        """Wait for the job's own end and check that nothing of it is left; return the exit code and the seconds."""
        since = time.time() if since is None else since
        code = self.process.wait(timeout=max(1.0, since + within + 10 - time.time()))
        seconds = time.time() - since
        assert seconds <= within, f"ended after {seconds:.1f} s, not {within}:\n{self.log}"
        deadline = time.monotonic() + 2
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self.processes() == [], f"processes are left:\n{self.log}"
        return code, seconds

    def end_after_fault(self, within):
        """Wait for the fault to happen, and then for the job's end."""
        happened = self.folder / "fault-at"
        self.wait_until(lambda: happened.exists() and happened.read_text())
        return self.end(within, since=float(happened.read_text()))

    def _owns(self, pid):
        return self.token.encode() in variables_of(pid) and not is_zombie(pid)


def command_of(pid):
    """Return the command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def variables_of(pid):
    """Return the environment of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def is_zombie(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def run_to_end(folder, *flags, ranks=2, code=0, within=90, fault=None):
    """Run a job that ends by itself and return what it printed."""
    with RunningJob(folder, *flags, ranks=ranks, fault=fault) as job:
        assert job.end(within)[0] == code, job.log
        return job.log


def checkpoint_steps(folder, name="CartPole-v1"):
    """Return the steps of the checkpoints in a folder, ascending."""
    return sorted(
        int(p.name[5:]) for p in (Path(folder) / "checkpoints" / name).glob("step_*") if p.name[5:].isdecimal()
    )


def hashes(folder, steps, name="CartPole-v1"):
    """Return the sha256 of a checkpoint's tensor files."""
    step = Path(folder) / "checkpoints" / name / f"step_{steps:012d}"
    return {
        file: hashlib.sha256((step / f"{file}.safetensors").read_bytes()).hexdigest() for file in ("model", "training")
    }


def scratch_left(folder):
    """Return the remains of an interrupted save."""
    return [str(p) for p in Path(folder).rglob("*.tmp")]


def csv_rows(folder, file, name="CartPole-v1"):
    """Return a log's rows without the columns of times."""
    return rows(Path(folder) / "runs" / name / file, ignore=("time/",))
