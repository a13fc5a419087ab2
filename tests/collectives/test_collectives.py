import textwrap
import threading
import time

import numpy as np
import pytest

from ppo.collectives import Alone, decided_by_root, share
from ppo.collectives.abort_guard import AbortGuard
from ppo.collectives.mpi import MPIRanks
from ppo.settings import Refusal
from tests.jobs import mpirun

CONTRACT = """
import numpy as np
from ppo.collectives import decided_by_root
from ppo.settings import Refusal

def check(comm):
    buffer = np.arange(5, dtype=np.float32) + comm.rank
    address = buffer.ctypes.data
    comm.sum_in_place(buffer)
    assert buffer.ctypes.data == address
    assert buffer.tolist() == [comm.size * i + sum(range(comm.size)) for i in range(5)]
    scalar = np.asarray(np.float64(0.5))
    comm.sum_in_place(scalar)
    assert scalar == 0.5 * comm.size
    on_root = np.full(3, comm.rank, np.float32)
    comm.sum_on_root(on_root)
    assert on_root.tolist() == [sum(range(comm.size)) if comm.rank == 0 else comm.rank] * 3
    copied = np.full(3, comm.rank + 7, np.float32)
    comm.copy_from_root(copied)
    assert copied.tolist() == [7.0] * 3
    outgoing = np.array([[comm.rank, to] for to in range(comm.size)], np.uint8)
    incoming = np.zeros_like(outgoing)
    comm.exchange(outgoing, incoming)
    assert incoming.tolist() == [[origin, comm.rank] for origin in range(comm.size)]
    everyone = np.zeros((comm.size, 2), np.uint8)
    comm.collect(np.array([comm.rank, 9], np.uint8), everyone)
    assert everyone.tolist() == [[origin, 9] for origin in range(comm.size)]
    hosts = comm.split_by_host()
    assert comm.size == 1 or comm.split_by_host() is hosts
    assert (hosts.count, hosts.within.rank, hosts.within.size) == (1, comm.rank, comm.size)
    assert (hosts.between is None) == (comm.rank != 0)
    assert hosts.between is None or hosts.between.size == 1
    assert not comm.waiting
    assert comm.broadcast({"from": comm.rank}) == {"from": 0}
    gathered = comm.gather(comm.rank * 10)
    assert gathered == ([10 * r for r in range(comm.size)] if comm.rank == 0 else None)
    assert decided_by_root(comm, lambda: comm.rank) == 0
    try:
        decided_by_root(comm, refuse)
    except Refusal as refusal:
        assert str(refusal) == "the rule"
    else:
        raise AssertionError("no refusal")
    comm.barrier()

def refuse():
    raise Refusal("the rule")
"""


def contract():
    scope = {}
    exec(CONTRACT, scope)
    return scope["check"]


def test_the_contract_holds_alone():
    contract()(Alone())


def test_the_contract_holds_on_a_one_rank_communicator():
    from mpi4py import MPI

    contract()(MPIRanks(MPI.COMM_SELF))


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_the_contract_holds_under_mpirun(ranks, tmp_path):
    end = f"from ppo.collectives.mpi import connect\ncomm = connect()\nassert comm.size == {ranks}\ncheck(comm)"
    job = mpirun(ranks, ["-c", f"{CONTRACT}\n{end}\nprint('rank', comm.rank, 'agrees')"], tmp_path)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("agrees") == ranks


def test_an_integer_buffer_is_refused_before_it_reaches_mpi():
    with pytest.raises(AssertionError):
        Alone().sum_in_place(np.arange(3))


@pytest.mark.parametrize(("total", "size"), [(8, 3), (16, 16), (7, 2), (5, 1)])
def test_shares_are_contiguous_cover_everything_and_differ_by_at_most_one(total, size):
    blocks = [share(total, rank, size) for rank in range(size)]
    assert [index for block in blocks for index in block] == list(range(total))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


def test_a_decision_of_the_root_is_passed_on():
    assert decided_by_root(Alone(), lambda: 7) == 7
    with pytest.raises(Refusal, match="not so"):
        decided_by_root(Alone(), lambda: (_ for _ in ()).throw(Refusal("not so")))


class Ended(Exception):
    """Stands for the end of the process."""


def test_the_text_of_an_error_is_printed_without_what_a_terminal_obeys(capsys, monkeypatch):
    def end(alone, code):
        raise Ended

    monkeypatch.setattr(Alone, "abort", end)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    with pytest.raises(Ended), AbortGuard(Alone()):
        raise RuntimeError("first\x1b]0;title\x07\nsecond\x9b2J\udcff")
    printed = capsys.readouterr().err
    assert "RuntimeError: first?]0;title?\nsecond?2J?\n" in printed
    assert all(line.isprintable() for line in printed.split("\n"))


FAILURES = {
    "an exception": "raise KeyError('lost')",
    "sys.exit(0)": "sys.exit(0)",
    "an exception in a thread": "thread = threading.Thread(target=lambda: {}['lost']); thread.start(); time.sleep(60)",
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_on_one_rank_ends_the_whole_job_and_names_the_rank(failure, tmp_path):
    program = textwrap.dedent(
        f"""
        import sys, threading, time
        from ppo.collectives.abort_guard import AbortGuard
        from ppo.collectives.mpi import connect
        comm = connect()
        with AbortGuard(comm) as guard:
            guard.where = lambda: "in a test"
            if comm.rank == 1:
                {FAILURES[failure]}
            comm.barrier()
        """
    )
    started = time.monotonic()
    job = mpirun(2, ["-c", program], tmp_path, timeout=30)
    assert job.returncode != 0
    assert time.monotonic() - started < 10
    assert "rank 1 of 2" in job.stderr
    assert "in a test" in job.stderr
