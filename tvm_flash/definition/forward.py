"""Attention forward in TensorIR, streaming: online softmax over key blocks."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ..spec import AttentionSpec
from .pipeline import FLOOR, Pipeline
from .signature import Signature
from .tiles import ForwardTile


def streaming_forward(spec: AttentionSpec, tile: ForwardTile, math=None) -> tirx.PrimFunc:
    """The same function with an online softmax over key blocks (FlashAttention, algorithm 1).

    Query rows are the minor axis of every block buffer: row statistics are then elementwise over
    lanes. Blocks outside the visible key range are not visited, blocks inside the fully visible
    range pay no mask. ``math`` gives the vector forms of exp2 and friends (None: intrinsics).
    Each product sits in its own nested sblock, which is what lets Schedule tile it.
    """
    sig = Signature(spec)
    scores = Pipeline(sig, math)
    B, H, Sq, Sk = sig.batch, sig.heads, sig.seqlen_q, sig.seqlen_k
    with_lse = spec.returns == "out_lse"
    dtype, dim, dim_v, group = spec.dtype, spec.head_dim, spec.head_dim_v, sig.group
    q_view, k_view, v_view, o_view = sig.query("q"), sig.key("k"), sig.value("v"), sig.output("o")
    BQ, BK, D, Dv = tile.block_q, tile.block_k, tile.depth, tile.depth_v
    operand, pack = tile.operand, tile.operand.pack
    q_blocks = T.truncdiv(Sq + (BQ - 1), BQ)

    def words(buffer, index, inside, columns):
        """Staged word of ``pack`` neighbouring columns, zero outside."""
        return operand.encode(*[_padded(buffer, index(e), inside, columns) for e in range(pack)])

    def row_words(buffer, index, rows, columns):
        """Staged word of one column of ``pack`` neighbouring rows, zero outside."""
        parts = [_padded(buffer, index(e), index(e)[1] < rows, columns) for e in range(pack)]
        return operand.encode(*parts)

    @T.prim_func(s_tir=True, check_well_formed=False)
    def attention(
        q: T.handle, k: T.handle, v: T.handle, o: T.handle, lse: T.handle, softmax_scale: T.float32
    ):
        Q = T.match_buffer(q, q_view.shape, dtype, strides=q_view.strides)
        K = T.match_buffer(k, k_view.shape, dtype, strides=k_view.strides)
        V = T.match_buffer(v, v_view.shape, dtype, strides=v_view.strides)
        O = T.match_buffer(o, o_view.shape, dtype, strides=o_view.strides)
        L = T.match_buffer(lse, sig.rows, "float32")
        for t in T.serial(B * H * q_blocks):
            with T.sblock("q_tile"):
                vt = T.axis.spatial(B * H * q_blocks, t)
                T.reads(
                    Q[0:B, 0:Sq, 0:H, 0:dim],
                    K[0:B, 0:Sk, 0 : sig.kv_heads, 0:dim],
                    V[0:B, 0:Sk, 0 : sig.kv_heads, 0:dim_v],
                )
                if with_lse:
                    T.writes(O[0:B, 0:Sq, 0:H, 0:dim_v], L[0:B, 0:H, 0:Sq])
                else:
                    T.writes(O[0:B, 0:Sq, 0:H, 0:dim_v])
                b: T.let[T.int64] = T.truncdiv(vt, H * q_blocks)
                h: T.let[T.int64] = T.truncmod(T.truncdiv(vt, q_blocks), H)
                hk: T.let[T.int64] = T.truncdiv(h, group)
                # Last rows first: with a causal mask they take longest, and go out first.
                q0: T.let[T.int64] = (q_blocks - 1 - T.truncmod(vt, q_blocks)) * BQ
                bounds = T.meta_var(scores.key_range(q0, T.min(q0 + BQ, Sq) - 1))
                first: T.let[T.int32] = T.truncdiv(bounds[0], BK)
                last: T.let[T.int32] = T.truncdiv(bounds[1] + (BK - 1), BK)
                full_lo: T.let[T.int32] = bounds[2]
                full_hi: T.let[T.int32] = bounds[3]
                keys: T.let[T.int32] = T.Cast("int32", Sk)
                Qt = T.sblock_alloc_buffer((D // pack, BQ), operand.dtype)
                Kb = T.sblock_alloc_buffer((BK, D // pack), operand.dtype)
                Vb = T.sblock_alloc_buffer((BK // pack, Dv), operand.dtype)
                S = T.sblock_alloc_buffer((BK, BQ), "float32")
                X = T.sblock_alloc_buffer((BK, BQ), "float32")
                Y = T.sblock_alloc_buffer((BK, BQ), "float32")
                P = T.sblock_alloc_buffer((BK // pack, BQ), operand.dtype)
                E = T.sblock_alloc_buffer((BK, BQ), "float32")
                m = T.sblock_alloc_buffer((BQ,), "float32")
                m_new = T.sblock_alloc_buffer((BQ,), "float32")
                l = T.sblock_alloc_buffer((BQ,), "float32")
                l_new = T.sblock_alloc_buffer((BQ,), "float32")
                alpha = T.sblock_alloc_buffer((BQ,), "float32")
                l_inv = T.sblock_alloc_buffer((BQ,), "float32")
                acc = T.sblock_alloc_buffer((Dv, BQ), "float32")
                out_t = T.sblock_alloc_buffer((Dv, BQ), "float32")
                for i, d in T.grid(BQ, D // pack):
                    with T.sblock("load_q"):
                        vi, vd = T.axis.remap("SS", [i, d])
                        Qt[vd, vi] = words(
                            Q, lambda e: (b, q0 + vi, h, vd * pack + e), q0 + vi < Sq, dim
                        )
                for i in range(BQ):
                    with T.sblock("init_m"):
                        vi = T.axis.spatial(BQ, i)
                        m[vi] = T.float32(FLOOR)
                for i in range(BQ):
                    with T.sblock("init_l"):
                        vi = T.axis.spatial(BQ, i)
                        l[vi] = T.float32(0)
                for d, i in T.grid(Dv, BQ):
                    with T.sblock("init_acc"):
                        vd, vi = T.axis.remap("SS", [d, i])
                        acc[vd, vi] = T.float32(0)
                for n in range(T.max(last - first, 0)):
                    with T.sblock("k_block"):
                        vn = T.axis.opaque(T.max(last - first, 0), n)
                        T.reads(
                            Q[0:B, 0:Sq, 0:H, 0:dim],
                            K[0:B, 0:Sk, 0 : sig.kv_heads, 0:dim],
                            V[0:B, 0:Sk, 0 : sig.kv_heads, 0:dim_v],
                            Qt[0 : D // pack, 0:BQ],
                            m[0:BQ],
                            l[0:BQ],
                            acc[0:Dv, 0:BQ],
                        )
                        T.writes(
                            Kb[0:BK, 0 : D // pack],
                            Vb[0 : BK // pack, 0:Dv],
                            S[0:BK, 0:BQ],
                            X[0:BK, 0:BQ],
                            Y[0:BK, 0:BQ],
                            E[0:BK, 0:BQ],
                            P[0 : BK // pack, 0:BQ],
                            m[0:BQ],
                            m_new[0:BQ],
                            l[0:BQ],
                            l_new[0:BQ],
                            alpha[0:BQ],
                            acc[0:Dv, 0:BQ],
                        )
                        k0: T.let[T.int32] = (first + vn) * BK
                        boundary: T.let[T.bool] = T.Or(k0 < full_lo, k0 + BK > full_hi)
                        for j, d in T.grid(BK, D // pack):
                            with T.sblock("load_k"):
                                vj, vd = T.axis.remap("SS", [j, d])
                                Kb[vj, vd] = words(
                                    K,
                                    lambda e: (b, k0 + vj, hk, vd * pack + e),
                                    k0 + vj < keys,
                                    dim,
                                )
                        for j, d in T.grid(BK // pack, Dv):
                            with T.sblock("load_v"):
                                vj, vd = T.axis.remap("SS", [j, d])
                                Vb[vj, vd] = row_words(
                                    V, lambda e: (b, k0 + vj * pack + e, hk, vd), keys, dim_v
                                )
                        with T.sblock("score_scope"):
                            T.reads(Qt[0 : D // pack, 0:BQ], Kb[0:BK, 0 : D // pack], m[0:BQ])
                            T.writes(S[0:BK, 0:BQ], X[0:BK, 0:BQ], Y[0:BK, 0:BQ], m_new[0:BQ])
                            for j, i, d in T.grid(BK, BQ, D // pack):
                                with T.sblock("scores"):
                                    vj, vi, vd = T.axis.remap("SSR", [j, i, d])
                                    with T.init():
                                        S[vj, vi] = T.float32(0)
                                    S[vj, vi] = S[vj, vi] + operand.dot(Kb[vj, vd], Qt[vd, vi])
                            for j, i in T.grid(BK, BQ):
                                with T.sblock("score_mod"):
                                    vj, vi = T.axis.remap("SS", [j, i])
                                    X[vj, vi] = scores.scaled(
                                        S[vj, vi], b, h, q0 + vi, k0 + vj, softmax_scale
                                    )
                            for j, i in T.grid(BK, BQ):
                                with T.sblock("mask"):
                                    vj, vi = T.axis.remap("SS", [j, i])
                                    Y[vj, vi] = scores.hidden(
                                        X[vj, vi], boundary, b, h, q0 + vi, k0 + vj, softmax_scale
                                    )
                            for j, i in T.grid(BK, BQ):
                                with T.sblock("row_max"):
                                    vj, vi = T.axis.remap("RS", [j, i])
                                    with T.init():
                                        m_new[vi] = m[vi]
                                    m_new[vi] = T.max(m_new[vi], Y[vj, vi])
                        with T.sblock("rescale_scope"):
                            T.reads(m[0:BQ], m_new[0:BQ])
                            T.writes(alpha[0:BQ], m[0:BQ])
                            for i in range(BQ):
                                with T.sblock("alpha"):
                                    vi = T.axis.spatial(BQ, i)
                                    alpha[vi] = scores.exp2(m[vi] - m_new[vi])
                            for i in range(BQ):
                                with T.sblock("keep_m"):
                                    vi = T.axis.spatial(BQ, i)
                                    m[vi] = m_new[vi]
                        with T.sblock("exp_scope"):
                            T.reads(Y[0:BK, 0:BQ], m_new[0:BQ], l[0:BQ], alpha[0:BQ])
                            T.writes(E[0:BK, 0:BQ], P[0 : BK // pack, 0:BQ], l_new[0:BQ])
                            for j, i in T.grid(BK, BQ):
                                with T.sblock("exp"):
                                    vj, vi = T.axis.remap("SS", [j, i])
                                    E[vj, vi] = scores.exp2(Y[vj, vi] - m_new[vi])
                            for j, i in T.grid(BK // pack, BQ):
                                with T.sblock("store_p"):
                                    vj, vi = T.axis.remap("SS", [j, i])
                                    P[vj, vi] = operand.encode(
                                        *[E[vj * pack + e, vi] for e in range(pack)]
                                    )
                            for j, i in T.grid(BK, BQ):
                                with T.sblock("row_sum"):
                                    vj, vi = T.axis.remap("RS", [j, i])
                                    with T.init():
                                        l_new[vi] = l[vi] * alpha[vi]
                                    l_new[vi] = l_new[vi] + E[vj, vi]
                        for i in range(BQ):
                            with T.sblock("keep_l"):
                                vi = T.axis.spatial(BQ, i)
                                l[vi] = l_new[vi]
                        for d, i in T.grid(Dv, BQ):
                            with T.sblock("rescale"):
                                vd, vi = T.axis.remap("SS", [d, i])
                                acc[vd, vi] = acc[vd, vi] * alpha[vi]
                        with T.sblock("pv_scope"):
                            T.reads(
                                P[0 : BK // pack, 0:BQ], Vb[0 : BK // pack, 0:Dv], acc[0:Dv, 0:BQ]
                            )
                            T.writes(acc[0:Dv, 0:BQ])
                            for d, i, j in T.grid(Dv, BQ, BK // pack):
                                with T.sblock("pv"):
                                    vd, vi, vj = T.axis.remap("SSR", [d, i, j])
                                    acc[vd, vi] = acc[vd, vi] + operand.dot(Vb[vj, vd], P[vj, vi])
                for i in range(BQ):
                    with T.sblock("inverse"):
                        vi = T.axis.spatial(BQ, i)
                        l_inv[vi] = scores.inverse(l[vi])
                for d, i in T.grid(Dv, BQ):
                    with T.sblock("normalise"):
                        vd, vi = T.axis.remap("SS", [d, i])
                        out_t[vd, vi] = acc[vd, vi] * l_inv[vi]
                for i, d in T.grid(BQ, dim_v):
                    with T.sblock("out"):
                        T.where(q0 + i < Sq)
                        vi, vd = T.axis.remap("SS", [i, d])
                        O[b, q0 + vi, h, vd] = T.Cast(dtype, out_t[vd, vi])
                if with_lse:
                    for i in range(BQ):
                        with T.sblock("lse"):
                            T.where(q0 + i < Sq)
                            vi = T.axis.spatial(BQ, i)
                            L[b, h, q0 + vi] = scores.natural_lse(m[vi], l[vi])

    return sig.finish(attention, f"{spec.name}_fwd")


def _padded(buffer, index, inside, columns: int):
    """Element ``index`` as float32 where ``inside`` and its last index is below ``columns``."""
    value = tirx.Cast("float32", buffer[index])
    return tirx.if_then_else(tirx.And(inside, index[-1] < columns), value, tirx.const(0, "float32"))
