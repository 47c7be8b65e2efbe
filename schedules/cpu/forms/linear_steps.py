"""Causal linear attention in TensorIR, row by row: of few rows from a state, which is read once."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ....definition.linear import first_age, out_factor, place
from ....definition.signature import Signature
from ....problem.spec import AttentionSpec
from .regions import whole


def linear_steps(spec: AttentionSpec) -> tirx.PrimFunc:
    """M = g M + w k^ v^ and out^ = q^ M of each row; M lies in ``state_out``.

    A task is a head, in one part whatever ``parts`` has. The first row reads ``state``.
    """
    sig = Signature(spec, "linear")
    B, H, Sq, group = sig.batch, sig.heads, sig.seqlen_q, sig.group
    D, Dv, Ds, dtype = spec.head_dim, spec.head_dim_v, sig.sizes["Ds"], spec.dtype

    @T.inline
    def load(target, rows, extra, b, row, h, width, factor):
        for d in T.serial(width):
            target[d] = T.Cast("float32", rows[b, row, h, d]) * factor
        target[width] = extra[b, h, row] * factor

    @T.inline
    def take(source, M, Kr, Vr, Qr, acc, b, h, passed):
        """M = passed source + k^ v^, acc = q^ M."""
        for e in T.serial(Dv + 1):
            acc[e] = T.float32(0)
        for d in T.serial(Ds):
            for e in T.serial(Dv + 1):
                M[b, h, d, e] = source[b, h, d, e] * passed + Kr[d] * Vr[e]
                acc[e] = acc[e] + Qr[d] * M[b, h, d, e]

    @T.prim_func(s_tir=True, check_well_formed=False)
    def linear(
        Q: sig.own("q"), K: sig.own("k"), V: sig.own("v"), q_extra: sig.own("q_extra"),
        k_extra: sig.own("k_extra"), v_extra: sig.own("v_extra"),
        key_weight: sig.own("key_weight"), out_weight: sig.own("out_weight"),
        decay: sig.own("decay"), state: sig.own("state"), O: sig.own("out"),
        out_extra: sig.own("out_extra"), state_out: sig.own("state_out"), parts: sig.own("parts"),
    ):  # fmt: skip
        for t in T.parallel(B * H):
            with T.sblock("head"):
                vt = T.axis.spatial(B * H, t)
                T.reads(
                    whole([
                        Q, K, V, q_extra, k_extra, v_extra, key_weight, out_weight, decay, state,
                    ])
                )  # fmt: skip
                T.writes(whole([O, out_extra, state_out]))
                b: T.let[T.int64] = T.truncdiv(vt, H)
                h: T.let[T.int64] = T.truncmod(vt, H)
                hk: T.let[T.int64] = T.truncdiv(h, group)
                Qr = T.sblock_alloc_buffer((D + 1,), "float32")
                Kr = T.sblock_alloc_buffer((D + 1,), "float32")
                Vr = T.sblock_alloc_buffer((Dv + 1,), "float32")
                acc = T.sblock_alloc_buffer((Dv + 1,), "float32")
                if Sq == 0:
                    for d in T.serial(Ds):
                        for e in T.serial(Dv + 1):
                            state_out[b, h, d, e] = state[b, h, d, e]
                for n in T.serial(Sq):
                    row: T.let[T.int64] = place(sig, n, Sq)
                    load(Qr, Q, q_extra, b, row, h, D, T.float32(1))
                    load(Kr, K, k_extra, b, row, hk, D, T.float32(1))
                    load(Vr, V, v_extra, b, row, hk, Dv, key_weight[b, hk, row])
                    if n == 0:
                        first: T.let[T.float32] = T.Select(
                            first_age(sig) == 0, T.float32(1), decay[h]
                        )
                        take(state, state_out, Kr, Vr, Qr, acc, b, h, first)
                    else:
                        take(state_out, state_out, Kr, Vr, Qr, acc, b, h, decay[h])
                    factor: T.let[T.float32] = out_factor(sig, acc[Dv], out_weight[b, h, row])
                    out_extra[b, h, row] = acc[Dv]
                    for e in T.serial(Dv):
                        O[b, row, h, e] = T.Cast(dtype, acc[e] * factor)

    return sig.finish(linear, f"{spec.name}_fwd")
