"""Gathers pixels as floats, with compiled code if a compiler was present when the package was installed."""

import torch
from torch import Tensor

try:
    from ppo.algorithm import _pixels
except ImportError:  # no compiler when the package was installed
    _pixels = None  # type: ignore[assignment]

IS_COMPILED = _pixels is not None
"""Whether `gather_pixels` is compiled; its results are the same either way."""
# The bytes of this many observations, 28 KB each, are still in the cache when they are converted to floats.
_ROWS_AT_ONCE = 32


def gather_pixels(rows: Tensor, indices: Tensor) -> Tensor:
    """Return rows (R, W) of uint8 at indices (B,) as float32 (B, W), on the CPU.

    Raises:
        IndexError: an index is out of range.
    """
    gathered = torch.empty(len(indices), rows.shape[1])
    if _pixels is not None and torch.get_num_threads() == 1:
        _pixels.gather_pixels(gathered.numpy(), rows.numpy(), indices.numpy())
        return gathered
    for part, chosen in zip(torch.split(gathered, _ROWS_AT_ONCE), torch.split(indices, _ROWS_AT_ONCE), strict=True):
        part.copy_(rows.index_select(0, chosen))
    return gathered
