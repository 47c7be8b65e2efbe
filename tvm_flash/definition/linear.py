"""Linear attention in TensorIR, by every product of a query and a key: what kernels must equal."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ..problem.spec import AttentionSpec
from .signature import Signature


def place(sig: Signature, row, rows):
    """Where a row of ``rows`` lies before which ``row`` are walked."""
    return tirx.Select(sig.numbers["reverse"] != 0, rows - 1 - row, row)


def out_factor(sig: Signature, out_extra, out_weight):
    """What an element of a row of the output is multiplied by."""
    zero = tirx.const(0, "float32")
    inverse = tirx.Select(out_extra == zero, zero, tirx.const(1, "float32") / out_extra)
    return tirx.Select(sig.numbers["normalize"] != 0, inverse, out_weight)


def first_age(sig: Signature):
    """The age of the state at the first row, int64."""
    return tirx.Cast("int64", sig.numbers["state_age"])


def plain_linear(spec: AttentionSpec) -> tirx.PrimFunc:
    """S = Q^ K^T, P = g^(i - j) S where j <= i, out^ = P (w V^) + g^(i + state_age) Q^ state.

    The arguments of ``problem.linear``; parts are left as they are. What is not causal has no
    order: g is then 1. It compiles as it stands.
    """
    sig = Signature(spec, "linear")
    age, Ds = first_age(sig), sig.sizes["Ds"]
    B, H, Sq, Sk = sig.batch, sig.heads, sig.seqlen_q, sig.seqlen_k
    D, Dv, group, causal = spec.head_dim, spec.head_dim_v, sig.group, spec.causal

    def element(rows, extra, b, h, row, column, width):
        """An element of a row with its column in float32."""
        own = tirx.Cast("float32", rows[b, row, h, column])
        return tirx.if_then_else(column < width, own, extra[b, h, row])

    def power(decay, steps):
        return tirx.pow(decay, tirx.Cast("float32", steps)) if causal else tirx.const(1, "float32")

    @T.prim_func(s_tir=True, check_well_formed=False)
    def linear(
        Q: sig.own("q"), K: sig.own("k"), V: sig.own("v"), q_extra: sig.own("q_extra"),
        k_extra: sig.own("k_extra"), v_extra: sig.own("v_extra"),
        key_weight: sig.own("key_weight"), out_weight: sig.own("out_weight"),
        decay: sig.own("decay"), state: sig.own("state"), O: sig.own("out"),
        out_extra: sig.own("out_extra"), state_out: sig.own("state_out"), parts: sig.own("parts"),
    ):  # fmt: skip
        q_hat = T.sblock_alloc_buffer((B, H, Sq, D + 1), "float32")
        k_hat = T.sblock_alloc_buffer((B, H, Sk, D + 1), "float32")
        v_hat = T.sblock_alloc_buffer((B, H, Sk, Dv + 1), "float32")
        P = T.sblock_alloc_buffer((B, H, Sq, Sk), "float32")
        sums = T.sblock_alloc_buffer((B, H, Sq, Dv + 1), "float32")
        for b, h, i, d in T.grid(B, H, Sq, D + 1):
            with T.sblock("q_hat"):
                vb, vh, vi, vd = T.axis.remap("SSSS", [b, h, i, d])
                q_hat[vb, vh, vi, vd] = element(Q, q_extra, vb, vh, place(sig, vi, Sq), vd, D)
        for b, h, j, d in T.grid(B, H, Sk, D + 1):
            with T.sblock("k_hat"):
                vb, vh, vj, vd = T.axis.remap("SSSS", [b, h, j, d])
                k_hat[vb, vh, vj, vd] = element(
                    K, k_extra, vb, T.truncdiv(vh, group), place(sig, vj, Sk), vd, D
                )
        for b, h, j, d in T.grid(B, H, Sk, Dv + 1):
            with T.sblock("v_hat"):
                vb, vh, vj, vd = T.axis.remap("SSSS", [b, h, j, d])
                v_hat[vb, vh, vj, vd] = (
                    element(V, v_extra, vb, T.truncdiv(vh, group), place(sig, vj, Sk), vd, Dv)
                    * key_weight[vb, T.truncdiv(vh, group), place(sig, vj, Sk)]
                )
        for b, h, i, j, d in T.grid(B, H, Sq, Sk, D + 1):
            with T.sblock("scores"):
                vb, vh, vi, vj, vd = T.axis.remap("SSSSR", [b, h, i, j, d])
                with T.init():
                    P[vb, vh, vi, vj] = T.float32(0)
                if not causal or vj <= vi:
                    P[vb, vh, vi, vj] += (
                        q_hat[vb, vh, vi, vd] * k_hat[vb, vh, vj, vd] * power(decay[vh], vi - vj)
                    )
        for b, h, i, e, d in T.grid(B, H, Sq, Dv + 1, Ds):
            with T.sblock("earlier"):
                vb, vh, vi, ve, vd = T.axis.remap("SSSSR", [b, h, i, e, d])
                with T.init():
                    sums[vb, vh, vi, ve] = T.float32(0)
                sums[vb, vh, vi, ve] += (
                    q_hat[vb, vh, vi, vd] * state[vb, vh, vd, ve] * power(decay[vh], vi + age)
                )
        for b, h, i, e, j in T.grid(B, H, Sq, Dv + 1, Sk):
            with T.sblock("pv"):
                vb, vh, vi, ve, vj = T.axis.remap("SSSSR", [b, h, i, e, j])
                sums[vb, vh, vi, ve] += P[vb, vh, vi, vj] * v_hat[vb, vh, vj, ve]
        for b, h, i, e in T.grid(B, H, Sq, Dv):
            with T.sblock("out"):
                vb, vh, vi, ve = T.axis.remap("SSSS", [b, h, i, e])
                factor = T.meta_var(
                    out_factor(sig, sums[vb, vh, vi, Dv], out_weight[vb, vh, place(sig, vi, Sq)])
                )
                O[vb, place(sig, vi, Sq), vh, ve] = T.Cast(
                    spec.dtype, sums[vb, vh, vi, ve] * factor
                )
        for b, h, i in T.grid(B, H, Sq):
            with T.sblock("out_extra"):
                vb, vh, vi = T.axis.remap("SSS", [b, h, i])
                out_extra[vb, vh, place(sig, vi, Sq)] = sums[vb, vh, vi, Dv]
        for b, h, d, e in T.grid(B, H, Ds, Dv + 1):
            with T.sblock("left"):  # no init of the sum, which would not run without keys
                vb, vh, vd, ve = T.axis.remap("SSSS", [b, h, d, e])
                state_out[vb, vh, vd, ve] = state[vb, vh, vd, ve] * power(
                    decay[vh], T.max(Sk - 1 + age, T.int64(0))
                )
        for b, h, d, e, j in T.grid(B, H, Ds, Dv + 1, Sk):
            with T.sblock("state_out"):
                vb, vh, vd, ve, vj = T.axis.remap("SSSSR", [b, h, d, e, j])
                state_out[vb, vh, vd, ve] += (
                    k_hat[vb, vh, vj, vd] * v_hat[vb, vh, vj, ve] * power(decay[vh], Sk - 1 - vj)
                )

    return sig.finish(linear, f"{spec.name}_fwd")
