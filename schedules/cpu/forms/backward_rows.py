"""The passes over rows around the backward's blocks: delta before them, the sum of dQ after."""

from __future__ import annotations

from tvm.script import tirx as T

from ....definition.arithmetic import sequences_of
from ....definition.derive.bound import BoundGradient
from ....definition.signature import Signature
from .regions import whole

# Columns in which the row sum of dO o O is added up first: lanes of the widest vector.
PARTS = 16


# An inline function numbers the blocks of its second use: each definition makes its own.


def delta_pass(sig: Signature, gradient: BoundGradient):
    """delta of every row, a sum over columns."""
    entries, rows, sequences = sequences_of(sig).every_query(sig.batch)
    dim_v = sig.spec.head_dim_v

    @T.inline
    def delta_rows(O, dO, dL, delta):
        for b, h, i in T.grid(entries, sig.heads, rows):
            with T.sblock("delta_row"):
                vb, vh, vi = T.axis.remap("SSS", [b, h, i])
                row = T.meta_var(sequences.query(vb, vh, vi, slice(0, dim_v)))
                at = T.meta_var(sequences.statistic(vb, vh, vi))
                T.reads(O[row], dO[row], dL[at])
                T.writes(delta[at])
                part = T.sblock_alloc_buffer((PARTS,), "float32")
                for n, l in T.grid(-(-dim_v // PARTS), PARTS):
                    with T.sblock("delta_part"):
                        vn, vl = T.axis.remap("RS", [n, l])
                        one = T.meta_var(sequences.query(vb, vh, vi, vn * PARTS + vl))
                        with T.init():
                            part[vl] = T.float32(0)
                        part[vl] = part[vl] + T.if_then_else(
                            vn * PARTS + vl < dim_v,
                            gradient.delta_term(
                                T.Cast("float32", O[one]), T.Cast("float32", dO[one])
                            ),
                            T.float32(0),
                        )
                for l in range(PARTS):
                    with T.sblock("delta"):
                        vl = T.axis.reduce(PARTS, l)
                        with T.init():
                            delta[at] = gradient.delta_start(dL[at])
                        delta[at] = delta[at] + part[vl]

    return delta_rows


def dsink_pass(sig: Signature, gradient: BoundGradient):
    """The gradient of each head's sink, a sum over all rows; those of no entry have lse -inf."""
    entries, rows, sequences = sequences_of(sig).every_query(sig.batch)
    with_low = "lse_low" in sig.spec.saved_statistics

    @T.inline
    def dsink_rows(delta, L, L_low, dSink):
        for h in range(sig.heads):
            with T.sblock("dsink_head"):
                vh = T.axis.spatial(sig.heads, h)
                T.reads(whole([delta, L, *[L_low] * with_low, *sig.inputs.values()]))
                T.writes(dSink[vh])
                part = T.sblock_alloc_buffer((PARTS,), "float32")
                weight = T.sblock_alloc_buffer((1,), "float32")
                for l in range(PARTS):
                    with T.sblock("dsink_start"):
                        vl = T.axis.spatial(PARTS, l)
                        part[vl] = T.float32(0)
                for b, i in T.grid(entries, rows):
                    with T.sblock("dsink_row"):
                        vb, vi = T.axis.opaque(entries, b), T.axis.opaque(rows, i)
                        T.reads(whole([delta, L, *[L_low] * with_low, part]))
                        T.writes(whole([part]))
                        at = T.meta_var(sequences.statistic(vb, vh, vi))
                        low = T.meta_var([L_low[at]] * with_low)
                        weight[0] = gradient.weight(
                            sig.inputs["sink"][vh], gradient.row(L[at]), *low
                        )
                        lane = T.meta_var(T.truncmod(vi, PARTS))
                        part[lane] = part[lane] + gradient.by_sink(weight[0], delta[at])
                for l in range(PARTS):
                    with T.sblock("dsink"):
                        vl = T.axis.reduce(PARTS, l)
                        with T.init():
                            dSink[vh] = T.float32(0)
                        dSink[vh] = dSink[vh] + part[vl]

    return dsink_rows


def dq_pass(sig: Signature):
    """dQ of every row = the copies of its sums in A (C, ..., D_pad), added in order."""
    entries, rows, sequences = sequences_of(sig).every_query(sig.batch)
    dim = sig.spec.head_dim

    @T.inline
    def dq_rows(A, dQ):
        for b, h, i in T.grid(entries, sig.heads, rows):
            with T.sblock("dq_row"):
                vb, vh, vi = T.axis.remap("SSS", [b, h, i])
                T.reads(whole([A]))
                T.writes(dQ[sequences.query(vb, vh, vi, slice(0, dim))])
                row = T.sblock_alloc_buffer((A.shape[-1],), "float32")
                for c, d in T.grid(A.shape[0], A.shape[-1]):
                    with T.sblock("sum_copies"):
                        vc, vd = T.axis.remap("RS", [c, d])
                        one = T.meta_var(sequences.gradient_sum(vb, vh, vi, vd))
                        with T.init():
                            row[vd] = T.float32(0)
                        row[vd] = row[vd] + A[(vc, *one)]
                for d in range(dim):
                    with T.sblock("store_dq"):
                        vd = T.axis.spatial(dim, d)
                        dQ[sequences.query(vb, vh, vi, vd)] = T.Cast(dQ.dtype, row[vd])

    return dq_rows
