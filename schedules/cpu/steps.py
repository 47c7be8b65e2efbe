"""Schedule steps shared by the CPU schedules, by block name."""

from __future__ import annotations

from tvm import s_tir


def vectorize(sch: s_tir.Schedule, block: str, vector: int) -> None:
    """Split the innermost loop of ``block`` into unrolled whole vectors."""
    outer, inner = sch.split(sch.get_loops(sch.get_sblock(block))[-1], [None, vector])
    sch.vectorize(inner)
    sch.unroll(outer)


def split_vector(sch: s_tir.Schedule, block: str, vector: int) -> None:
    """As ``vectorize``, and unroll the row loop above it too: a micro-tile in straight line."""
    vectorize(sch, block, vector)
    sch.unroll(sch.get_loops(sch.get_sblock(block))[-3])


def fuse_under(sch: s_tir.Schedule, block: str, loop) -> None:
    """Compute the consumer ``block`` inside the producer's ``loop``."""
    sch.reverse_compute_at(sch.get_sblock(block), loop)


def round_up(size: int, multiple: int) -> int:
    """The least multiple of ``multiple`` that is not below ``size``."""
    return -(-size // multiple) * multiple
