"""The gradients of attention in TensorIR, every array in a named block."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ..problem.spec import AttentionSpec
from .derive.bound import BoundGradient
from .dropout import Dropout
from .kinds import gradient_of
from .plain_scores import dot_products, dropout_block, dropped, score_blocks
from .scores import Scores
from .signature import Signature


def plain_backward(spec: AttentionSpec) -> tirx.PrimFunc:
    """dV = P^T dO, dP = dO V^T, dS = P o (dP - delta) o dscore, dQ = dS K, dK = dS^T Q.

    With dropout dV = (Z o P)^T dO and dP = Z o (dO V^T) (``Dropout``).

    P and the derivative through it are those derived of the forward's definition. Arguments: q, k,
    v, out, dout (layouts of the forward), what the forward saved (``spec.saved_statistics``) and
    dlse, (B, H, Sq) float32, dq, dk, dv and, where there is a sink, dsink (H,) float32 (results),
    the sink, the captured tables, the numbers of the call. The oracle of the backward
    schedules; it compiles as it stands.
    """
    sig = Signature(spec, "backward")
    scores, gradient = Scores(sig), BoundGradient(gradient_of(spec.softmax))
    has_dropout = spec.dropout
    drop = dropout_block(Dropout(sig)) if has_dropout else None
    masked_scores, upstream_products = score_blocks(scores), dot_products("dp", sig.group)
    has_sum, has_delta = gradient.has_sum, gradient.reads_delta
    B, H, Hk, Sq, Sk = sig.batch, sig.heads, sig.kv_heads, sig.seqlen_q, sig.seqlen_k
    dtype, dim, dim_v, group = spec.dtype, spec.head_dim, spec.head_dim_v, sig.group
    with_low, has_sink = "lse_low" in spec.saved_statistics, bool(sig.inputs)

    @T.prim_func(s_tir=True, check_well_formed=False)
    def attention(
        Q: sig.own("q"), K: sig.own("k"), V: sig.own("v"), O: sig.own("out"), dO: sig.own("dout"),
        L: sig.own("lse"), L_low: sig.own("lse_low"), dL: sig.own("dlse"), dQ: sig.own("dq"),
        dK: sig.own("dk"), dV: sig.own("dv"), dSink: sig.own("dsink"),
    ):  # fmt: skip
        delta = T.sblock_alloc_buffer((B, H, Sq), "float32") if has_delta else T.meta_var(None)
        S = T.sblock_alloc_buffer((B, H, Sq, Sk), "float32")
        X = T.sblock_alloc_buffer((B, H, Sq, Sk), "float32")
        Y = T.sblock_alloc_buffer((B, H, Sq, Sk), "float32")
        P = T.sblock_alloc_buffer((B, H, Sq, Sk), "float32")
        dP = T.sblock_alloc_buffer((B, H, Sq, Sk), "float32")
        dS = T.sblock_alloc_buffer((B, H, Sq, Sk), "float32")
        dQ_sum = T.sblock_alloc_buffer((B, H, Sq, dim), "float32")
        dK_sum = T.sblock_alloc_buffer((B, Hk, Sk, dim), "float32")
        dV_sum = T.sblock_alloc_buffer((B, Hk, Sk, dim_v), "float32")
        if has_delta:
            for b, h, i, d in T.grid(B, H, Sq, dim_v):
                with T.sblock("delta"):
                    vb, vh, vi, vd = T.axis.remap("SSSR", [b, h, i, d])
                    with T.init():
                        delta[vb, vh, vi] = gradient.delta_start(dL[vb, vh, vi])
                    delta[vb, vh, vi] += gradient.delta_term(
                        T.Cast("float32", O[vb, vi, vh, vd]), T.Cast("float32", dO[vb, vi, vh, vd])
                    )
        if has_dropout:
            Z = T.sblock_alloc_buffer((B, H, Sq, Sk), "float32")
            drop(Z)
        masked_scores(Q, K, S, X, Y)
        for b, h, i, j in T.grid(B, H, Sq, Sk):
            with T.sblock("p"):
                vb, vh, vi, vj = T.axis.remap("SSSS", [b, h, i, j])
                P[vb, vh, vi, vj] = gradient.weight(
                    Y[vb, vh, vi, vj],
                    *[gradient.row(L[vb, vh, vi])] * has_sum,
                    *[L_low[vb, vh, vi]] * with_low,
                )
        upstream_products(dO, V, dP)
        for b, h, i, j in T.grid(B, H, Sq, Sk):
            with T.sblock("ds"):
                vb, vh, vi, vj = T.axis.remap("SSSS", [b, h, i, j])
                bound = T.meta_var(scores.at(vb, vh))
                of_row = T.meta_var([delta[vb, vh, vi]] if has_delta else [])
                z = T.meta_var(Z[vb, vh, vi, vj] if has_dropout else None)
                upstream = T.meta_var(dropped(dP[vb, vh, vi, vj], z))
                dS[vb, vh, vi, vj] = scores.dscore(
                    P[vb, vh, vi, vj],
                    gradient.derivative(P[vb, vh, vi, vj], upstream, *of_row),
                    bound.gradient(S[vb, vh, vi, vj], vi, vj),
                )
        for b, h, i, d, j in T.grid(B, H, Sq, dim, Sk):
            with T.sblock("dq"):
                vb, vh, vi, vd, vj = T.axis.remap("SSSSR", [b, h, i, d, j])
                with T.init():
                    dQ_sum[vb, vh, vi, vd] = T.float32(0)
                dQ_sum[vb, vh, vi, vd] += dS[vb, vh, vi, vj] * T.Cast(
                    "float32", K[vb, vj, T.truncdiv(vh, group), vd]
                )
        for b, h, j, d, g, i in T.grid(B, Hk, Sk, dim, group, Sq):
            with T.sblock("dk"):
                vb, vh, vj, vd, vg, vi = T.axis.remap("SSSSRR", [b, h, j, d, g, i])
                with T.init():
                    dK_sum[vb, vh, vj, vd] = T.float32(0)
                dK_sum[vb, vh, vj, vd] += dS[vb, vh * group + vg, vi, vj] * T.Cast(
                    "float32", Q[vb, vi, vh * group + vg, vd]
                )
        for b, h, j, d, g, i in T.grid(B, Hk, Sk, dim_v, group, Sq):
            with T.sblock("dv"):
                vb, vh, vj, vd, vg, vi = T.axis.remap("SSSSRR", [b, h, j, d, g, i])
                with T.init():
                    dV_sum[vb, vh, vj, vd] = T.float32(0)
                z = T.meta_var(Z[vb, vh * group + vg, vi, vj] if has_dropout else None)
                weight = T.meta_var(dropped(P[vb, vh * group + vg, vi, vj], z))
                dV_sum[vb, vh, vj, vd] += weight * T.Cast(
                    "float32", dO[vb, vi, vh * group + vg, vd]
                )
        if has_sink:
            for h, b, i in T.grid(H, B, Sq):
                with T.sblock("dsink"):
                    vh, vb, vi = T.axis.remap("SRR", [h, b, i])
                    with T.init():
                        dSink[vh] = T.float32(0)
                    low = T.meta_var([L_low[vb, vh, vi]] * with_low)
                    dSink[vh] += gradient.by_sink(
                        gradient.weight(sig.inputs["sink"][vh], gradient.row(L[vb, vh, vi]), *low),
                        delta[vb, vh, vi],
                    )
        for b, i, h, d in T.grid(B, Sq, H, dim):
            with T.sblock("store_dq"):
                vb, vi, vh, vd = T.axis.remap("SSSS", [b, i, h, d])
                dQ[vb, vi, vh, vd] = T.Cast(dtype, dQ_sum[vb, vh, vi, vd])
        for b, j, h, d in T.grid(B, Sk, Hk, dim):
            with T.sblock("store_dk"):
                vb, vj, vh, vd = T.axis.remap("SSSS", [b, j, h, d])
                dK[vb, vj, vh, vd] = T.Cast(dtype, dK_sum[vb, vh, vj, vd])
        for b, j, h, d in T.grid(B, Sk, Hk, dim_v):
            with T.sblock("store_dv"):
                vb, vj, vh, vd = T.axis.remap("SSSS", [b, j, h, d])
                dV[vb, vj, vh, vd] = T.Cast(dtype, dV_sum[vb, vh, vj, vd])

    return sig.finish(attention, f"{spec.name}_bwd")
