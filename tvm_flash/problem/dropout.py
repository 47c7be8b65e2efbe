"""Which attention weights dropout drops: Philox words of their positions (Salmon et al., 2011).

A word of 32 bits for each (seed, offset; entry b, query head h, query, key), positions counted
inside the entry: no tile, thread, layout or direction changes it. Plain arithmetic, which numpy
and compilers carry out alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Philox-4x32: what the words 0 and 2 are multiplied by, what keys grow by each round.
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = 0xFFFFFFFF
# For the key of an entry and head, and for the words of its weights: seven rounds are the fewest
# that pass BigCrush (Salmon et al., table 2).
KEY_ROUNDS, ROUNDS = 10, 7
# Bit 3 of a query and of a key chooses among the four words of a call. The queries q and q + 8 and
# the keys k and k + 8 are what a thread has in a tensor core's result, S and S^T alike.
SIDE = 8


@dataclass(frozen=True)
class Words:
    """How words of 32 bits are computed; they may have more bits, which nobody reads.

    constant: of an int. multiply: (high, low) word of the product of an int and a word.
    """

    constant: Callable[[int], Any]
    multiply: Callable[[int, Any], tuple[Any, Any]]


def philox(counter: Sequence, key: Sequence, rounds: int, words: Words) -> tuple:
    """Philox-4x32: four words of a ``counter`` of four and a ``key`` of two."""
    c0, c1, c2, c3 = counter
    for number in range(rounds):
        high0, low0 = words.multiply(MULTIPLIERS[0], c0)
        high1, low1 = words.multiply(MULTIPLIERS[1], c2)
        k0, k1 = (
            k + words.constant(number * step & WORD) if number else k
            for k, step in zip(key, WEYL, strict=True)
        )
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return c0, c1, c2, c3


def head_key(seed: Sequence, offset: Sequence, b, h, words: Words) -> tuple:
    """What the weights of entry ``b`` and query head ``h`` are drawn with: four words.

    seed, offset: (low, high) word of each.
    """
    return philox((b, h, *offset), seed, KEY_ROUNDS, words)


def square(key: Sequence, row, column, words: Words) -> tuple:
    """The words of queries {q, q + 8} and keys {k, k + 8}: of (q, k), (q + 8, k), (q, k + 8) and
    (q + 8, k + 8).

    key: of ``head_key``. row, column: the numbers of q and of k among those without bit 3.
    """
    return philox((row, column, *key[2:]), key[:2], ROUNDS, words)


def without_side(position):
    """The number of ``position`` among those that have bit 3 as 0 or 1, whichever it has."""
    return (position >> 4) * SIDE + (position & (SIDE - 1))


def threshold_of(probability: float) -> int:
    """A weight is kept where its word is this or more."""
    return int(np.float32(probability) * np.float32(2.0**32))


def factor_of(probability: float) -> float:
    """What weights that are kept are multiplied by: their expectation stays what it was."""
    return float(np.float32(1) / (np.float32(1) - np.float32(probability)))


def kept(probability: float, rng: Sequence[int], sizes: Sequence[int]) -> np.ndarray:
    """Which weights of ``sizes`` (B, H, Sq, Sk) are kept, bool; rng: (seed, offset), int64."""
    b, h, q, k = np.ix_(*(np.arange(size, dtype=np.uint64) for size in sizes))
    seed, offset = ((np.uint64(x & WORD), np.uint64(x >> 32 & WORD)) for x in rng)
    key = head_key(seed, offset, b, h, NUMPY)
    words = square(key, without_side(q), without_side(k), NUMPY)
    lower_q, lower_k = (q & SIDE) > 0, (k & SIDE) > 0
    first, second = (np.where(lower_q, words[n + 1], words[n]) for n in (0, 2))
    chosen = np.where(lower_k, second, first)
    return (chosen & np.uint64(WORD)) >= threshold_of(probability)


def _product(constant: int, word) -> tuple:
    product = (word & np.uint64(WORD)) * np.uint64(constant)
    return product >> np.uint64(32), product


NUMPY = Words(constant=np.uint64, multiply=_product)
