"""The block sizes and operand precision that a streaming definition is written over."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Operand:
    """How matrix operands are staged: element type and how many neighbours of the reduction
    axis lie side by side (``pack``: 1 for FMA, 2 for bf16 dot products and AMX tiles)."""

    dtype: str = "float32"
    pack: int = 1


@dataclass(frozen=True)
class ForwardTile:
    """Rows of queries and keys per block, and head dims rounded up to what a tile covers.

    Columns and rows past the true sizes are staged as zeros; they change speed, never results.
    """

    block_q: int
    block_k: int
    depth: int
    depth_v: int
    operand: Operand = Operand()


@dataclass(frozen=True)
class BackwardTile:
    """As ForwardTile; ``depth_lanes`` is head_dim rounded up to whole vectors (rows of dQ)."""

    block_q: int
    block_k: int
    depth: int
    depth_v: int
    depth_lanes: int
