"""How the cores of a host are shared out among its ranks."""

import os

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
