"""Sums of tensors on a device, tried on processors, which support all of it."""

import pytest
import torch

from ppo.collectives import Alone
from ppo.collectives.device_sum import GroupSum, NothingToSum, ThroughProcessors, make_device_sum
from ppo.collectives.gradient_sum import FlatSum
from ppo.config import MachineSettings
from tests.jobs import mpirun

SUM = """
import torch
from ppo.collectives.device_sum import GroupSum, ThroughProcessors
from ppo.collectives.gradient_sum import FlatSum
from ppo.collectives.mpi import connect

comm = connect()
vector, copy = torch.zeros(5), torch.zeros(5)
address = vector.data_ptr()
way = {way}
for _ in range(3):
    vector.copy_(torch.arange(5.0) + 10 * comm.rank)
    way.sum()
    assert vector.tolist() == [2 * i + 10 for i in range(5)], vector
vector[comm.rank] = float("nan")
way.sum()
assert vector.isnan().tolist() == [True, True, False, False, False], vector
assert vector.data_ptr() == address
way.close()
print("rank", comm.rank, "agrees")
"""


@pytest.mark.parametrize(
    "way", ["ThroughProcessors(vector, copy, FlatSum(comm, copy))", "GroupSum(comm, vector, 'gloo', 'localhost')"]
)
def test_two_ranks_have_their_sum_in_place_every_time(way, tmp_path):
    job = mpirun(2, ["-c", SUM.replace("{way}", way)], tmp_path)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("agrees") == 2


class OneOfTwo(Alone):
    size = 2


@pytest.mark.parametrize(
    ("comm", "device", "meeting_host", "expected"),
    [
        (Alone(), "cpu", "", FlatSum),
        (OneOfTwo(), "cpu", "", FlatSum),
        (Alone(), "meta", "", NothingToSum),
        (OneOfTwo(), "meta", "", ThroughProcessors),
        (OneOfTwo(), "meta", "here", GroupSum),
    ],
)
def test_gpus_sum_by_themselves_where_every_rank_has_one(comm, device, meeting_host, expected, monkeypatch):
    backends = []
    monkeypatch.setattr(GroupSum, "__init__", lambda self, *how: backends.append(how[2:]))
    settings = MachineSettings(all_reduce="flat")
    assert (
        type(make_device_sum(settings, comm, torch.zeros(3, device=device), 3, meeting_host=meeting_host)) is expected
    )
    assert backends == ([("nccl", "here")] if expected is GroupSum else [])
