import numpy as np
import pytest
import torch

from ppo.algorithm.flat_parameters import FlatParameters
from ppo.collectives import Alone, Hosts
from ppo.collectives.gradient_sum import (
    BFloat16Sum,
    FlatSum,
    HierarchicalSum,
    SharedMemorySum,
    SharedVectors,
    chosen_all_reduce,
    make_gradient_sum,
    shard_of,
    share_memory,
)
from ppo.collectives.mpi import MPIRanks
from ppo.config import MachineSettings
from tests.jobs import CARTPOLE, mpirun, ppo, weights

CONTRACT = """
import threading, time
import numpy as np
import torch
from ppo.collectives.gradient_sum import BFloat16Sum, FlatSum, HierarchicalSum, SharedMemorySum
from ppo.algorithm.flat_parameters import FlatParameters
from ppo.collectives import Alone, Hosts
from ppo.collectives.shared_memory import share_vectors

NUM_SUMS = 5

class Case:
    # A network whose gradient is there after `run`, the same for every way to sum it.
    def __init__(self, rank, scale=1.0, buffer=None):
        torch.manual_seed(7)
        self.model = torch.nn.Sequential(torch.nn.Linear(19, 30), torch.nn.Tanh(), torch.nn.Linear(30, 3))
        self.flat = FlatParameters(self.model, NUM_SUMS, buffer)
        self.inputs = torch.randn(2, 11, 19, generator=torch.Generator().manual_seed(rank)) * scale
        self.sums = torch.randn(NUM_SUMS, generator=torch.Generator().manual_seed(100 + rank))

    def run(self, way):
        # Two passes add to one gradient, as for a minibatch too large for one.
        self.flat.start_gradient()
        for part in self.inputs:
            self.model(part).square().sum().backward()
        self.flat.sums.add_(self.sums)
        summed = way.sum()
        self.flat.check_gradient()
        return summed.numpy().copy()

def two_hosts(comm):
    # Ranks 0 and 1 on one host, the others on a second.
    if comm.size == 1:
        return comm.split_by_host()
    communicator = comm._communicator
    within = type(comm)(communicator.Split(min(comm.rank // 2, 1)), comm)
    leaders = communicator.Split(0 if within.rank == 0 else 1)
    return Hosts(2 if comm.size > 2 else 1, within, type(comm)(leaders, comm) if within.rank == 0 else None)

def ways(comm, hosts, case):
    flat = case.flat
    between = hosts.between
    return {
        "flat": FlatSum(comm, flat.buffer),
        "hierarchical": HierarchicalSum(hosts, flat.buffer, between and FlatSum(between, flat.buffer)),
        "bfloat16": BFloat16Sum(comm, flat.buffer, flat.count),
        "both": HierarchicalSum(hosts, flat.buffer, between and BFloat16Sum(between, flat.buffer, flat.count)),
    }

def equal_on_all_ranks(comm, array):
    everyone = comm.gather(array.tobytes())
    return comm.broadcast(comm.rank == 0 and all(one == everyone[0] for one in everyone))

def check(comm):
    hosts = two_hosts(comm)
    single = []
    for rank in range(comm.size):
        case = Case(rank)
        single.append(case.run(FlatSum(Alone(), case.flat.buffer)))
    count = case.flat.count
    exact = np.sum([one.astype(np.float64) for one in single], 0)
    magnitude = np.sum([np.abs(one) for one in single], 0)
    flat = single[comm.rank].copy()
    comm.sum_in_place(flat)
    def shared(hosts, wire):
        *gradients, total = torch.from_numpy(share_vectors(hosts.within, hosts.within.size + 1, len(exact)))
        between = hosts.between and wire(hosts.between, total)
        return gradients[hosts.within.rank], SharedMemorySum(hosts, gradients, total, between)

    in_memory = {
        "shared memory": shared(Hosts(1, comm, None), None),
        "shared memory, two hosts": shared(hosts, FlatSum),
        "shared memory, bfloat16": shared(hosts, lambda group, total: BFloat16Sum(group, total, count)),
    }
    for name in (*ways(comm, hosts, Case(0)), *in_memory):
        if name == "shared memory, bfloat16" and hosts.count == 1:
            continue  # there is no wire
        def case_and_way():
            if name in in_memory:
                buffer, way = in_memory[name]
                return Case(comm.rank, buffer=buffer), way
            case = Case(comm.rank)
            return case, ways(comm, hosts, case)[name]
        for attempt in range(2):
            case, way = case_and_way()
            got = case.run(way)
            assert equal_on_all_ranks(comm, got), name
            error = np.abs(got - exact)
            if name in ("bfloat16", "both", "shared memory, bfloat16"):
                assert (error[:count] <= (2**-7 + 2**-15) * magnitude[:count]).all(), name
                assert (error[:count] > 2**-12 * magnitude[:count]).any(), f"{name}: nothing was rounded"
            else:
                assert (error <= 1e-6 * magnitude).all(), name
            assert (error[count:] <= 1e-6 * magnitude[count:]).all(), name
            if comm.size <= 2:
                assert (got[count:] == flat[count:]).all(), name
                assert name in ("bfloat16", "both") or (got == flat).all(), name
        case, way = case_and_way()
        if comm.rank == comm.size - 1:
            case.inputs[1, 0, 0] = np.nan
        assert not np.isfinite(case.run(way)[:count]).all(), name
        waits_for_the_last(comm, way, case, name)

def waits_for_the_last(comm, way, case, name):
    if comm.size == 1:
        return
    seen, over = [], threading.Event()

    def look():
        while not over.wait(0.01):
            seen.append(comm.waiting)

    comm.barrier()
    thread = threading.Thread(target=look)
    if comm.rank == 0:
        thread.start()
    if comm.rank == comm.size - 1:
        time.sleep(0.3)
    summed = case.run(way)
    over.set()
    assert equal_on_all_ranks(comm, np.nan_to_num(summed)), f"{name}: a rank did not wait for the last"
    if comm.rank == 0:
        thread.join()
        assert sum(seen) >= 5, f"{name}: the watchdog has not seen that the rank waits"
    assert not comm.waiting
"""

