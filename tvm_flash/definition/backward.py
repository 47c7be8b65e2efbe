"""Attention backward in TensorIR, streaming: one pass, five products per pair of blocks."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ..spec import AttentionSpec
from .pipeline import Pipeline
from .signature import Signature
from .tiles import BackwardTile


def streaming_backward(spec: AttentionSpec, tile: BackwardTile, math=None) -> tirx.PrimFunc:
    """Gradients by recomputation from lse, one pass over query rows per key tile.

    Per pair of blocks: S and P again, dV += P^T dO, dP = dO V^T, dS = P o (dP - delta) o dscore,
    dQ += dS K, dK += dS^T Q (FlashAttention-2, algorithm 2). Keys are the minor axis of the block
    buffers. Key tiles c, c + C, c + 2C... add their dQ to the private copy c of ``dq_acc``
    (C, B, H, Sq_pad, D_pad) float32, zero on entry; the copies are summed in order at the end, so
    the result is the same bit for bit from run to run, and one batch and head occupies C workers.
    ``delta`` (B, H, Sq) float32 receives rowsum(dO o O) - dlse.
    """
    sig = Signature(spec)
    scores = Pipeline(sig, math)
    B, H, Hk, Sq, Sk = sig.batch, sig.heads, sig.kv_heads, sig.seqlen_q, sig.seqlen_k
    dtype, dim, dim_v, group = spec.dtype, spec.head_dim, spec.head_dim_v, sig.group
    views = sig.backward_views()
    BQ, BK, D, Dv, Dl = tile.block_q, tile.block_k, tile.depth, tile.depth_v, tile.depth_lanes
    copies, rows_pad = tirx.Var("C", "int64"), tirx.Var("Sq_pad", "int64")
    k_tiles = T.truncdiv(Sk + (BK - 1), BK)

    @T.prim_func(s_tir=True, check_well_formed=False)
    def attention(
        q: T.handle, k: T.handle, v: T.handle, o: T.handle, do: T.handle, lse: T.handle,
        dlse: T.handle, dq: T.handle, dk: T.handle, dv: T.handle, delta: T.handle,
        dq_acc: T.handle, softmax_scale: T.float32,
    ):  # fmt: skip
        Q = T.match_buffer(q, views[0].shape, dtype, strides=views[0].strides)
        K = T.match_buffer(k, views[1].shape, dtype, strides=views[1].strides)
        V = T.match_buffer(v, views[2].shape, dtype, strides=views[2].strides)
        O = T.match_buffer(o, views[3].shape, dtype, strides=views[3].strides)
        dO = T.match_buffer(do, views[4].shape, dtype, strides=views[4].strides)
        L = T.match_buffer(lse, sig.rows, "float32")
        dL = T.match_buffer(dlse, sig.rows, "float32")
        dQ = T.match_buffer(dq, views[5].shape, dtype, strides=views[5].strides)
        dK = T.match_buffer(dk, views[6].shape, dtype, strides=views[6].strides)
        dV = T.match_buffer(dv, views[7].shape, dtype, strides=views[7].strides)
        delta_r = T.match_buffer(delta, sig.rows, "float32")
        A = T.match_buffer(dq_acc, (copies, B, H, rows_pad, Dl), "float32")
        for b, h, i in T.grid(B, H, Sq):
            for d in range(dim_v):
                with T.sblock("delta"):
                    vb, vh, vi, vd = T.axis.remap("SSSR", [b, h, i, d])
                    with T.init():
                        delta_r[vb, vh, vi] = -dL[vb, vh, vi]
                    delta_r[vb, vh, vi] = delta_r[vb, vh, vi] + T.Cast(
                        "float32", O[vb, vi, vh, vd]
                    ) * T.Cast("float32", dO[vb, vi, vh, vd])
        for t in T.serial(B * Hk * copies):
            with T.sblock("worker"):
                vt = T.axis.spatial(B * Hk * copies, t)
                T.reads(
                    Q[0:B, 0:Sq, 0:H, 0:dim],
                    K[0:B, 0:Sk, 0:Hk, 0:dim],
                    V[0:B, 0:Sk, 0:Hk, 0:dim_v],
                    dO[0:B, 0:Sq, 0:H, 0:dim_v],
                    delta_r[0:B, 0:H, 0:Sq],
                    L[0:B, 0:H, 0:Sq],
                )
                T.writes(
                    A[0:copies, 0:B, 0:H, 0:rows_pad, 0:Dl],
                    dK[0:B, 0:Sk, 0:Hk, 0:dim],
                    dV[0:B, 0:Sk, 0:Hk, 0:dim_v],
                )
                b: T.let[T.int64] = T.truncdiv(vt, Hk * copies)
                hk: T.let[T.int64] = T.truncmod(T.truncdiv(vt, copies), Hk)
                c: T.let[T.int64] = T.truncmod(vt, copies)
                keys: T.let[T.int32] = T.Cast("int32", Sk)
                Kt = T.sblock_alloc_buffer((D, BK), "float32")
                Vt = T.sblock_alloc_buffer((Dv, BK), "float32")
                Kb = T.sblock_alloc_buffer((BK, Dl), "float32")
                Qb = T.sblock_alloc_buffer((BQ, D), "float32")
                dOb = T.sblock_alloc_buffer((BQ, Dv), "float32")
                lse_b = T.sblock_alloc_buffer((BQ,), "float32")
                delta_b = T.sblock_alloc_buffer((BQ,), "float32")
                S = T.sblock_alloc_buffer((BQ, BK), "float32")
                X = T.sblock_alloc_buffer((BQ, BK), "float32")
                Y = T.sblock_alloc_buffer((BQ, BK), "float32")
                P = T.sblock_alloc_buffer((BQ, BK), "float32")
                dP = T.sblock_alloc_buffer((BQ, BK), "float32")
                dS = T.sblock_alloc_buffer((BQ, BK), "float32")
                dKt = T.sblock_alloc_buffer((D, BK), "float32")
                dVt = T.sblock_alloc_buffer((Dv, BK), "float32")
                for n in T.serial(T.truncdiv(k_tiles - c + copies - 1, copies)):
                    with T.sblock("k_tile"):
                        vn = T.axis.opaque(T.truncdiv(k_tiles - c + copies - 1, copies), n)
                        T.reads(
                            Q[0:B, 0:Sq, 0:H, 0:dim],
                            K[0:B, 0:Sk, 0:Hk, 0:dim],
                            V[0:B, 0:Sk, 0:Hk, 0:dim_v],
                            dO[0:B, 0:Sq, 0:H, 0:dim_v],
                            delta_r[0:B, 0:H, 0:Sq],
                            L[0:B, 0:H, 0:Sq],
                        )
                        T.writes(
                            A[0:copies, 0:B, 0:H, 0:rows_pad, 0:Dl],
                            dK[0:B, 0:Sk, 0:Hk, 0:dim],
                            dV[0:B, 0:Sk, 0:Hk, 0:dim_v],
                        )
                        k0: T.let[T.int32] = T.Cast("int32", (vn * copies + c) * BK)
                        bounds = T.meta_var(scores.query_range(k0, T.min(k0 + BK, keys) - 1))
                        first: T.let[T.int32] = T.truncdiv(bounds[0], BQ)
                        last: T.let[T.int32] = T.truncdiv(bounds[1] + (BQ - 1), BQ)
                        full_lo: T.let[T.int32] = bounds[2]
                        full_hi: T.let[T.int32] = bounds[3]
                        for j, d in T.grid(BK, D):
                            with T.sblock("load_kt"):
                                vj, vd = T.axis.remap("SS", [j, d])
                                Kt[vd, vj] = T.if_then_else(
                                    T.And(k0 + vj < keys, vd < dim),
                                    T.Cast("float32", K[b, k0 + vj, hk, vd]),
                                    T.float32(0),
                                )
                        for j, d in T.grid(BK, Dl):
                            with T.sblock("load_k"):
                                vj, vd = T.axis.remap("SS", [j, d])
                                Kb[vj, vd] = T.if_then_else(
                                    T.And(k0 + vj < keys, vd < dim),
                                    T.Cast("float32", K[b, k0 + vj, hk, vd]),
                                    T.float32(0),
                                )
                        for j, d in T.grid(BK, Dv):
                            with T.sblock("load_vt"):
                                vj, vd = T.axis.remap("SS", [j, d])
                                Vt[vd, vj] = T.if_then_else(
                                    T.And(k0 + vj < keys, vd < dim_v),
                                    T.Cast("float32", V[b, k0 + vj, hk, vd]),
                                    T.float32(0),
                                )
                        for d, j in T.grid(D, BK):
                            with T.sblock("init_dk"):
                                vd, vj = T.axis.remap("SS", [d, j])
                                dKt[vd, vj] = T.float32(0)
                        for d, j in T.grid(Dv, BK):
                            with T.sblock("init_dv"):
                                vd, vj = T.axis.remap("SS", [d, j])
                                dVt[vd, vj] = T.float32(0)
                        for g, m in T.grid(group, T.max(last - first, 0)):
                            with T.sblock("q_block"):
                                vg = T.axis.opaque(group, g)
                                vm = T.axis.opaque(T.max(last - first, 0), m)
                                T.reads(
                                    Q[0:B, 0:Sq, 0:H, 0:dim],
                                    dO[0:B, 0:Sq, 0:H, 0:dim_v],
                                    delta_r[0:B, 0:H, 0:Sq],
                                    L[0:B, 0:H, 0:Sq],
                                    Kt[0:D, 0:BK],
                                    Vt[0:Dv, 0:BK],
                                    Kb[0:BK, 0:Dl],
                                    dKt[0:D, 0:BK],
                                    dVt[0:Dv, 0:BK],
                                )
                                T.writes(
                                    A[0:copies, 0:B, 0:H, 0:rows_pad, 0:Dl],
                                    Qb[0:BQ, 0:D],
                                    dOb[0:BQ, 0:Dv],
                                    lse_b[0:BQ],
                                    delta_b[0:BQ],
                                    S[0:BQ, 0:BK],
                                    X[0:BQ, 0:BK],
                                    Y[0:BQ, 0:BK],
                                    P[0:BQ, 0:BK],
                                    dP[0:BQ, 0:BK],
                                    dS[0:BQ, 0:BK],
                                    dKt[0:D, 0:BK],
                                    dVt[0:Dv, 0:BK],
                                )
                                h: T.let[T.int64] = hk * group + vg
                                q0: T.let[T.int64] = T.Cast("int64", (first + vm) * BQ)
                                boundary: T.let[T.bool] = T.Or(
                                    T.Or(
                                        (first + vm) * BQ < full_lo, (first + vm + 1) * BQ > full_hi
                                    ),
                                    k0 + BK > keys,
                                )
                                for i, d in T.grid(BQ, D):
                                    with T.sblock("load_q"):
                                        vi, vd = T.axis.remap("SS", [i, d])
                                        Qb[vi, vd] = T.if_then_else(
                                            T.And(q0 + vi < Sq, vd < dim),
                                            T.Cast("float32", Q[b, q0 + vi, h, vd]),
                                            T.float32(0),
                                        )
                                for i, d in T.grid(BQ, Dv):
                                    with T.sblock("load_do"):
                                        vi, vd = T.axis.remap("SS", [i, d])
                                        dOb[vi, vd] = T.if_then_else(
                                            T.And(q0 + vi < Sq, vd < dim_v),
                                            T.Cast("float32", dO[b, q0 + vi, h, vd]),
                                            T.float32(0),
                                        )
                                for i in range(BQ):
                                    with T.sblock("load_delta"):
                                        vi = T.axis.spatial(BQ, i)
                                        delta_b[vi] = T.if_then_else(
                                            q0 + vi < Sq, delta_r[b, h, q0 + vi], T.float32(0)
                                        )
                                for i in range(BQ):
                                    with T.sblock("load_lse"):
                                        vi = T.axis.spatial(BQ, i)
                                        lse_b[vi] = T.if_then_else(
                                            q0 + vi < Sq,
                                            scores.log2_lse(L[b, h, q0 + vi]),
                                            T.float32("inf"),
                                        )
                                with T.sblock("p_scope"):
                                    T.reads(Qb[0:BQ, 0:D], Kt[0:D, 0:BK], lse_b[0:BQ])
                                    T.writes(
                                        S[0:BQ, 0:BK], X[0:BQ, 0:BK], Y[0:BQ, 0:BK], P[0:BQ, 0:BK]
                                    )
                                    for i, j, d in T.grid(BQ, BK, D):
                                        with T.sblock("scores"):
                                            vi, vj, vd = T.axis.remap("SSR", [i, j, d])
                                            with T.init():
                                                S[vi, vj] = T.float32(0)
                                            S[vi, vj] = S[vi, vj] + Qb[vi, vd] * Kt[vd, vj]
                                    for i, j in T.grid(BQ, BK):
                                        with T.sblock("score_mod"):
                                            vi, vj = T.axis.remap("SS", [i, j])
                                            X[vi, vj] = scores.scaled(
                                                S[vi, vj], b, h, q0 + vi, k0 + vj, softmax_scale
                                            )
                                    for i, j in T.grid(BQ, BK):
                                        with T.sblock("mask"):
                                            vi, vj = T.axis.remap("SS", [i, j])
                                            Y[vi, vj] = scores.hidden(
                                                X[vi, vj],
                                                boundary,
                                                b,
                                                h,
                                                q0 + vi,
                                                k0 + vj,
                                                softmax_scale,
                                            )
                                    for i, j in T.grid(BQ, BK):
                                        with T.sblock("p"):
                                            vi, vj = T.axis.remap("SS", [i, j])
                                            P[vi, vj] = scores.exp2(Y[vi, vj] - lse_b[vi])
                                with T.sblock("ds_scope"):
                                    T.reads(
                                        dOb[0:BQ, 0:Dv],
                                        Vt[0:Dv, 0:BK],
                                        P[0:BQ, 0:BK],
                                        S[0:BQ, 0:BK],
                                        delta_b[0:BQ],
                                    )
                                    T.writes(dP[0:BQ, 0:BK], dS[0:BQ, 0:BK])
                                    for i, j, d in T.grid(BQ, BK, Dv):
                                        with T.sblock("dp"):
                                            vi, vj, vd = T.axis.remap("SSR", [i, j, d])
                                            with T.init():
                                                dP[vi, vj] = T.float32(0)
                                            dP[vi, vj] = dP[vi, vj] + dOb[vi, vd] * Vt[vd, vj]
                                    for i, j in T.grid(BQ, BK):
                                        with T.sblock("ds"):
                                            vi, vj = T.axis.remap("SS", [i, j])
                                            dS[vi, vj] = scores.dscore(
                                                P[vi, vj], dP[vi, vj], delta_b[vi], S[vi, vj],
                                                b, h, q0 + vi, k0 + vj, softmax_scale,
                                            )  # fmt: skip
                                with T.sblock("dq_scope"):
                                    T.reads(dS[0:BQ, 0:BK], Kb[0:BK, 0:Dl])
                                    T.writes(A[c, b, h, q0 : q0 + BQ, 0:Dl])
                                    for i, d, j in T.grid(BQ, Dl, BK):
                                        with T.sblock("dq"):
                                            vi, vd, vj = T.axis.remap("SSR", [i, d, j])
                                            A[c, b, h, q0 + vi, vd] = (
                                                A[c, b, h, q0 + vi, vd] + dS[vi, vj] * Kb[vj, vd]
                                            )
                                with T.sblock("dv_scope"):
                                    T.reads(dOb[0:BQ, 0:Dv], P[0:BQ, 0:BK])
                                    T.writes(dVt[0:Dv, 0:BK])
                                    for d, j, i in T.grid(Dv, BK, BQ):
                                        with T.sblock("dv"):
                                            vd, vj, vi = T.axis.remap("SSR", [d, j, i])
                                            dVt[vd, vj] = dVt[vd, vj] + dOb[vi, vd] * P[vi, vj]
                                with T.sblock("dk_scope"):
                                    T.reads(Qb[0:BQ, 0:D], dS[0:BQ, 0:BK])
                                    T.writes(dKt[0:D, 0:BK])
                                    for d, j, i in T.grid(D, BK, BQ):
                                        with T.sblock("dk"):
                                            vd, vj, vi = T.axis.remap("SSR", [d, j, i])
                                            dKt[vd, vj] = dKt[vd, vj] + Qb[vi, vd] * dS[vi, vj]
                        for j, d in T.grid(BK, dim):
                            with T.sblock("store_dk"):
                                T.where(k0 + j < keys)
                                vj, vd = T.axis.remap("SS", [j, d])
                                dK[b, k0 + vj, hk, vd] = T.Cast(dtype, dKt[vd, vj])
                        for j, d in T.grid(BK, dim_v):
                            with T.sblock("store_dv"):
                                T.where(k0 + j < keys)
                                vj, vd = T.axis.remap("SS", [j, d])
                                dV[b, k0 + vj, hk, vd] = T.Cast(dtype, dVt[vd, vj])
        for b, h, i in T.grid(B, H, Sq):
            with T.sblock("dq_row"):
                vb, vh, vi = T.axis.remap("SSS", [b, h, i])
                T.reads(A[0:copies, 0:B, 0:H, 0:rows_pad, 0:Dl])
                T.writes(dQ[vb, vi, vh, 0:dim])
                row = T.sblock_alloc_buffer((Dl,), "float32")
                for c, d in T.grid(copies, Dl):
                    with T.sblock("sum_copies"):
                        vc, vd = T.axis.remap("RS", [c, d])
                        with T.init():
                            row[vd] = T.float32(0)
                        row[vd] = row[vd] + A[vc, vb, vh, vi, vd]
                for d in range(dim):
                    with T.sblock("store_dq"):
                        vd = T.axis.spatial(dim, d)
                        dQ[vb, vi, vh, vd] = T.Cast(dtype, row[vd])

    return sig.finish(attention, f"{spec.name}_bwd")
