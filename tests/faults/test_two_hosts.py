"""Over a network: the same training, and an end in bounded time when a host or the cable is not there."""

import os
import signal
import subprocess
import time

import pytest

from tests.faults import two_hosts_rig
from tests.faults.running import RunningJob, checkpoint_steps, csv_rows, hashes, scratch_left
from tests.faults.two_hosts_rig import ranks_of, seconds_until_no_rank_is_left
from tests.jobs import CARTPOLE

pytestmark = pytest.mark.slow

UPDATES = 120
LAST = 64 * UPDATES
FLAGS = [*CARTPOLE, f"--env_steps={LAST}", "--checkpoint_interval=10"]
WATCHDOG = 8


@pytest.fixture
def hosts():
    reason = two_hosts_rig.reason_to_skip()
    if reason:
        pytest.skip(reason)
    with two_hosts_rig.TwoHosts() as pair:
        yield pair


@pytest.fixture(scope="module")
def on_one_host(tmp_path_factory):
    """Return the folder of an undisturbed run of a number of ranks on one host, made on first use."""
    folders = {}

    def folder_of(ranks):
        if ranks not in folders:
            folders[ranks] = tmp_path_factory.mktemp(f"one-host-{ranks}-ranks-")
            finish(folders[ranks], ranks)
        return folders[ranks]

    return folder_of


def finish(folder, ranks):
    with RunningJob(folder, *FLAGS, ranks=ranks, program="ppo") as job:
        assert job.end(within=200)[0] == 0, job.log
        return job.log


def assert_equal_runs(folder, other):
    assert hashes(folder, LAST) == hashes(other, LAST)
    for file in ("progress.csv", "episodes.csv"):
        assert csv_rows(folder, file) == csv_rows(other, file)
    assert scratch_left(folder) == []


def train_over_the_cable(hosts, folder, ranks):
    folder.mkdir()
    with hosts.start(folder, *FLAGS, ranks=ranks) as job:
        job.wait_for_updates(1, timeout=200)
        over_tcp = hosts.data_connections()
        assert job.end(within=300)[0] == 0, job.log
    assert over_tcp > 0, "the ranks have not used the cable"


def test_a_rank_on_each_of_two_hosts_gives_the_weights_of_two_on_one(hosts, on_one_host, tmp_path, fault_report):
    train_over_the_cable(hosts, tmp_path / "two", 1)
    assert_equal_runs(tmp_path / "two", on_one_host(2))
    fault_report(16, "1 + 1 ranks on two hosts against 2 on one", "same sha256 and logs")


def test_two_ranks_on_each_of_two_hosts_give_the_same_weights_every_time(hosts, tmp_path, fault_report):
    # Each host sums its own first, so the last bits are not those of four ranks on one host.
    for name in ("first", "second"):
        train_over_the_cable(hosts, tmp_path / name, 2)
    assert_equal_runs(tmp_path / "first", tmp_path / "second")
    fault_report(16, "2 + 2 ranks on two hosts, twice", "same sha256 and logs")


def test_an_unknown_host_is_reported_at_once(hosts, tmp_path, fault_report):
    names = (hosts.names[0], "no-such-host.invalid")
    with hosts.start(tmp_path, *FLAGS, hosts=names, agent="ssh") as job:
        code, seconds = job.end(within=15, since=time.time())
        assert code != 0
        assert "Could not resolve hostname no-such-host.invalid" in job.log
        assert "A daemon failed to report back" in job.log
    assert not (tmp_path / "checkpoints").exists()
    fault_report(16, "mpirun --host with an unknown host", f"exit code {code} after {seconds:.1f} s, host named")


def test_a_host_that_does_not_answer_is_reported_when_ssh_gives_up(hosts, tmp_path, fault_report):
    hosts.drop_new_connections(hosts.names[1])
    with hosts.start(tmp_path, *FLAGS, agent="ssh -o ConnectTimeout=3") as job:
        code, seconds = job.end(within=3 + 15, since=time.time())
        assert code != 0
        assert f"connect to host {hosts.names[1]} port 22: Connection timed out" in job.log
    assert not (tmp_path / "checkpoints").exists()
    fault_report(16, "host drops SYN; ssh -o ConnectTimeout=3", f"exit code {code} after {seconds:.1f} s, host named")


def test_a_daemon_that_cannot_call_back_ends_under_a_timeout(hosts, tmp_path, fault_report):
    """Left alone, mpirun waits for it for ever, and SIGTERM does not move it."""
    hosts.drop_new_connections(hosts.names[0])
    with hosts.start(tmp_path, *FLAGS, before=["timeout", "-k", "5", "10"]) as job:
        code = job.process.wait(timeout=10 + 5 + 15)
        seconds = time.time() - job.started
        assert code != 0
        assert ranks_of(job) == []
    assert not (tmp_path / "checkpoints").exists()
    fault_report(
        16, "firewall between a daemon and mpirun, timeout -k 5 10", f"ended after {seconds:.1f} s, no rank ever ran"
    )


@pytest.mark.parametrize(
    ("fault", "did", "says"),
    [
        ("cut", "link down in the middle of a run", "rank 1 on {1} has been silent for"),
        ("drop_data", "firewall drops what ranks send by MPI", "all ranks wait for each other"),
    ],
    ids=["cut", "drop_data"],
)
def test_a_network_that_fails_ends_all_ranks_and_the_run_continues(
    fault, did, says, hosts, on_one_host, tmp_path, fault_report
):
    with hosts.start(tmp_path, *FLAGS, f"--watchdog_seconds={WATCHDOG}") as job:
        job.wait_for_updates(25, timeout=200)
        getattr(hosts, fault)()
        seconds = seconds_until_no_rank_is_left(job, within=WATCHDOG + 15)
        assert says.format(*hosts.names) in job.log
        hangs = False
        try:
            assert job.process.wait(timeout=5) != 0
        except subprocess.TimeoutExpired:
            # It waits many minutes for its daemon behind the cut.
            hangs = True
            os.kill(job.process.pid, signal.SIGKILL)
            job.process.wait(timeout=5)
            time.sleep(5)
        assert ranks_of(job) == []
    assert 0 < checkpoint_steps(tmp_path)[-1] < LAST
    assert scratch_left(tmp_path) == []
    log = finish(tmp_path, ranks=2)
    assert "resuming CartPole-v1 at" in log
    assert_equal_runs(tmp_path, on_one_host(2))
    mpirun = "mpirun had to be killed" if hangs else "mpirun ended too"
    fault_report(
        16, did, f"no rank left after {seconds:.1f} s (watchdog: {WATCHDOG} s), {mpirun}; resumed to the same sha256"
    )