LATE = """
import time
import torch
from ppo.collectives.gradient_sum import SharedMemorySum
from ppo.collectives import Hosts
from ppo.collectives.mpi import connect
from ppo.collectives.shared_memory import share_vectors

# A rank that adds late must still find the others' gradients, which they change as soon as they have the sum.
comm = connect()
vectors = torch.from_numpy(share_vectors(comm, comm.size + 1, 16 * comm.size + 9))
way, real = SharedMemorySum(Hosts(1, comm, None), vectors[:-1], vectors[-1], None), torch.add
for late in range(comm.size):
    def add(*arguments, **named):
        if comm.rank == late:
            time.sleep(0.2)
        return real(*arguments, **named)
    torch.add = add
    vectors[comm.rank] = comm.rank + 1.0
    summed = way.sum()
    vectors[comm.rank] = -1000.0
    assert (summed == sum(range(1, comm.size + 1))).all(), summed
    comm.barrier()
print("rank", comm.rank, "of", comm.size, "agrees")
"""

RUN_IT = """
from ppo.collectives.abort_guard import AbortGuard
from ppo.collectives.mpi import connect
comm = connect()
with AbortGuard(comm):
    check(comm)
    print("rank", comm.rank, "of", comm.size, "agrees")
"""


def contract():
    scope = {}
    exec(CONTRACT, scope)
    return scope["check"]


def test_all_ways_give_the_gradient_of_the_only_rank():
    contract()(Alone())


def test_all_ways_give_the_gradient_on_a_one_rank_communicator():
    from mpi4py import MPI

    contract()(MPIRanks(MPI.COMM_SELF))


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_all_ways_give_the_flat_sum_on_all_ranks(ranks, tmp_path):
    job = mpirun(ranks, ["-c", f"{CONTRACT}\n{RUN_IT}"], tmp_path)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count(f"of {ranks} agrees") == ranks


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_no_gradient_is_changed_before_all_ranks_have_added_it(ranks, tmp_path):
    job = mpirun(ranks, ["-c", LATE], tmp_path)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count(f"of {ranks} agrees") == ranks


def network():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Tanh(), torch.nn.Linear(4, 6))
    flat = FlatParameters(model, num_sums=2)
    return flat


