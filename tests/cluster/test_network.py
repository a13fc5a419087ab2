"""A cable of set bandwidth and delay between two hosts has these limits, and training does not change."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from scripts.cluster import two_hosts
from scripts.cluster.measure_network import TIME_SUMS, UNBOUND, measure_cable
from scripts.cluster.two_hosts import Link
from tests.faults.running import ROOT
from tests.faults.two_hosts_rig import TwoHosts
from tests.jobs import PONG, environment, ppo, rows, weights

pytestmark = pytest.mark.slow

# Far above the delays of a busy machine and below the bandwidth of any.
LINK = Link(gigabits_per_second=0.5, delay_milliseconds=4.0)
NAME = "PongNoFrameskip-v4"
SMALL_NETWORK = 677_943


@pytest.fixture(scope="module")
def hosts():
    reason = two_hosts.reason_to_skip(shaped=True)
    if reason:
        pytest.skip(reason)
    with TwoHosts(LINK) as pair:
        yield pair


def milliseconds(num_bytes):
    """The minimum time that a number of bytes takes from one host to the other."""
    return LINK.delay_milliseconds + 8e-6 * num_bytes / LINK.gigabits_per_second


def test_the_cable_has_its_delay_and_its_bandwidth(hosts):
    cable = measure_cable(hosts, pings=20, size=5_000_000)
    assert cable["round_trip_ms"] >= 2 * LINK.delay_milliseconds
    assert 0.1 < cable["gigabits_per_second"] <= LINK.gigabits_per_second


def test_every_way_to_sum_pays_for_the_cable(hosts, tmp_path):
    output = tmp_path / "sums.json"
    flags = ["--networks", "small", "--repeats=2", f"--output={output}"]
    command = [*hosts.mpirun(1, options=UNBOUND), sys.executable, str(TIME_SUMS), *flags]
    variables = environment(PYTHONPATH=str(ROOT), **two_hosts.VARIABLES)
    subprocess.run(command, env=variables, cwd=tmp_path, timeout=120, check=True, capture_output=True)
    result = json.loads(output.read_text())
    assert (result["ranks"], result["hosts"], result["auto"]) == (2, 2, "flat")
    assert result["few_numbers_ms"] >= LINK.delay_milliseconds
    for timing in result["timings"]:
        assert timing["parameters"] == SMALL_NETWORK
        width = 2 if "bfloat16" in timing["way"] else 4
        assert timing["sum_ms"] >= milliseconds(width * SMALL_NETWORK), timing["way"]
        assert timing["step_ms"] > timing["compute_ms"]
    assert len(result["timings"]) == 5


def test_ranks_with_a_slow_cable_between_them_learn_bit_for_bit_what_they_learn_on_one_host(hosts, tmp_path):
    near, far = tmp_path / "near", tmp_path / "far"
    near.mkdir()
    far.mkdir()
    flags = [*PONG, "--env_steps=192"]
    job = ppo(near, *flags, ranks=2)
    assert job.returncode == 0, job.stderr
    with hosts.start(far, *flags, options=UNBOUND) as job:
        assert job.end(within=110)[0] == 0, job.log
    expected, got = weights(near, NAME, 192), weights(far, NAME, 192)
    assert expected.keys() == got.keys()
    assert all(np.array_equal(got[name], tensor) for name, tensor in expected.items())
    gradient_steps = 4
    for row in rows(far / "runs" / NAME / "progress.csv"):
        assert float(row["time/communicate"]) >= gradient_steps * milliseconds(4 * SMALL_NETWORK) / 1e3


@pytest.mark.parametrize("wire", ["float32", "bfloat16"])
def test_hosts_of_two_ranks_sum_in_memory_within_and_over_the_cable_between(hosts, wire, tmp_path):
    near, far = tmp_path / "near", tmp_path / "far"
    near.mkdir()
    far.mkdir()
    flags = [*PONG, "--env_steps=192", "--num_envs=4", "--minibatch_size=32", "--replica_check_interval=1"]
    job = ppo(near, *flags, "--all_reduce=flat", ranks=4)
    assert job.returncode == 0, job.stderr
    with hosts.start(far, *flags, f"--gradient_wire={wire}", ranks=2, options=UNBOUND) as job:
        assert job.end(within=110)[0] == 0, job.log
        assert "gradients: summed in shared memory within hosts, by MPI between hosts" in job.log
    expected, got = weights(near, NAME, 192), weights(far, NAME, 192)
    differences = [np.abs(got[name] - expected[name]).max() for name in expected if name.startswith("model/")]
    assert max(differences) < (1e-5 if wire == "float32" else 5e-3)
    assert wire == "float32" or max(differences) > 0.0


def test_nothing_is_left_of_a_pair_and_its_cable():
    reason = two_hosts.reason_to_skip(shaped=True)
    if reason:
        pytest.skip(reason)
    with two_hosts.TwoHosts(LINK) as pair:
        names, processes = pair.names, subprocess.run(["pgrep", "-f", pair.names[0]], capture_output=True, check=False)
        assert all(name in os.listdir("/run/netns") for name in names)
    assert not any(name in os.listdir("/run/netns") for name in names)
    assert not pair.folder.exists()
    for pid in processes.stdout.split():
        assert not os.path.exists(f"/proc/{int(pid)}")
