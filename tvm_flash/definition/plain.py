"""Standard attention in TensorIR, every array in a named block: what the schedules must equal."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ..problem.spec import AttentionSpec
from .dropout import Dropout
from .plain_scores import dropout_block, dropped, score_blocks
from .rows import KINDS
from .scores import Scores
from .signature import Signature
from .softmax import Softmax


def plain_forward(
    spec: AttentionSpec,
    kind: type[Softmax] | None = None,
    statistics: tuple[str, ...] | None = None,
) -> tirx.PrimFunc:
    """Attention: S = Q K^T, P = softmax(mask(score_mod(S))), O = P V, every array materialised.

    With dropout O = (Z o P) V, of the same P (``Dropout``).

    The definition that kernels are derived from, and the oracle that they are held to; it compiles
    as it stands. Arguments of the function: q (B, Sq, H, D), k (B, Sk, Hk, D), v (B, Sk, Hk, Dv),
    out (B, Sq, H, Dv) in ``spec.dtype`` with run-time strides; ``statistics`` (None:
    ``spec.forward_statistics``), (B, H, Sq) float32; the captured tables; the sink, where there is
    one, the seeds of dropout; the numbers of the call. kind: another than that of the spec (None).
    """
    sig = Signature(spec, "forward")
    scores, rows = Scores(sig), (kind or KINDS[spec.softmax])(sig)
    masked_scores, has_dropout = score_blocks(scores), spec.dropout
    drop = dropout_block(Dropout(sig)) if has_dropout else None
    B, H, Sq, Sk = sig.batch, sig.heads, sig.seqlen_q, sig.seqlen_k
    if statistics is None:
        statistics = spec.forward_statistics
    statistics = statistics if rows.has_sum else ()
    dtype, dim_v, group = spec.dtype, spec.head_dim_v, sig.group

    @T.prim_func(s_tir=True, check_well_formed=False)
    def attention(
        Q: sig.own("q"), K: sig.own("k"), V: sig.own("v"), O: sig.own("out"), L: sig.own("lse"),
        L_low: sig.own("lse_low"),
    ):  # fmt: skip
        S = T.sblock_alloc_buffer((B, H, Sq, Sk), "float32")
        X = T.sblock_alloc_buffer((B, H, Sq, Sk), "float32")
        Y = T.sblock_alloc_buffer((B, H, Sq, Sk), "float32")
        P = T.sblock_alloc_buffer((B, H, Sq, Sk), "float32")
        if rows.has_sum:
            m = T.sblock_alloc_buffer((B, H, Sq), "float32")
            l = T.sblock_alloc_buffer((B, H, Sq), "float32")
        acc = T.sblock_alloc_buffer((B, H, Sq, dim_v), "float32")
        if has_dropout:
            Z = T.sblock_alloc_buffer((B, H, Sq, Sk), "float32")
            drop(Z)
        masked_scores(Q, K, S, X, Y)
        if rows.has_sum:
            for b, h, i, j in T.grid(B, H, Sq, Sk):
                with T.sblock("row_max"):
                    vb, vh, vi, vj = T.axis.remap("SSSR", [b, h, i, j])
                    with T.init():
                        m[vb, vh, vi] = rows.first_max((vb, vh, vi))
                    m[vb, vh, vi] = T.max(m[vb, vh, vi], Y[vb, vh, vi, vj])
        for b, h, i, j in T.grid(B, H, Sq, Sk):
            with T.sblock("exp"):
                vb, vh, vi, vj = T.axis.remap("SSSS", [b, h, i, j])
                P[vb, vh, vi, vj] = rows.weight(
                    Y[vb, vh, vi, vj], m[vb, vh, vi] if rows.has_sum else None
                )
        if rows.has_sum:
            for b, h, i, j in T.grid(B, H, Sq, Sk):
                with T.sblock("row_sum"):
                    vb, vh, vi, vj = T.axis.remap("SSSR", [b, h, i, j])
                    with T.init():
                        l[vb, vh, vi] = rows.first_sum((vb, vh, vi), m[vb, vh, vi])
                    l[vb, vh, vi] += P[vb, vh, vi, vj]
        for b, h, i, d, j in T.grid(B, H, Sq, dim_v, Sk):
            with T.sblock("pv"):
                vb, vh, vi, vd, vj = T.axis.remap("SSSSR", [b, h, i, d, j])
                with T.init():
                    acc[vb, vh, vi, vd] = T.float32(0)
                value = T.meta_var(T.Cast("float32", V[vb, vj, T.truncdiv(vh, group), vd]))
                z = T.meta_var(Z[vb, vh, vi, vj] if has_dropout else None)
                acc[vb, vh, vi, vd] += P[vb, vh, vi, vj] * dropped(value, z)
        for b, i, h, d in T.grid(B, Sq, H, dim_v):
            with T.sblock("out"):
                vb, vi, vh, vd = T.axis.remap("SSSS", [b, i, h, d])
                O[vb, vi, vh, vd] = T.Cast(
                    dtype,
                    rows.out(acc[vb, vh, vi, vd], l[vb, vh, vi] if rows.has_sum else None),
                )
        if "lse" in statistics:
            for b, h, i in T.grid(B, H, Sq):
                with T.sblock("lse"):
                    vb, vh, vi = T.axis.remap("SSS", [b, h, i])
                    L[vb, vh, vi] = rows.lse(m[vb, vh, vi], l[vb, vh, vi])
        if "lse_low" in statistics:
            for b, h, i in T.grid(B, H, Sq):
                with T.sblock("lse_low"):
                    vb, vh, vi = T.axis.remap("SSS", [b, h, i])
                    L_low[vb, vh, vi] = rows.lse_low(L[vb, vh, vi], m[vb, vh, vi], l[vb, vh, vi])

    return sig.finish(attention, f"{spec.name}_fwd", statistics)
