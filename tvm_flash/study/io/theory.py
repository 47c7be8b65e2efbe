"""Bytes that attention moves without a cache: exact per schedule, and as the theorem has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

# Bytes of an element of q, k, v, out, S and P, and of the float32 statistics and sums.
HALF, FLOAT = 2, 4

STANDARD, ORIGINAL, FLASH2 = "standard", "FlashAttention-1", "FlashAttention-2"


def memory_elements(tile: int, head_dim: int) -> int:
    """M, the on-chip memory in elements that a tile side stands for.

    Dao et al. (2022), algorithm 1, line 1: four blocks of B_c = M / (4 d) rows of d elements.
    """
    return 4 * tile * head_dim


def least_bytes(seqlen: int, head_dim: int) -> int:
    """q, k, v read once, out and lse written once: what no algorithm goes below."""
    return 4 * HALF * seqlen * head_dim + FLOAT * seqlen


def flash2_bytes(seqlen: int, head_dim: int, tile: int) -> int:
    """FlashAttention-2: q, out, lse once, and all of K and V again for each query block."""
    return least_bytes(seqlen, head_dim) + (_blocks(seqlen, tile) - 1) * _keys(seqlen, head_dim)


def standard_bytes(seqlen: int, head_dim: int, tile: int) -> int:
    """Standard attention: what FlashAttention-2 moves, and S and P written and read once each.

    The columns of S and P are padded to the key tile (``key_tile``). Rows of up to 1024 keys, which
    the softmax keeps in registers; of longer ones it reads the rest of S a second time.
    """
    width = _blocks(seqlen, key_tile(tile)) * key_tile(tile)
    reread = max(width - 1024, 0)
    return flash2_bytes(seqlen, head_dim, tile) + HALF * seqlen * (4 * width + reread)


def original_bytes(seqlen: int, head_dim: int, tile: int) -> int:
    """FlashAttention-1: K and V once; for each key block q read, and O (float32), l and m both
    read and written. O, l and m are written once before that and read once after it.
    """
    row = FLOAT * (head_dim + 2)
    step = HALF * head_dim + 2 * row
    ends = 2 * row + HALF * head_dim + FLOAT
    return _keys(seqlen, head_dim) + seqlen * (_blocks(seqlen, tile) * step + ends)


def key_tile(tile: int) -> int:
    """Keys of a tile whose query rows are the side that counts; S and P are padded to it."""
    return min(tile, 64)


EXACT: dict[str, Callable[[int, int, int], int]] = {
    STANDARD: standard_bytes, ORIGINAL: original_bytes, FLASH2: flash2_bytes,
}  # fmt: skip

# Terms of the theorem and of the lower order, functions of N, d and M.
TERMS: dict[str, Callable[[float, float, float], float]] = {
    "N d": lambda n, d, m: n * d,
    "N^2": lambda n, d, m: n * n,
    "N^2 d^2 / M": lambda n, d, m: n * n * d * d / m,
}
# Dao et al. (2022), theorem 2.
THEOREM = {
    STANDARD: ("N d", "N^2"),
    ORIGINAL: ("N^2 d^2 / M",),
    FLASH2: ("N^2 d^2 / M",),
}


@dataclass(frozen=True)
class Fit:
    """bytes = sum of constant * term; deviation: the largest relative one over the points."""

    constants: dict[str, float]
    deviation: float

    def __call__(self, seqlen: float, head_dim: int, tile: float) -> float:
        place = (seqlen, head_dim, memory_elements(tile, head_dim))
        return sum(c * TERMS[name](*place) for name, c in self.constants.items())


def fit(terms: Sequence[str], points: Sequence[tuple[int, int, int, int]]) -> Fit:
    """Least squares of the relative error over points (seqlen, head_dim, tile, bytes)."""
    places = [(n, d, memory_elements(tile, d)) for n, d, tile, _ in points]
    counted = np.array([count for *_, count in points], float)
    matrix = (
        np.array([[TERMS[name](*place) for name in terms] for place in places]) / counted[:, None]
    )
    constants = np.linalg.lstsq(matrix, np.ones(len(points)), rcond=None)[0]
    deviation = np.abs(matrix @ constants - 1).max()
    # Rounded, so that every machine writes the same document; + 0.0 takes the sign off a zero.
    found = [round(float(constant), 6) + 0.0 for constant in constants]
    return Fit(dict(zip(terms, found, strict=True)), round(float(deviation), 6))


def _keys(seqlen: int, head_dim: int) -> int:
    return 2 * HALF * seqlen * head_dim


def _blocks(length: int, size: int) -> int:
    return -(-length // size)
