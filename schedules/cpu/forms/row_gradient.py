"""The gradient of the softmax of whole rows in TensorIR: that of attention without its values."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ....definition.derive.bound import BoundGradient
from ....definition.kinds import gradient_of
from ....definition.signature import Signature
from ....problem.spec import AttentionSpec
from .regions import whole
from .row_blocks import RowBlocks


def row_gradient(spec: AttentionSpec, lanes: int, steps: int, functions) -> tirx.PrimFunc:
    """dx = P (dP - delta) of each row: of a softmax P and dP are given, and delta is their sum.

    Of a logsumexp P is made of x and line_lse, dP is 0 and delta what it begins with.
    """
    sig = Signature(spec, "softmax_backward")
    through_shares, lines = sig.sizes["shared_lines"], sig.sizes["gradient_lines"]
    softmax = BoundGradient(gradient_of("softmax"), functions)
    columns, dtype, quarter = sig.sizes["columns"], spec.dtype, lanes // 4
    row = RowBlocks(columns, lanes, steps)
    load, store = row.load(), row.store()
    zero = tirx.const(0, "float32")

    @T.prim_func(s_tir=True, check_well_formed=False)
    def rows(
        shares: sig.own("shares"), dshares: sig.own("dshares"), x: sig.own("x"),
        line_lse: sig.own("line_lse"), dline_lse: sig.own("dline_lse"), dx: sig.own("dx"),
    ):  # fmt: skip
        for t in T.serial(lines):
            with T.sblock("row"):
                line = T.axis.spatial(lines, t)
                T.reads(whole([shares, dshares, x, line_lse, dline_lse]))
                T.writes(whole([dx]))
                p = T.sblock_alloc_buffer((row.width,), "float32")
                part = T.sblock_alloc_buffer((lanes,), "float32")
                number = T.sblock_alloc_buffer((2,), "float32")
                if line < through_shares:
                    for i in T.vectorized(lanes):
                        part[i] = zero
                    for n in T.serial(T.truncdiv(columns, T.int64(lanes))):
                        for i in T.vectorized(lanes):
                            part[i] = part[i] + softmax.delta_term(
                                T.Cast("float32", shares[line, n * lanes + i]),
                                T.Cast("float32", dshares[line, n * lanes + i]),
                            )
                    number[0] = softmax.delta_start(zero)
                    for c in T.serial(T.truncmod(columns, T.int64(lanes))):
                        number[0] = number[0] + softmax.delta_term(
                            T.Cast("float32", shares[line, columns - 1 - c]),
                            T.Cast("float32", dshares[line, columns - 1 - c]),
                        )
                    for i in T.vectorized(quarter):
                        part[i] = (part[i] + part[quarter + i]) + (
                            part[2 * quarter + i] + part[3 * quarter + i]
                        )
                    for i in T.serial(quarter):
                        number[0] = number[0] + part[i]
                    for c in T.serial(columns):
                        dx[line, c] = T.Cast(
                            dtype,
                            softmax.derivative(
                                T.Cast("float32", shares[line, c]),
                                T.Cast("float32", dshares[line, c]),
                                number[0],
                            ),
                        )
                else:
                    own: T.let[T.int64] = line - through_shares
                    number[0] = softmax.delta_start(dline_lse[own])
                    number[1] = softmax.row(line_lse[own])
                    for n in T.serial(row.count):
                        vectors: T.let[T.int64] = row.vectors_from(n * row.width)
                        load(p, x, own, n * row.width, vectors, 0)
                        for s in T.serial(vectors):
                            for i in T.vectorized(lanes):
                                p[s * lanes + i] = softmax.derivative(
                                    softmax.weight(p[s * lanes + i], number[1]), zero, number[0]
                                )
                        store(dx, line, n * row.width, p)

    softmax.check("scores", "score_mod", "mask", "dp", "dq", "dk", "dv")
    return sig.finish(rows, f"{spec.name}_softmax_bwd")
