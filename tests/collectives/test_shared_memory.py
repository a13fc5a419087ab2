import os

import numpy as np
import pytest

from ppo.collectives import Alone
from ppo.collectives.shared_memory import share_vectors
from tests.jobs import mpirun

SHARING = """
import os
import numpy as np
from ppo.collectives.mpi import connect
from ppo.collectives.shared_memory import share_vectors

comm = connect()
before = len(os.listdir("/proc/self/fd"))
vectors = share_vectors(comm, comm.size, 100_000)
assert vectors.shape == (comm.size, 100_000) and not vectors.any()
comm.barrier()
vectors[comm.rank] = comm.rank + 1
comm.barrier()
assert (vectors == np.arange(1, comm.size + 1)[:, None]).all()
assert len(os.listdir("/proc/self/fd")) <= before + 1, "descriptors are left open"
print("rank", comm.rank, "sees all")
"""

REFUSED_TO_ONE = """
import os
from ppo.collectives.mpi import connect
from ppo.collectives import shared_memory

comm = connect()
real = os.open
for refused in (comm.size - 1, 0):
    if comm.rank == refused:
        os.open = lambda *arguments: (_ for _ in ()).throw(PermissionError("not yours"))
    assert shared_memory.share_vectors(comm, 2, 10) is None
    os.open = real
    assert comm.broadcast(comm.rank + 7) == 7, "the ranks are out of step"
print("rank", comm.rank, "has none")
"""


@pytest.mark.parametrize(("program", "says"), [(SHARING, "sees all"), (REFUSED_TO_ONE, "has none")])
def test_ranks_see_one_memory_or_none_has_it(program, says, tmp_path):
    job = mpirun(3, ["-c", program], tmp_path)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count(says) == 3


def test_another_processes_memory_is_never_taken_for_the_one_that_is_meant(monkeypatch):
    inodes = iter(range(100))
    monkeypatch.setattr("ppo.collectives.shared_memory._identity", lambda descriptor: (0, next(inodes)))
    assert share_vectors(Alone(), 2, 10) is None


@pytest.mark.parametrize("function", ["memfd_create", "posix_fallocate"])
def test_a_machine_without_such_memory_or_without_room_has_none(function, monkeypatch):
    def refuse(*arguments):
        raise OSError("no space left")

    open_before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, function, refuse)
    assert share_vectors(Alone(), 2, 10) is None
    assert os.listdir("/proc/self/fd") == open_before
    monkeypatch.delattr(os, "memfd_create")
    assert share_vectors(Alone(), 2, 10) is None


def test_the_memory_is_float32_and_writable():
    vectors = share_vectors(Alone(), 2, 10)
    vectors[1, 3] = 1.5
    assert vectors.dtype == np.float32 and vectors.sum() == 1.5
