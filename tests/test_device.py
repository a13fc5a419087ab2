"""The device of a rank's network, and what is refused."""

import socket

import pytest
import torch

from ppo.collectives import Alone, Hosts
from ppo.config import MachineSettings
from ppo.device import CPU, GPU, Placement, choose_placement, has_amx, placement_of
from ppo.settings import Refusal
from tests.ranks import on_ranks


def gpu(index, identity, *, name="NVIDIA H200", has_bfloat16=True):
    return GPU(index, name, identity, has_bfloat16)


FIRST, SECOND = gpu(0, "first"), gpu(1, "second")
OLD, OLDER = (gpu(0, identity, name="NVIDIA T4", has_bfloat16=False) for identity in ("old", "older"))


def place(gpus, rank=0, hosts=None, processors=(), **settings):
    return placement_of(MachineSettings(**settings), rank, hosts or ["here"] * len(gpus), gpus, processors)


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        pytest.param([None], CPU, id="without a GPU"),
        pytest.param([FIRST], Placement(torch.device("cuda", 0), torch.bfloat16, name="NVIDIA H200"), id="with one"),
        pytest.param([FIRST, None], Placement(why="rank 1 on here sees no GPU"), id="ranks of one job are of one kind"),
        pytest.param(
            [FIRST, OLD],
            Placement(why="rank 0 has NVIDIA H200, rank 1 on here NVIDIA T4"),
            id="GPUs of one job are of one kind",
        ),
    ],
)
def test_auto_takes_a_gpu_where_every_rank_has_one(gpus, expected):
    assert place(gpus) == expected


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_takes_its_own_gpu(rank):
    placement = place([FIRST, SECOND], rank)
    assert placement.device == torch.device("cuda", rank)
    assert placement.summed_by == "NCCL"


def test_nccl_sums_where_no_two_ranks_share_a_gpu():
    # A launcher may show every rank a GPU of its own under the same number; what counts is which one it is.
    hidden = [gpu(0, "first"), gpu(0, "second")]
    assert [place([FIRST, SECOND, FIRST], rank).summed_by for rank in range(3)] == ["MPI"] * 3
    assert [place(hidden, rank).summed_by for rank in range(2)] == ["NCCL"] * 2


@pytest.mark.parametrize("settings", [{"all_reduce": "flat"}, {"gradient_wire": "bfloat16"}])
def test_a_way_to_sum_that_is_set_is_used(settings):
    assert place([FIRST, SECOND], **settings).summed_by == "MPI"


@pytest.mark.parametrize(
    ("gpus", "precision", "expected"),
    [
        ([FIRST], "auto", torch.bfloat16),
        ([FIRST], "bfloat16", torch.bfloat16),
        ([FIRST], "float32", torch.float32),
        ([OLD], "auto", torch.float32),
        ([OLD, OLDER], "auto", torch.float32),
        ([None], "auto", torch.float32),
        ([None], "float32", torch.float32),
    ],
)
def test_auto_computes_in_16_bits_where_all_gpus_can(gpus, precision, expected):
    assert place(gpus, precision=precision).precision == expected


@pytest.mark.parametrize(
    ("gpus", "settings", "message"),
    [
        ([FIRST, None], {"device": "cuda"}, "rank 1 on there sees none.*try --device=cpu"),
        (
            [None, None],
            {"precision": "bfloat16", "processors": [True, False]},
            "float32 on a processor without AMX, that of rank 1 on there, got bfloat16; try --precision=auto",
        ),
        (
            [FIRST, None],
            {"precision": "bfloat16", "processors": [False, True]},
            r"without AMX, that of rank 0 on here \(rank 1 on there sees no GPU\), got bfloat16",
        ),
        ([OLD, OLDER], {"precision": "bfloat16"}, "float32 on a GPU without bfloat16.*try --precision=auto"),
        (
            [FIRST, OLD],
            {"device": "cuda"},
            "several kinds: rank 0 has NVIDIA H200, rank 1 on there NVIDIA T4;.*cpu",
        ),
    ],
)
def test_a_missing_device_is_refused_on_every_rank(gpus, settings, message):
    for rank in range(2):
        with pytest.raises(Refusal, match=message):
            place(gpus, rank, ["here", "there"], **settings)


