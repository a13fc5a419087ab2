"""The part of the safetensors format that this program uses: https://github.com/huggingface/safetensors#format.

A file is the length of the header in 8 bytes, the header as JSON, and the data. The types and shapes that the header
declares are checked by the caller before the data is read; then the bytes are hashed and decoded.
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

# Many times the largest network with a thousand environments, yet hashed within a few seconds on any machine.
MAX_FILE_BYTES = 512 << 20
# Twice the header of a run with the maximum of 4,096 environments; parsed JSON takes up to 30 times this memory.
_MAX_HEADER_BYTES = 4 << 20
_BLOCK_BYTES = 1 << 20
_LENGTH_BYTES = 8
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "I64": torch.int64, "U8": torch.uint8}
# Also in files of agents that are only played; read as float32.
_SHORT = {"F16": torch.float16}

Tensors = dict[str, Tensor]
TensorType = tuple[torch.dtype, tuple[int, ...]]
"""Type and shape of a tensor."""
Specification = Mapping[str, TensorType]


def specification(tensors: Mapping[str, Tensor]) -> Specification:
    """Return the types and shapes of tensors by name."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}


def misfit(found: Specification, expected: Specification) -> str | None:
    """Describe the first tensor that is missing, unknown, or of an unexpected type or shape; None if all fit."""
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
    """Encode tensors as the content of a file.

    Raises:
        FloatingPointError: a tensor holds numbers that training must not continue with; names the tensor.
    """
    for name, tensor in tensors.items():
        flaw = flaw_in(name, tensor)
        if flaw:
            raise FloatingPointError(f"{name} {flaw}")
    return safetensors.torch.save({name: tensor.detach().contiguous() for name, tensor in tensors.items()})


def read_tensor_file(
    path: Path, size: int, sha256: str, fit: Callable[[Specification], str | None], *, may_be_short: bool = False
) -> Tensors:
    """Read tensors from a file.

    Args:
        path: the file.
        size: its size in bytes, from the manifest.
        sha256: its hash, from the manifest.
        fit: receives the types and shapes before the data is read; raises DamagedCheckpointError if this program
            cannot have written them, returns the mismatch if they belong to other settings, and None if they fit.
        may_be_short: the file may hold float16, which is read as float32.

    Raises:
        DamagedCheckpointError: the file is not the one that was written, or holds numbers that no training produces.
        Refusal: the file is intact, but its tensors do not fit.
    """
    with _open_whole(path, size) as file:
        start = file.read(_LENGTH_BYTES)
        start += file.read(min(int.from_bytes(start, "little"), _MAX_HEADER_BYTES))
        wrong = fit(_widened(declared_in(start, path, may_be_short=may_be_short)))
        content = start if wrong else start + file.read(max(0, size - len(start)))
        # Tensors that do not fit are hashed, to tell another network from a damaged header, but not kept in memory.
        _require_hash(path, hashlib.sha256(content), file, sha256)
    if wrong:
        raise Refusal(f"the tensors in {path} do not fit these settings: {wrong}")
    return decode_tensors(content, path, may_be_short=may_be_short)


def decode_tensors(content: bytes, path: Path, *, may_be_short: bool = False) -> Tensors:
    """Decode the tensors in a file's content; see `read_tensor_file`.

    Raises:
        DamagedCheckpointError: the content is invalid, or holds numbers that no training produces; names the file.
    """
    declared = declared_in(content, path, may_be_short=may_be_short)
    with only_damage(path):
        tensors = safetensors.torch.load(content)
        if specification(tensors) != declared:
            raise DamagedCheckpointError("holds different tensors than its header declares")
        for name, tensor in tensors.items():
            flaw = flaw_in(name, tensor)
            if flaw:
                raise DamagedCheckpointError(f"holds {brief(name)} that {flaw}")
    return {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}


def verify_file(path: Path, size: int, sha256: str) -> None:
    """Check a file's size and hash, in little memory and without interpreting its content.

    Raises:
        DamagedCheckpointError: the file is not the one that was written.
    """
    with _open_whole(path, size) as file:
        _require_hash(path, hashlib.sha256(), file, sha256)


def declared_in(content: bytes, path: Path, *, may_be_short: bool = False) -> Specification:
    """Return the types and shapes that a file declares, given its content or the start of it.

    Raises:
        DamagedCheckpointError: the header is missing, or is not one that this program would write.
    """
    with only_damage(path):
        length = int.from_bytes(content[:_LENGTH_BYTES], "little")
        header = content[_LENGTH_BYTES : _LENGTH_BYTES + length]
        if not len(header) == length <= _MAX_HEADER_BYTES:
            raise DamagedCheckpointError("is not a safetensors file")
        known = _DTYPES | _SHORT if may_be_short else _DTYPES
        return {name: _tensor_type(name, entry, known) for name, entry in parse_json(header).items()}


def flaw_in(name: str, tensor: Tensor) -> str | None:
    """Return what makes a tensor's numbers unusable, or None."""
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        return "is not finite"
    # Adam takes the square root of the second moment; counts, sums of squares and deviations cannot be negative.
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
    """Add the rest of a file to the digest of its start and compare the digest with `sha256`."""
    while block := rest.read(_BLOCK_BYTES):
        digest.update(block)
    if digest.hexdigest() != sha256:
        raise DamagedCheckpointError(f"{path} does not have the sha256 of its manifest")


def _widened(found: Specification) -> Specification:
    return {name: (torch.float32 if dtype == torch.float16 else dtype, shape) for name, (dtype, shape) in found.items()}


def _tensor_type(name: str, entry: dict[str, Any], known: Mapping[str, torch.dtype]) -> TensorType:
    """Return the type and shape that a header entry declares; raises any exception if the entry is invalid."""
    dtype, shape = known.get(entry["dtype"]), tuple(entry["shape"])
    if dtype is None:
        raise DamagedCheckpointError(f"holds {brief(name)} with a type other than {', '.join(known)}")
    # The dimensions must be few and small enough to be multiplied.
    if len(shape) > 8 or not all(type(n) is int and 0 <= n <= MAX_FILE_BYTES for n in shape):
        raise DamagedCheckpointError(f"holds {brief(name)} of shape {brief(shape)}")
    return dtype, shape


def _describe(tensor_type: TensorType | None) -> str:
    if tensor_type is None:
        return "absent"
    dtype, shape = tensor_type
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
