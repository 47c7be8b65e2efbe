"""Which tiles of a problem a kernel visits: those that the mask or the ends do not hide whole."""

from __future__ import annotations

from ...problem.spec import AttentionSpec
from ...score import variants


def key_tiles(
    spec: AttentionSpec, seqlen_q: int, seqlen_k: int, block_q: int, block_k: int
) -> list[int]:
    """Key tiles that each query tile visits, first rows first.

    A window and causal masks skip tiles; a mask_mod skips none.
    """
    offset = variants.alignment_offset(spec.alignment, seqlen_q, seqlen_k)
    ranges = (
        variants.key_range(spec.window_size, first, last, offset, seqlen_k)
        for first, last in _spans(seqlen_q, block_q)
    )
    return [_covered(low, high, block_k) for low, high, *_ in ranges]


def query_tiles(
    spec: AttentionSpec, seqlen_q: int, seqlen_k: int, block_q: int, block_k: int
) -> list[int]:
    """Query tiles that each key tile visits, first keys first."""
    offset = variants.alignment_offset(spec.alignment, seqlen_q, seqlen_k)
    ranges = (
        variants.query_range(spec.window_size, first, last, offset, seqlen_q)
        for first, last in _spans(seqlen_k, block_k)
    )
    return [_covered(low, high, block_q) for low, high, *_ in ranges]


def _spans(length: int, block: int) -> list[tuple[int, int]]:
    return [(first, min(first + block, length) - 1) for first in range(0, length, block)]


def _covered(low: int, high: int, block: int) -> int:
    """Tiles of ``block`` from low to before high, counted on the grid that begins at 0."""
    return max(-(-high // block) - low // block, 0)