@pytest.mark.parametrize(("precision", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_processors_compute_in_16_bits_only_where_it_is_asked_for(precision, expected, monkeypatch):
    monkeypatch.setattr("ppo.device.has_amx", lambda: True)
    placement = choose_placement(MachineSettings(device="cpu", precision=precision), Alone(), ["here"])
    assert placement == Placement(precision=expected)


def test_ranks_whose_processors_differ_refuse_16_bits_with_the_same_words(monkeypatch):
    answers = iter((True, False))
    monkeypatch.setattr("ppo.device.has_amx", lambda: next(answers))
    settings = MachineSettings(device="cpu", precision="bfloat16")

    def refused(comm):
        with pytest.raises(Refusal, match="a processor without AMX") as caught:
            choose_placement(settings, comm, ["here", "there"])
        return str(caught.value)

    first, second = on_ranks(2, refused)
    assert first == second


@pytest.mark.parametrize(
    ("capabilities", "expected"), [({"amx_bf16": True}, True), ({"amx_bf16": False}, False), ({}, False)]
)
def test_a_processor_has_amx_where_torch_says_so(capabilities, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert has_amx() is expected


def test_a_torch_that_does_not_say_has_no_amx(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not has_amx()


def test_with_device_cpu_nothing_is_asked_of_cuda(monkeypatch):
    def touched(*arguments):
        raise AssertionError("CUDA was touched")

    for name in ("is_available", "device_count", "get_device_properties", "init"):
        monkeypatch.setattr(torch.cuda, name, touched)
    assert choose_placement(MachineSettings(device="cpu"), Alone(), ["here"]) == CPU


class TwoOnThere(Alone):
    """Rank 2 of 4, the second on its host."""

    rank, size = 2, 4

    def gather(self, value):
        return [OLD, OLD, value, OLD]


def test_ranks_of_a_host_take_its_gpus_in_turn(monkeypatch):
    class Properties:
        name, uuid, major = "NVIDIA T4", "GPU-1", 7

    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: asked.append(index) or Properties)
    hosts = ["here", "there", "there", "there"]
    placement = choose_placement(MachineSettings(), TwoOnThere(), hosts)
    assert asked == [1]
    assert placement == Placement(torch.device("cuda", 1), torch.float32, "MPI", name="NVIDIA T4")


class OneOfTwo(Alone):
    """Rank 0 of 2, each with a GPU of its own, on hosts of which rank 0's name is known to some."""

    size = 2

    def __init__(self, num_hosts, refused):
        self.num_hosts, self.refused = num_hosts, refused

    def gather(self, value):
        return [value, SECOND if isinstance(value, GPU) else self.refused]

    def split_by_host(self):
        return Hosts(self.num_hosts, self, None)


@pytest.fixture
def first_gpu(monkeypatch):
    monkeypatch.setattr("ppo.device._gpu_of", lambda local_rank: FIRST)


@pytest.mark.parametrize(("num_hosts", "expected"), [(1, "localhost"), (2, "127.0.0.1")])
def test_ranks_that_sum_by_nccl_meet_where_all_of_them_can(num_hosts, expected, monkeypatch, first_gpu):
    monkeypatch.setattr(socket, "gethostname", lambda: "127.0.0.1")
    placement = choose_placement(MachineSettings(), OneOfTwo(num_hosts, None), ["here", "there"])
    assert (placement.summed_by, placement.meeting_host) == ("NCCL", expected)


@pytest.mark.parametrize(("name", "refused"), [("here.invalid", None), ("127.0.0.1", "there cannot find 127.0.0.1")])
def test_hosts_that_do_not_find_each_other_are_refused_on_every_rank(name, refused, monkeypatch, first_gpu):
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    with pytest.raises(Refusal, match=refused or f"here cannot find {name}.*all_reduce=hierarchical"):
        choose_placement(MachineSettings(), OneOfTwo(2, refused), ["here", "there"])


def test_hosts_of_one_name_are_refused(first_gpu):
    with pytest.raises(Refusal, match=r"2 hosts with names node: .*all_reduce=hierarchical"):
        choose_placement(MachineSettings(), OneOfTwo(2, None), ["node", "node"])


def test_the_log_says_which_and_what_it_does_not_promise():
    assert CPU.describe() == "device: cpu, float32"
    line = place([FIRST, SECOND]).describe()
    assert line.startswith("device: cuda, bfloat16, NVIDIA H200")
    assert "summed by NCCL" in line and "a stopped run resumes, but not bit for bit" in line
    assert "summed by MPI" in place([FIRST, FIRST]).describe()
    assert "summed" not in place([FIRST]).describe()
    assert "cpu, float32 (rank 0 has NVIDIA H200, rank 1 on" in place([FIRST, OLD]).describe()
