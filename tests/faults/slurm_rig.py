"""A Slurm of two nodes on this machine, for as long as a test needs it: real daemons, all their state in one folder.

Debian: apt-get install slurm-wlm munge libpmix2 libpmix-dev (the last has the name under which Slurm looks for PMIx).
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.jobs import Job, environment

BATCH_SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "cluster" / "train.sbatch"
NODES = ("n1", "n2")
SECONDS_BETWEEN_TERM_AND_KILL = 20
GRACE_SECONDS = 25
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "scancel", "sinfo")
_NODE_MARK = "SLURM_RIG_NODE"
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/tmp-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
MpiDefault=none
KillWait={kill_wait}
SlurmdTimeout=15
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]},{ports[2]} CPUs=2 RealMemory=8000
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime={grace} State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""


def reason_to_skip():
    """Return why no Slurm can be started here, or None."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        return f"needs a Slurm to start: {', '.join(missing)} not found (apt-get install slurm-wlm munge libpmix-dev)"
    if os.geteuid() != 0:
        return "needs root to start a Slurm"
    return None


class Slurm:
    """A running Slurm, as a context manager; on exit all its processes and jobs are ended."""

    def __init__(self):
        # Munge needs a folder that others can read but not write, which pytest's own are not.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.folder.chmod(0o755)
        self.variables = {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.run("scancel", "--user=root", "--full", "--signal=KILL")
        for file in (*(f"slurmd-{node}.pid" for node in NODES), "slurmctld.pid", "munge/pid"):
            with contextlib.suppress(OSError, ValueError):
                os.kill(int((self.folder / file).read_text()), signal.SIGTERM)
        self._wait(lambda: not self.processes(), 15, strict=False)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self):
        for name in ("munge", "state", *(f"{kind}-{node}" for kind in ("spool", "tmp") for node in NODES)):
            (self.folder / name).mkdir(mode=0o755)
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        (self.folder / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname().partition(".")[0],
                folder=self.folder,
                ports=free_ports(3),
                nodes=",".join(NODES),
                kill_wait=SECONDS_BETWEEN_TERM_AND_KILL,
                grace=GRACE_SECONDS,
            )
        )
        munge = {name: self.folder / "munge" / name for name in ("key-file", "pid-file", "log-file", "seed-file")}
        munge |= {"key-file": key, "pid-file": self.folder / "munge" / "pid", "socket": self.folder / "munge/socket"}
        # --force: the folder lies in /tmp, which munge warns of.
        self._start_daemon("munged", "--force", *(f"--{option}={path}" for option, path in munge.items()))
        self._start_daemon("slurmctld")
        for node in NODES:
            self.start_node(node)

    def start_node(self, node):
        """Start a node's daemon and wait until the node can be used."""
        self._start_daemon("slurmd", "-N", node, **{_NODE_MARK: node})
        self._wait(lambda: self.run("sinfo", "-h", "-n", node, "-p", "low", "-o", "%T").stdout.strip() == "idle", 60)

    def kill_node(self, node):
        """Kill everything that runs on a node, as if its power had gone."""
        mark = f"{_NODE_MARK}={node}\0".encode()
        for _ in range(2):
            for pid in self.processes():
                if _has(pid, mark) or runs_on(pid, node):
                    os.kill(pid, signal.SIGKILL)

    def _start_daemon(self, *command, **variables):
        # Not captured: the daemon would keep the pipe open.
        with open(self.folder / "start.log", "a") as log:
            started = subprocess.run(
                command, env=environment(**self.variables, **variables), stdout=log, stderr=log, timeout=30, check=False
            )
        assert started.returncode == 0, (self.folder / "start.log").read_text()

    def has_pmix(self):
        """Tell whether srun can start ranks that find each other."""
        listed = self.run("srun", "--mpi=list")
        return "pmix" in listed.stdout + listed.stderr

    def run(self, *command, folder=None, timeout=200, **variables):
        """Run a command of Slurm's."""
        done = subprocess.run(
            command,
            cwd=folder or self.folder,
            env={**environment(**self.variables), **variables},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Job(done.returncode, done.stdout, done.stderr)

    def submit(self, folder, *flags, options=(), ranks=2, script=BATCH_SCRIPT, **variables):
        """Submit scripts/cluster/train.sbatch as its head says and return the job."""
        command = [
            "sbatch",
            "--parsable",
            f"--ntasks={ranks}",
            "--nodes=1",
            "--mem-per-cpu=200M",
            *options,
            str(script),
            *flags,
        ]
        submitted = self.run(*command, folder=folder, **variables)
        assert submitted.returncode == 0, submitted.stderr
        return BatchJob(self, submitted.stdout.strip(), Path(folder))

    def processes(self):
        """Return the ids of all live processes of this Slurm, its jobs' included."""
        needle = f"SLURM_CONF={self.folder}/".encode()
        return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _has(pid, needle)]

    def ranks_of(self, job):
        """Return the process ids of a batch job's ranks."""
        needles = f"SLURM_JOB_ID={job.number}\0".encode(), b"PMIX_RANK="
        return [pid for pid in self.processes() if all(_has(pid, needle) for needle in needles)]

    def wait_until_no_rank_is_left(self, job, seconds=10):
        """Wait until all ranks of a job have ended."""
        self._wait(lambda: not self.ranks_of(job), seconds)

    def _wait(self, condition, seconds, strict=True):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                assert not strict, f"waited for {seconds} s: {self.run('sinfo').stdout}"
                return
            time.sleep(0.1)


