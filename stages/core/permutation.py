"""A random order of many examples without a list of them: which example comes at a place is computed from the place.

Shapes: P places.
"""

import numpy as np
import numpy.typing as npt

from stages.core.windows import Int64s, Integers

ROUNDS = 6
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_Words = npt.NDArray[np.uint64]


def shuffled(places: Integers, count: int, seed: tuple[int, ...]) -> Int64s:
    """Return which of ``count`` examples comes at each place, [P]: over all places each example once.

    A Feistel network permutes the numbers below the next power of 4 (Luby & Rackoff 1988); what it takes beyond
    ``count`` goes through it again (Black & Rogaway 2002, cycle walking).

    Args:
        places: [P] 0 to count - 1.
        count: all examples.
        seed: another seed gives another order.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    keys = np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint64).astype(np.uint64)
    numbers = np.asarray(places).astype(np.uint64)
    numbers = _permuted(numbers, half, keys)
    while (beyond := numbers >= count).any():
        numbers[beyond] = _permuted(numbers[beyond], half, keys)
    return numbers.astype(np.int64)


def _permuted(numbers: _Words, half: int, keys: _Words) -> _Words:
    """Permute the numbers of 2 ``half`` bits."""
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = numbers >> shift, numbers & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << shift) | right


def _mixed(words: _Words) -> _Words:
    """Mix the bits of words, as SplitMix64 does (Steele et al. 2014)."""
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))
