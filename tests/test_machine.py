"""The distribution of a host's cores over its ranks, and that freed memory is kept."""

import json
import os
import subprocess
import sys

import pytest

from ppo import machine
from ppo.collectives import Alone
from ppo.machine import cores_here, cores_per_rank, shared_out


def cores(*numbers: int) -> frozenset[str]:
    return frozenset(map(str, numbers))


EIGHT = cores(*range(8))


@pytest.mark.parametrize(
    ("hosts", "owned", "expected"),
    [
        pytest.param(["a"], [EIGHT], [8], id="a rank alone has all"),
        pytest.param(["a", "a"], [EIGHT, EIGHT], [4, 4], id="ranks that are not bound share all"),
        pytest.param(["a"] * 3, [EIGHT] * 3, [2] * 3, id="what cannot be divided is left"),
        pytest.param(["a"] * 9, [EIGHT] * 9, [1] * 9, id="more ranks than cores have one each"),
        pytest.param(["a", "a"], [cores(0), cores(1)], [1, 1], id="bound to a core each"),
        pytest.param(["a", "a"], [cores(0, 1, 2, 3), cores(4, 5, 6, 7)], [4, 4], id="bound to four each"),
        pytest.param(["a"] * 4, [cores(0, 1, 2, 3)] * 2 + [cores(4, 5, 6, 7)] * 2, [2] * 4, id="bound to sockets"),
        pytest.param(["a", "b", "b"], [EIGHT] * 3, [8, 4, 4], id="hosts have cores of their own"),
        pytest.param(["a", "a"], [cores(0, 1, 2), cores(2)], [2, 1], id="a core that one shares"),
    ],
)
def test_every_core_is_divided_among_the_ranks_that_may_use_it(
    hosts: list[str], owned: list[frozenset[str]], expected: list[int]
) -> None:
    assert shared_out(hosts, owned) == expected


def test_a_rank_alone_counts_the_cores_it_is_restricted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    monkeypatch.setattr(machine, "_SIBLINGS", "/nowhere/{}")
    assert cores_here() == {"0", "1", "2"}
    assert cores_per_rank(Alone(), ["here"]) == [3]


def test_the_hardware_threads_of_a_core_count_once(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    for cpu, siblings in ((0, "0,4"), (4, "0,4"), (1, "1,5")):
        (tmp_path / str(cpu)).write_text(f"{siblings}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 4}, raising=False)
    monkeypatch.setattr(machine, "_SIBLINGS", f"{tmp_path}/{{}}")
    assert cores_here() == {"0,4", "1,5"}


def test_without_affinities_every_processor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert len(cores_here()) == 6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults are counted as Linux does")
@pytest.mark.parametrize("keep", [True, False])
def test_memory_that_was_freed_is_there_when_it_is_needed_again(keep: bool) -> None:
    if keep and not _takes_any_size():
        pytest.skip("this C library gives large pieces of memory back, whatever it is told")
    program = f"""
import ctypes, resource
from ppo.machine import keep_freed_memory
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages, of which there would be few
if {keep}:
    assert keep_freed_memory()
def use_memory_and_count_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"1") * 40_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([use_memory_and_count_pages() for _ in range(10)][1:])
"""
    all_pages = 40_000_000 // os.sysconf("SC_PAGE_SIZE")
    for new_pages in json.loads(_said_by(program)):
        assert new_pages < 0.01 * all_pages if keep else new_pages > 0.9 * all_pages


def _takes_any_size() -> bool:
    """Ask the C library itself, so that the function under test cannot skip its own test."""
    program = "import ctypes; print(getattr(ctypes.CDLL(None), 'mallopt', lambda *_: 0)(-3, 2**30))"
    return _said_by(program).strip() != "0"


def _said_by(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
