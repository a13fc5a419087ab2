"""Random numbers by address: every stream is a pure function of (seed, purpose, address).

Nothing depends on the order of draws, so a run gets the same numbers at any rank count and after a resume.
"""

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence
from numpy.typing import NDArray

_WORD = 2**64


class Purpose(IntEnum):
    """What a stream is for; streams of different purposes never overlap. The numbers are part of the file format."""

    WEIGHTS = 1
    EMULATOR = 2
    NOOPS = 3
    STICKY_ACTIONS = 4
    EPISODE_SEEDS = 5
    ACTIONS = 6
    SHUFFLE = 7
    PLAYBACK = 8
    EVALUATION = 9


def stream(seed: int, purpose: Purpose, *address: int) -> np.random.Generator:
    """Return the generator at an address of at most three numbers, e.g. (environment, update).

    Philox4x64 (Salmon et al. 2011) is keyed by (seed, purpose); the address is the upper part of its counter, so
    each stream has 2^64 blocks of its own.
    """
    assert len(address) <= 3 and all(0 <= number < _WORD for number in address)
    counter = np.array([0, *address, *([0] * (3 - len(address)))], np.uint64)
    return np.random.Generator(np.random.Philox(_Key(seed, purpose), counter=counter))  # type: ignore[arg-type]


class _Key(ISeedSequence):
    """Hands Philox its key. With the argument `key`, numpy would first make and discard a random seed: 3x as slow."""

    def __init__(self, seed: int, purpose: Purpose) -> None:
        self._words = np.array([seed, purpose], np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> NDArray[np.uint64]:
        return self._words


def derived_seed(seed: int, purpose: Purpose, *address: int) -> int:
    """Return a seed in [0, 2^31) for a library that takes an integer."""
    return int(stream(seed, purpose, *address).integers(2**31))