class BatchJob:
    """A job that was submitted."""

    def __init__(self, slurm, number, folder):
        self._slurm, self.number, self._folder = slurm, number, folder

    def __getitem__(self, field):
        """Return a field of `scontrol show job`, JobState for instance."""
        shown = self._slurm.run("scontrol", "show", "job", "-o", self.number).stdout
        return dict(pair.partition("=")[::2] for pair in shown.split())[field]

    @property
    def log(self):
        """What the job has printed so far, all its starts together."""
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / f"ppo-{self.number}.log").read_text()
        return ""

    def wait_until(self, condition, timeout=200):
        """Wait until a condition holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            state = self["JobState"]
            assert time.monotonic() < deadline, f"waited for {timeout} s, job {self.number} is {state}:\n{self.log}"
            time.sleep(0.3)

    def wait_for(self, *states, timeout=200):
        """Wait until the job is in one of these states, and return it."""
        self.wait_until(lambda: self["JobState"] in states, timeout)
        return self["JobState"]

    def wait_for_restart(self, count, timeout=200):
        """Wait until the job has been requeued so many times, and let it start at once instead of in two minutes."""
        self.wait_until(lambda: int(self["Restarts"]) == count and self["JobState"] in ("PENDING", "RUNNING"), timeout)
        if self["JobState"] == "PENDING":
            # The credential of the last start was revoked just now; one of the same second would be revoked too.
            time.sleep(2)
            self._slurm.run("scontrol", "update", f"JobId={self.number}", "StartTime=now")

    def wait_for_update(self, number, name="CartPole-v1", timeout=200):
        """Wait until the training has come to an update."""
        progress = self._folder / "runs" / name / "progress.csv"
        self.wait_until(lambda: progress.exists() and last_update(progress) >= number, timeout)

    def signal(self, name, *options):
        """Send the job a signal by scancel."""
        sent = self._slurm.run("scancel", f"--signal={name}", *options, self.number)
        assert sent.returncode == 0, sent.stderr


def last_update(progress):
    """Return the last update in a progress.csv that may be being written."""
    whole_lines = progress.read_text().rpartition("\n")[0].splitlines()[1:]
    return int(whole_lines[-1].partition(",")[0]) if whole_lines else 0


def free_ports(count):
    """Return ports that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def runs_on(pid, node):
    """Tell whether a process runs on a node."""
    return _has(pid, f"SLURMD_NODENAME={node}\0".encode())


def _has(pid, needle):
    try:
        dead = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        return not dead and needle in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