def test_the_settings_choose_the_way():
    class Ranks(Alone):
        size = 4

    def way(**settings):
        flat = network()
        return make_gradient_sum(MachineSettings(**settings), Ranks(), flat.buffer, flat.count)

    assert isinstance(way(), FlatSum)  # no memory to share
    shared = SharedVectors(
        Hosts(1, Ranks(), None), torch.zeros(4, 68), torch.zeros(68), torch.zeros(66), torch.zeros(2, 66)
    )
    assert isinstance(make_gradient_sum(MachineSettings(), Ranks(), shared.gradients[0], 66, shared), SharedMemorySum)
    assert isinstance(way(all_reduce="hierarchical"), HierarchicalSum)
    assert isinstance(way(gradient_wire="bfloat16"), BFloat16Sum)


def test_one_rank_sums_nothing_and_rounds_nothing():
    flat = network()
    settings = MachineSettings(all_reduce="hierarchical", gradient_wire="bfloat16")
    assert isinstance(make_gradient_sum(settings, Alone(), flat.buffer, flat.count), FlatSum)


@pytest.mark.parametrize(
    ("ranks", "hosts", "expected"),
    [
        (2, 1, "shared"),
        (64, 1, "shared"),
        (2, 2, "flat"),
        (16, 16, "flat"),
        (4, 2, "hierarchical"),
        (3, 2, "hierarchical"),
    ],
)
def test_ranks_of_one_host_share_memory_and_ranks_that_share_hosts_are_summed_host_by_host(ranks, hosts, expected):
    assert chosen_all_reduce(ranks, hosts) == expected


@pytest.fixture(scope="module")
def flat_run(tmp_path_factory):
    """The weights of a run of two ranks with the default way."""
    folder = tmp_path_factory.mktemp("flat")
    assert train(folder).stdout.count("gradients: summed in shared memory") == 1
    return weights(folder, "CartPole-v1", 256)


def train(folder, *flags):
    job = ppo(folder, *CARTPOLE, "--env_steps=256", "--replica_check_interval=1", *flags, ranks=2)
    assert job.returncode == 0, job.stderr
    return job


@pytest.mark.parametrize("flag", ["--all_reduce=flat", "--all_reduce=hierarchical"])
def test_two_ranks_train_to_the_same_weights_however_they_sum(flag, flat_run, tmp_path):
    assert train(tmp_path, flag).stdout.count("gradients: summed by MPI") == 1
    got = weights(tmp_path, "CartPole-v1", 256)
    assert all(np.array_equal(got[name], expected) for name, expected in flat_run.items())


def test_two_ranks_train_in_16_bits_and_stay_equal(flat_run, tmp_path):
    train(tmp_path, "--gradient_wire=bfloat16", "--all_reduce=flat")
    got = weights(tmp_path, "CartPole-v1", 256)
    difference = max(np.abs(got[n] - flat_run[n]).max() for n in got if n.startswith("model/"))
    assert 0.0 < difference < 0.02


@pytest.mark.parametrize("settings", [{"all_reduce": "flat"}, {"all_reduce": "hierarchical"}])
def test_memory_is_shared_unless_another_way_is_asked_for(settings):
    class Ranks(Alone):
        size = 2

    shared = share_memory(MachineSettings(gradient_wire="bfloat16"), Ranks(), 7, 2)  # there is no wire
    assert shared.gradients.shape == (2, 9) and shared.total.shape == (9,)
    assert shared.parameters.shape == (7,) and shared.moments.shape == (2, 7)
    # A matrix product may round differently if a weight is not aligned to a cache line.
    assert all(row.data_ptr() % 64 == 0 for row in (*shared.gradients, shared.total, shared.parameters))
    assert share_memory(MachineSettings(), Alone(), 7, 2) is None
    assert share_memory(MachineSettings(**settings), Ranks(), 7, 2) is None


@pytest.mark.parametrize("length", [0, 5, 16, 100, 677_191])
@pytest.mark.parametrize("ranks", [1, 2, 3, 64])
def test_the_shards_of_the_ranks_are_the_whole_and_begin_with_a_line_of_the_cache(length, ranks):
    shards = [shard_of(length, Rank(rank, ranks)) for rank in range(ranks)]
    assert [index for shard in shards for index in range(length)[shard]] == list(range(length))
    assert all(shard.start % 16 == 0 or shard.start == length for shard in shards)
    if length > 10_000:
        sizes = [shard.stop - shard.start for shard in shards]
        assert max(sizes) - min(sizes) <= 32


class Rank(Alone):
    def __init__(self, rank, size):
        self.rank, self.size = rank, size
