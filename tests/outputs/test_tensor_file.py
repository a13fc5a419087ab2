"""Files of tensors: read as safetensors reads them, and checked before any declared size is trusted."""

import hashlib
import json
import os
import pickle
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from ppo.outputs import tensor_file
from ppo.outputs.tensor_file import Specification, specification
from ppo.outputs.untrusted import DamagedCheckpointError
from ppo.settings import Refusal
from tests.forgery import tensor_file as forged_file

TENSORS = {
    "model/weight": torch.arange(6.0).reshape(2, 3),
    "model/empty": torch.empty(0, 4),
    "model/scalar": torch.tensor(2.0, dtype=torch.float64),
    "environment/0/screens": torch.arange(7, dtype=torch.uint8),
    "environment/0/counters": torch.tensor([1, -5]),
}


def fits(found: Specification) -> str | None:
    return None


def read(
    path: Path,
    content: bytes | None = None,
    fit: Callable[[Specification], str | None] = fits,
    *,
    may_be_short: bool = False,
) -> dict[str, Tensor]:
    """Write a content and read it with the size and hash it has."""
    if content is not None:
        path.write_bytes(content)
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    return tensor_file.read_tensor_file(path, len(content), sha256, fit, may_be_short=may_be_short)


def test_what_is_encoded_is_read_again_as_safetensors_reads_it(tmp_path: Path) -> None:
    content = tensor_file.encode_tensors(TENSORS)
    mine, theirs = read(tmp_path / "file", content), safetensors.torch.load(content)
    assert mine.keys() == theirs.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert mine[name].dtype == theirs[name].dtype == tensor.dtype
        assert torch.equal(mine[name], tensor) and torch.equal(theirs[name], tensor)
        mine[name].zero_()  # the memory is the reader's own


def test_types_and_shapes_are_known_before_the_data_is_read(tmp_path: Path) -> None:
    seen: list[Specification] = []
    read(tmp_path / "file", tensor_file.encode_tensors(TENSORS), lambda found: seen.append(found))  # type: ignore[func-returns-value]
    assert seen == [specification(TENSORS)]


def test_16_bits_are_read_as_32_where_they_may_be_and_are_damage_elsewhere(tmp_path: Path) -> None:
    content = tensor_file.encode_tensors({"model/weight": torch.tensor([0.5, 1e-3]).half()})
    seen: list[Specification] = []
    found = read(tmp_path / "file", content, lambda found: seen.append(found), may_be_short=True)  # type: ignore[func-returns-value]
    assert seen == [specification(found)] == [{"model/weight": (torch.float32, (2,))}]
    torch.testing.assert_close(found["model/weight"], torch.tensor([0.5, 1e-3]), rtol=1e-3, atol=0.0)
    for attempt in (lambda: read(tmp_path / "file"), lambda: tensor_file.decode_tensors(content, tmp_path)):
        with pytest.raises(DamagedCheckpointError, match=r"model/weight with a type other than F64, F32, I64, U8$"):
            attempt()
    endless = safetensors.torch.save({"model/weight": torch.tensor([float("inf")]).half()})
    with pytest.raises(DamagedCheckpointError, match="model/weight that is not finite"):
        read(tmp_path / "file", endless, may_be_short=True)


