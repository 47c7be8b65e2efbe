"""The softmax of whole rows in TensorIR: the recurrence of attention without its values."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ....definition.derive.bound import BoundRecurrence
from ....definition.kinds import recurrence_of
from ....definition.signature import Signature
from ....problem.spec import AttentionSpec
from .regions import whole
from .row_blocks import RowBlocks


def row_softmax(spec: AttentionSpec, lanes: int, steps: int, functions) -> tirx.PrimFunc:
    """Online, one pass over a row for its maximum and its sum (Milakov, Gimelshein, 2018).

    A row goes by in blocks of ``steps`` vectors of ``lanes``, each lane with a maximum and a sum of
    its own, which are merged as parts of keys are. A second pass writes the softmax where it is
    asked for.
    """
    sig = Signature(spec, "softmax")
    lines, columns = sig.sizes["lines"], sig.sizes["columns"]
    softmax = BoundRecurrence(recurrence_of("softmax"), functions)
    blocks = RowBlocks(columns, lanes, steps)
    load, store = blocks.load(), blocks.store()
    infinity = tirx.const(float("inf"), "float32")

    @T.prim_func(s_tir=True, check_well_formed=False)
    def rows(x: sig.own("x"), shares: sig.own("shares"), line_lse: sig.own("line_lse")):
        for t in T.serial(lines):
            with T.sblock("row"):
                line = T.axis.spatial(lines, t)
                T.reads(whole([x]))
                T.writes(whole([shares, line_lse]))
                block = T.sblock_alloc_buffer((blocks.width,), "float32")
                m = T.sblock_alloc_buffer((lanes,), "float32")
                m_new = T.sblock_alloc_buffer((lanes,), "float32")
                l = T.sblock_alloc_buffer((lanes,), "float32")
                row = T.sblock_alloc_buffer((3,), "float32")
                for i in T.vectorized(lanes):
                    m[i] = softmax.start("m")
                    l[i] = softmax.nothing("l")
                for n in T.serial(blocks.count):
                    vectors: T.let[T.int64] = blocks.vectors_from(n * blocks.width)
                    load(block, x, line, n * blocks.width, vectors, float("-inf"))
                    for i in T.vectorized(lanes):
                        m_new[i] = m[i]
                    for s in T.serial(vectors):
                        for i in T.vectorized(lanes):
                            m_new[i] = softmax.join("m", m_new[i], block[s * lanes + i])
                    for i in T.vectorized(lanes):
                        l[i] = softmax.repaired(l[i], m[i], m_new[i])
                        m[i] = m_new[i]
                    for s in T.serial(vectors):
                        for i in T.vectorized(lanes):
                            l[i] = softmax.join(
                                "l", l[i], softmax.weight(block[s * lanes + i], m[i])
                            )
                row[0] = softmax.start("m")
                row[1] = softmax.nothing("l")
                for i in T.serial(lanes):
                    row[0] = softmax.join("m", row[0], m[i])
                for i in T.vectorized(lanes):
                    l[i] = softmax.repaired(l[i], m[i], row[0])
                for i in T.serial(lanes):
                    row[1] = softmax.join("l", row[1], l[i])
                line_lse[line] = softmax.lse(row[0], row[1])
                row[2] = softmax.inverse(row[1])
                # The sum of a row with +inf is NaN, as that of one with NaN, which its log tells.
                if row[0] == infinity:
                    line_lse[line] = row[0]
                    for c in T.serial(columns):
                        line_lse[line] = line_lse[line] + T.Select(
                            T.Cast("float32", x[line, c]) <= infinity, T.float32(0), row[1]
                        )
                if shares.shape[0] > 0:
                    for n in T.serial(blocks.count):
                        vectors: T.let[T.int64] = blocks.vectors_from(n * blocks.width)
                        load(block, x, line, n * blocks.width, vectors, float("-inf"))
                        for s in T.serial(vectors):
                            for i in T.vectorized(lanes):
                                block[s * lanes + i] = softmax.out(
                                    softmax.weight(block[s * lanes + i], row[0]), row[2]
                                )
                        store(shares, line, n * blocks.width, block)

    softmax.check(("lse",), "scores", "score_mod", "mask", "pv")
    return sig.finish(rows, f"{spec.name}_fwd")
