"""The format of a page's data: one block of bytes, deflated and base64-encoded.

The block is the length of a JSON text (4 bytes, little-endian), the text, and the arrays that it references as
`{"type", "shape", "at"}`. Base64 has no characters that are special in HTML, so nothing in a run's files can become
markup. `browser/data.js` decodes the block.
"""

import base64
import json
import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 8
_LEVEL = 6  # 9 takes twice as long and saves 3 %
_TYPES = {"|i1": "i1", "|u1": "u1", "<f4": "f4"}
_DIGITS = 5


def plain(numbers: NDArray[Any]) -> list[float | None]:
    """Return numbers as JSON, each as `plain_number`."""
    return [plain_number(number) for number in numbers.tolist()]


def plain_number(number: float) -> float | None:
    """Return a number rounded to `_DIGITS` significant digits; None, which is JSON's null, where it is not finite."""
    return float(f"{number:.{_DIGITS}g}") if math.isfinite(number) else None


class Pack:
    """Collects the arrays that a JSON text references."""

    def __init__(self) -> None:
        """Begin without arrays."""
        self._blocks: list[bytes] = []
        self._length = 0

    def add(self, array: NDArray[Any]) -> dict[str, Any]:
        """Add an int8, uint8 or float32 array and return its reference for the text."""
        content = np.ascontiguousarray(array).tobytes()
        reference = {"type": _TYPES[array.dtype.str], "shape": list(array.shape), "at": self._length}
        padding = bytes(-len(content) % _ALIGNMENT)
        self._blocks += [content, padding]
        self._length += len(content) + len(padding)
        return reference

    def add_film(self, pictures: NDArray[np.uint8]) -> dict[str, Any]:
        """Add consecutive pictures (T, ...) that differ little; each is stored as its XOR with the one before."""
        differences = pictures.copy()
        np.bitwise_xor(pictures[1:], pictures[:-1], out=differences[1:])
        return {**self.add(differences), "film": True}

    def encode(self, content: dict[str, Any], level: int = _LEVEL) -> str:
        """Return the text and all arrays, deflated at a level and base64-encoded."""
        text = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-(4 + len(text)) % _ALIGNMENT)
        block = b"".join([len(text).to_bytes(4, "little"), text, *self._blocks])
        return base64.b64encode(zlib.compress(block, level)).decode()
