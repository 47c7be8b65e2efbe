"""Schedule steps shared by the CPU schedules, by block name."""

from __future__ import annotations

from tvm import s_tir

from .transpose_tile import register_transpose


def vectorize(sch: s_tir.Schedule, block: str, vector: int) -> None:
    """Split the innermost loop of ``block`` into unrolled whole vectors."""
    outer, inner = sch.split(sch.get_loops(sch.get_sblock(block))[-1], [None, vector])
    sch.vectorize(inner)
    sch.unroll(outer)


def transpose(sch: s_tir.Schedule, block: str, size: int, dtype: str) -> None:
    """``block``, a transposed copy of ``dtype``, in squares of ``size`` words in registers.

    The function needs ``transpose_tile.with_transpose``.
    """
    row, column = sch.get_loops(sch.get_sblock(block))[-2:]
    rows, row = sch.split(row, [None, size])
    columns, column = sch.split(column, [None, size])
    sch.reorder(rows, columns, row, column)
    sch.tensorize(row, register_transpose(size, dtype))


def fuse_under(sch: s_tir.Schedule, block: str, loop) -> None:
    """Compute the consumer ``block`` inside the producer's ``loop``."""
    sch.reverse_compute_at(sch.get_sblock(block), loop)


def round_up(size: int, multiple: int) -> int:
    """The least multiple of ``multiple`` that is not below ``size``."""
    return -(-size // multiple) * multiple
