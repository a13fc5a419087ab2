"""Tensors in a safetensors file: https://github.com/huggingface/safetensors#format, the part this program writes.

A file is 8 bytes with the length of the header, the header as JSON, and the data. What the header declares is held
against the caller's rules before the data is read; then the bytes are hashed, and become the tensors.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ppo.outputs.untrusted import DamagedCheckpointError, brief, only_damage, open_regular, parse_json
from ppo.settings import Refusal

# Many times the largest network and a thousand environments, and hashed within a few seconds anywhere.
MAX_FILE_BYTES = 512 << 20
# Twice the header of the 4,096 environments that a run may have; as parsed JSON it takes up to 30 times the memory.
_MAX_HEADER_BYTES = 4 << 20
_BLOCK_BYTES = 1 << 20
_LENGTH_BYTES = 8
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "I64": torch.int64, "U8": torch.uint8}

Tensors = dict[str, Tensor]
TensorType = tuple[torch.dtype, tuple[int, ...]]
"""Type and shape of a tensor."""
Specification = Mapping[str, TensorType]


def specification(tensors: Mapping[str, Tensor]) -> Specification:
    """Return the types and shapes of tensors by name."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def misfit(found: Specification, expected: Specification) -> str | None:
    """Name the first tensor that is missing, unknown, or of another type or shape than expected; None if all fit."""
    names = [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]
    if not names:
        return None
    first = min(names)
    others = f" (and {len(names) - 1} more differ)" if len(names) > 1 else ""
    return f"{brief(first)} is {_describe(found.get(first))} instead of {_describe(expected.get(first))}{others}"


def byte_size(tensor_type: TensorType) -> int:
    """Return the bytes that a tensor of this type and shape occupies."""
    dtype, shape = tensor_type
    return math.prod(shape) * dtype.itemsize


def encode_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as the content of a file.

    Raises:
        FloatingPointError: a tensor holds numbers that no training should continue with; names it.
    """
    for name, tensor in tensors.items():
        flaw = flaw_in(name, tensor)
        if flaw:
            raise FloatingPointError(f"{name} {flaw}")
    return safetensors.torch.save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})


def read_tensor_file(path: Path, size: int, sha256: str, fit: Callable[[Specification], str | None]) -> Tensors:
    """Read tensors from a file.

    Args:
        path: the file.
        size: its bytes, as the manifest says.
        sha256: its hash, as the manifest says.
        fit: receives the types and shapes before the data is read; raises DamagedCheckpointError where they cannot
            be this program's, returns what is wrong where they belong to other settings, or None.

    Raises:
        DamagedCheckpointError: the file is not the one that was written, or holds numbers no training would leave.
        Refusal: it is, but does not fit.
    """
    with _open_whole(path, size) as file:
        start = file.read(_LENGTH_BYTES)
        start += file.read(min(int.from_bytes(start, "little"), _MAX_HEADER_BYTES))
        declared = declared_in(start, path)
        wrong = fit(declared)
        content = start if wrong else start + file.read(max(0, size - len(start)))
        # What does not fit is only hashed, to tell another network from a damaged header, and never held in memory.
        _require_hash(path, hashlib.sha256(content), file, sha256)
    if wrong:
        raise Refusal(f"the tensors in {path} do not fit these settings: {wrong}")
    return decode_tensors(content, path)


def decode_tensors(content: bytes, path: Path) -> Tensors:
    """Return the tensors of a file's content.

    Raises:
        DamagedCheckpointError: it is not such content, or holds numbers no training would leave; names the file.
    """
    declared = declared_in(content, path)
    with only_damage(path):
        tensors = safetensors.torch.load(content)
        if specification(tensors) != declared:
            raise DamagedCheckpointError("holds other tensors than it declares")
        for name, tensor in tensors.items():
            flaw = flaw_in(name, tensor)
            if flaw:
                raise DamagedCheckpointError(f"holds {brief(name)} that {flaw}")
    return tensors


def verify_file(path: Path, size: int, sha256: str) -> None:
    """Compare a file with its size and hash, in little memory and without asking what it holds.

    Raises:
        DamagedCheckpointError: the file is not the one that was written.
    """
    with _open_whole(path, size) as file:
        _require_hash(path, hashlib.sha256(), file, sha256)


def declared_in(content: bytes, path: Path) -> Specification:
    """Return the types and shapes that a file declares, given its content or the start of it.

    Raises:
        DamagedCheckpointError: there is no header, or not one that this program would write.
    """
    with only_damage(path):
        length = int.from_bytes(content[:_LENGTH_BYTES], "little")
        header = content[_LENGTH_BYTES : _LENGTH_BYTES + length]
        if not len(header) == length <= _MAX_HEADER_BYTES:
            raise DamagedCheckpointError("is not a safetensors file")
        return {name: _tensor_type(name, entry) for name, entry in parse_json(header).items()}


def flaw_in(name: str, tensor: Tensor) -> str | None:
    """Say what makes a tensor's numbers unusable, or return None."""
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        return "is not finite"
    # Adam takes the root of the second moment; a count, a sum of squares and a deviation cannot be negative either.
    last = name.rpartition("/")[2]
    if last in ("second_moment", "gradient_steps", "adaptive_rate"):
        negative = tensor
    elif last.endswith("moments") and tensor.shape[:1] == (3,):  # count, mean, squares
        negative = tensor[::2]
    elif last.rpartition(".")[2] == "applied" and tensor.shape[:1] == (2,):  # mean, deviation: a divisor
        return None if bool((tensor[1] > 0.0).all()) else "has a deviation of 0 or less"
    else:
        return None
    return "is negative" if bool((negative < 0).any()) else None


@contextmanager
def _open_whole(path: Path, size: int) -> Iterator[BufferedReader]:
    with open_regular(path, MAX_FILE_BYTES) as (file, actual_size):
        if actual_size != size:
            raise DamagedCheckpointError(f"{path} has {actual_size} bytes, its manifest says {size}")
        yield file


def _require_hash(path: Path, digest: "hashlib._Hash", rest: BufferedReader, sha256: str) -> None:
    """Add the rest of a file to the digest of its start and compare it."""
    while block := rest.read(_BLOCK_BYTES):
        digest.update(block)
    if digest.hexdigest() != sha256:
        raise DamagedCheckpointError(f"{path} does not have the sha256 of its manifest")


def _tensor_type(name: str, entry: dict[str, Any]) -> TensorType:
    """Return what an entry of a header declares; raises anything where that is no tensor's."""
    dtype, shape = _DTYPES.get(entry["dtype"]), tuple(entry["shape"])
    if dtype is None:
        raise DamagedCheckpointError(f"holds {brief(name)} in another type than {', '.join(_DTYPES)}")
    # Few and small enough to be multiplied.
    if len(shape) > 8 or not all(type(n) is int and 0 <= n <= MAX_FILE_BYTES for n in shape):
        raise DamagedCheckpointError(f"holds {brief(name)} of shape {brief(shape)}")
    return dtype, shape


def _describe(tensor_type: TensorType | None) -> str:
    if tensor_type is None:
        return "absent"
    dtype, shape = tensor_type
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