def test_what_does_not_fit_is_refused_only_if_it_is_not_damaged(tmp_path: Path) -> None:
    content = tensor_file.encode_tensors(TENSORS)
    expected = specification(TENSORS | {"model/weight": torch.zeros(3, 2)})
    path = tmp_path / "file"
    with pytest.raises(Refusal, match=r"model/weight is float32 \[2, 3\] instead of float32 \[3, 2\]"):
        read(path, content, lambda found: tensor_file.misfit(found, expected))
    with pytest.raises(DamagedCheckpointError, match="sha256"):
        tensor_file.read_tensor_file(path, len(content), "0" * 64, lambda found: tensor_file.misfit(found, expected))


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS: dict[str, tuple[Any, bytes]] = {
    "pickle": (pickle.dumps({"a": 1}), b""),
    "not JSON": (b"weights", b""),
    "list": ([], b""),
    "deep": (b"[" * 100_000, b""),
    "duplicate name": (b'{"a": {}, "a": {}}', b""),
    "metadata": ({"__metadata__": {"format": "pt"}}, b""),
    "entry a list": ({"a": []}, b""),
    "missing member": ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    "half floats": ({"a": entry("F16", (4,))}, bytes(8)),
    "unknown type": ({"a": entry("OBJECT")}, bytes(8)),
    "type a list": ({"a": entry([["F32"] * 9])}, bytes(8)),
    "negative size": ({"a": entry(shape=(-2, -1))}, bytes(8)),
    "true for a size": ({"a": entry(shape=(True, 2))}, bytes(8)),
    "real size": ({"a": entry(shape=(2.0,))}, bytes(8)),
    "many axes": ({"a": entry(shape=(1,) * 8 + (2,))}, bytes(8)),
    "huge size": ({"a": entry(shape=(10**12,), offsets=(0, 4 * 10**12))}, bytes(8)),
    "overflowing size": ({"a": entry(shape=(1 << 16,) * 4, offsets=(0, 0))}, b""),
    "overflowing shape of nothing": ({"a": entry("U8", (1 << 16,) * 4 + (0,), (0, 0))}, b""),
    "shape of nothing that torch cannot have": ({"a": entry("U8", (1 << 28,) * 7 + (0,), (0, 0))}, b""),
    "shape a number": ({"a": {**entry(), "shape": 2}}, bytes(8)),
    "shape of lists": ({"a": entry(shape=([2],))}, bytes(8)),
    "entry a text": ({"a": "F32"}, b""),
    "type a number": ({"a": entry(7)}, bytes(8)),
    "offsets a text": ({"a": {**entry(), "data_offsets": "08"}}, bytes(8)),
    "huge product of small sizes": ({"a": entry(shape=(1 << 20,) * 3, offsets=(0, 1 << 30))}, bytes(8)),
    "offsets outside": ({"a": entry(offsets=(8, 16))}, bytes(8)),
    "offsets reversed": ({"a": entry(offsets=(8, 0))}, bytes(8)),
    "three offsets": ({"a": entry(offsets=(0, 4, 8))}, bytes(8)),
    "overlap": ({"a": entry(), "b": entry()}, bytes(8)),
    "hole": ({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)),
    "rest": ({"a": entry()}, bytes(9)),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_this_program_would_not_write_is_damage(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DamagedCheckpointError) as caught:
        read(tmp_path / "file", forged_file(*HEADERS[kind]))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("length", [0, 3, 8, 2**24, 2**63, 2**64 - 1])
def test_the_length_of_the_header_is_not_believed(tmp_path: Path, length: int) -> None:
    whole = length.to_bytes(8, "little") + json.dumps({"a": entry()}).encode() + bytes(8)
    for size in (0, 4, 8, 9, len(whole)):
        with pytest.raises(DamagedCheckpointError):
            read(tmp_path / "file", whole[:size])


def test_a_file_is_verified_without_asking_what_it_holds_and_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(forged_file(*HEADERS["overflowing shape of nothing"]))
    os.truncate(path, 20 << 20)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    tracemalloc.start()
    tensor_file.verify_file(path, 20 << 20, digest)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < 4 << 20
    for size, sha256 in ((1, digest), (20 << 20, "0" * 64)):
        with pytest.raises(DamagedCheckpointError):
            tensor_file.verify_file(path, size, sha256)


def test_a_header_beyond_the_cap_is_not_parsed(tmp_path: Path) -> None:
    header = json.dumps({"a": entry()}).encode()
    with pytest.raises(DamagedCheckpointError, match="is not a safetensors file"):
        read(tmp_path / "file", forged_file(header + b" " * (5 << 20), bytes(8)))


@pytest.mark.parametrize(
    ("name", "tensor", "flaw"),
    [
        ("model/weight", torch.tensor([1.0, float("nan")]), "is not finite"),
        ("model/weight", torch.tensor([[float("inf")]]), "is not finite"),
        ("learner/first_moment", torch.tensor([float("-inf")], dtype=torch.float64), "is not finite"),
        ("learner/second_moment", torch.tensor([1.0, -1e-30]), "is negative"),
        ("learner/gradient_steps", torch.tensor(-1.0), "is negative"),
        ("learner/adaptive_rate", torch.tensor(-1e-4), "is negative"),
        ("model/inputs.moments", torch.tensor([-1.0, 0.0, 1.0]), "is negative"),
        ("model/inputs.moments", torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, -1.0]]), "is negative"),
        ("value_normalizer/moments", torch.tensor([1.0, 0.0, -1.0]), "is negative"),
        ("model/inputs.applied", torch.tensor([100.0, 0.0]), "deviation of 0 or less"),
        ("model/inputs.applied", torch.tensor([[0.0, 0.0], [1.0, 0.0]]), "deviation of 0 or less"),
    ],
)
def test_numbers_that_no_training_leaves_are_neither_written_nor_read(
    tmp_path: Path, name: str, tensor: Tensor, flaw: str
) -> None:
    with pytest.raises(FloatingPointError, match=f"{name} .*{flaw}"):
        tensor_file.encode_tensors({name: tensor})
    with pytest.raises(DamagedCheckpointError, match=f"{name} .*{flaw}"):
        read(tmp_path / "file", safetensors.torch.save({name: tensor}))


def test_moments_may_have_a_negative_mean(tmp_path: Path) -> None:
    tensors = {"value_normalizer/moments": torch.tensor([2.0, -5.0, 1.0])}
    assert torch.equal(read(tmp_path / "file", tensor_file.encode_tensors(tensors)).popitem()[1], tensors.popitem()[1])


# ----------------------------------------------------------------------------------------------------- not plain files


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


def link_to_a_whole_file(path: Path) -> None:
    path.with_name("whole").write_bytes(tensor_file.encode_tensors(TENSORS))
    path.symlink_to(path.with_name("whole"))


@pytest.mark.parametrize("make", [pipe, listening_socket, device, dangling_link, link_to_a_whole_file, Path.mkdir])
def test_only_a_regular_file_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may have 100 characters
    make(Path("file"))
    with pytest.raises(DamagedCheckpointError, match="file is not a regular file"):
        tensor_file.read_tensor_file(Path("file"), 10, "0" * 64, fits)


def test_a_file_that_is_exchanged_for_a_link_while_it_is_opened_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    link_to_a_whole_file(path)
    monkeypatch.setattr(os, "lstat", os.stat)  # as if it were still the file itself at that moment
    with pytest.raises(DamagedCheckpointError, match="symbolic links"):
        read(path)


def test_a_file_beyond_the_cap_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.truncate(20 << 30)
    with pytest.raises(DamagedCheckpointError, match="more than the 536870912 allowed"):
        tensor_file.read_tensor_file(path, 20 << 30, "0" * 64, fits)
