"""The two passes over rows around the backward's blocks: delta before them, the sum of dQ after."""

from __future__ import annotations

from tvm.script import tirx as T

from ....definition.derive.bound import BoundGradient
from .regions import whole

# Columns in which the row sum of dO o O is added up first: lanes of the widest vector.
PARTS = 16


# An inline function numbers the blocks of its second use: each definition makes its own.


def delta_pass(gradient: BoundGradient):
    """delta (B, H, Sq) of the rows, a sum over columns of O and dO (B, Sq, H, dim_v)."""

    @T.inline
    def delta_rows(O, dO, dL, delta, dim_v):
        for b, h, i in T.grid(*dL.shape):
            with T.sblock("delta_row"):
                vb, vh, vi = T.axis.remap("SSS", [b, h, i])
                T.reads(O[vb, vi, vh, 0:dim_v], dO[vb, vi, vh, 0:dim_v], dL[vb, vh, vi])
                T.writes(delta[vb, vh, vi])
                part = T.sblock_alloc_buffer((PARTS,), "float32")
                for n, l in T.grid(-(-dim_v // PARTS), PARTS):
                    with T.sblock("delta_part"):
                        vn, vl = T.axis.remap("RS", [n, l])
                        with T.init():
                            part[vl] = T.float32(0)
                        part[vl] = part[vl] + T.if_then_else(
                            vn * PARTS + vl < dim_v,
                            gradient.delta_term(
                                T.Cast("float32", O[vb, vi, vh, vn * PARTS + vl]),
                                T.Cast("float32", dO[vb, vi, vh, vn * PARTS + vl]),
                            ),
                            T.float32(0),
                        )
                for l in range(PARTS):
                    with T.sblock("delta"):
                        vl = T.axis.reduce(PARTS, l)
                        with T.init():
                            delta[vb, vh, vi] = gradient.delta_start(dL[vb, vh, vi])
                        delta[vb, vh, vi] = delta[vb, vh, vi] + part[vl]

    return delta_rows


def dq_pass():
    """dQ (B, Sq, H, dim) = the copies of A (C, B, H, Sq_pad, D_pad) added in order; rows: dQ's."""

    @T.inline
    def dq_rows(A, dQ, rows, dim):
        for b, h, i in T.grid(*rows):
            with T.sblock("dq_row"):
                vb, vh, vi = T.axis.remap("SSS", [b, h, i])
                T.reads(whole([A]))
                T.writes(dQ[vb, vi, vh, 0:dim])
                row = T.sblock_alloc_buffer((A.shape[4],), "float32")
                for c, d in T.grid(A.shape[0], A.shape[4]):
                    with T.sblock("sum_copies"):
                        vc, vd = T.axis.remap("RS", [c, d])
                        with T.init():
                            row[vd] = T.float32(0)
                        row[vd] = row[vd] + A[vc, vb, vh, vi, vd]
                for d in range(dim):
                    with T.sblock("store_dq"):
                        vd = T.axis.spatial(dim, d)
                        dQ[vb, vi, vh, vd] = T.Cast(dQ.dtype, row[vd])

    return dq_rows
