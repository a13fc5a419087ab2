"""Tensors in a safetensors file: https://github.com/huggingface/safetensors#format, the part this program writes.

A file is 8 bytes with the length of the header, the header as JSON, and the data. The header is checked against the
file's size and the caller's rules before the data is read. The bytes that were hashed become the tensors.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ppo.outputs.untrusted import DamagedCheckpointError, brief, open_regular, parse_json
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
    with open_regular(path, MAX_FILE_BYTES) as (file, actual_size):
        if actual_size != size:
            raise DamagedCheckpointError(f"{path} has {actual_size} bytes, its manifest says {size}")
        places, start = _read_header(file, path, size)
        wrong = fit({name: tensor_type for name, (tensor_type, _) in places.items()})
        digest = hashlib.sha256(start)
        data = bytearray(0 if wrong else size - len(start))
        file.readinto(data)
        digest.update(data)
        # What does not fit is only hashed, to tell another network from a damaged header, and never held in memory.
        while wrong and (block := file.read(_BLOCK_BYTES)):
            digest.update(block)
        if digest.hexdigest() != sha256:
            raise DamagedCheckpointError(f"{path} does not have the sha256 of its manifest")
    if wrong:
        raise Refusal(f"the tensors in {path} do not fit these settings: {wrong}")
    tensors = {name: _view(data, tensor_type, begin) for name, (tensor_type, begin) in places.items()}
    for name, tensor in tensors.items():
        flaw = flaw_in(name, tensor)
        if flaw:
            raise DamagedCheckpointError(f"{path}: {brief(name)} {flaw}")
    return tensors


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


def _read_header(file: BufferedReader, path: Path, size: int) -> tuple[dict[str, tuple[TensorType, int]], bytes]:
    """Return type, shape and first byte of every tensor, and the bytes that say so."""
    prefix = file.read(_LENGTH_BYTES)
    header_bytes = int.from_bytes(prefix, "little")
    if len(prefix) < _LENGTH_BYTES or header_bytes > min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES):
        raise DamagedCheckpointError(f"{path} is not a safetensors file")
    header = file.read(header_bytes)
    try:
        return _parse_header(header, size - _LENGTH_BYTES - header_bytes), prefix + header
    except DamagedCheckpointError as error:
        raise DamagedCheckpointError(f"{path} {error}") from error


def _parse_header(content: bytes, data_bytes: int) -> dict[str, tuple[TensorType, int]]:
    """Return type, shape and first byte of every tensor; together they cover the data exactly once."""
    header = parse_json(content)
    if not isinstance(header, dict):
        raise DamagedCheckpointError("has no header")
    places = {name: _parse_entry(name, entry) for name, entry in header.items()}
    position = 0
    for name, (tensor_type, begin) in sorted(places.items(), key=lambda item: item[1][1]):
        size = byte_size(tensor_type)
        if size and begin != position:
            raise DamagedCheckpointError(f"has {brief(name)} at byte {begin} instead of {position}")
        position += size
    if position != data_bytes:
        raise DamagedCheckpointError(f"has {data_bytes} bytes of data, its header declares {position}")
    return places


def _parse_entry(name: str, entry: Any) -> tuple[TensorType, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise DamagedCheckpointError(f"has a header entry {brief(name)} that is not a tensor")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise DamagedCheckpointError(f"holds {brief(name)} in another type than {', '.join(_DTYPES)}")
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(shape) <= 8 and len(offsets) == 2):
        raise DamagedCheckpointError(f"has no valid shape or place of {brief(name)}")
    tensor_type = _DTYPES[dtype], tuple(shape)
    if offsets[1] - offsets[0] != byte_size(tensor_type) or offsets[0] % tensor_type[0].itemsize:
        raise DamagedCheckpointError(f"declares {brief(shape)} {dtype} in other than that many bytes for {brief(name)}")
    return tensor_type, offsets[0]


def _are_sizes(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n <= MAX_FILE_BYTES for n in numbers)


def _view(data: bytearray, tensor_type: TensorType, begin: int) -> Tensor:
    dtype, shape = tensor_type
    if not byte_size(tensor_type):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=begin).reshape(shape)


def _describe(tensor_type: TensorType | None) -> str:
    if tensor_type is None:
        return "absent"
    dtype, shape = tensor_type
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
