"""Linear attention in TensorIR, in chunks: products within a chunk, a state between chunks."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ....definition.linear import first_age, out_factor, place
from ....definition.signature import Signature
from ....problem.spec import AttentionSpec
from .regions import whole
from .tiles import LinearTile


def chunked_linear(spec: AttentionSpec, tile: LinearTile) -> tirx.PrimFunc:
    """The arguments of ``problem.linear``, in three passes over as many parts as ``parts`` has.

    A state M = sum_j g^(n - 1 - j) w_j k^_j v^_j over n rows is all that later rows need of them:
    it has age 1 at the next row, the call's own state the age ``state_age`` at the first.
    1. The sums of each part of the keys; 2. the state before each part (where the spec is not
    causal: that behind the last); 3. the rows of each part, chunk by chunk, with the state of what
    is before. A causal call of one part has no 1.
    """
    sig = Signature(spec, "linear")
    B, H, Sq, Sk, group = sig.batch, sig.heads, sig.seqlen_q, sig.seqlen_k, sig.group
    D, Dv, dtype, causal = spec.head_dim, spec.head_dim_v, spec.dtype, spec.causal
    C, Dp, Dt, Ep = tile.chunk, tile.depth, tile.depth_square, tile.lanes_v
    splits, Ds, state_age = sig.sizes["splits"], sig.sizes["Ds"], first_age(sig)
    # Nobody asks for what is behind the last part of causal rows.
    summed = splits - 1 if causal else splits

    def chunks_of(rows):
        """Chunks of a part."""
        chunks = tirx.truncdiv(rows + (C - 1), tirx.const(C, "int64"))
        return tirx.truncdiv(chunks + (splits - 1), splits)

    def chunks_from(first, rows):
        """Chunks of the part that begins with row ``first``."""
        left = tirx.max(rows - first, tirx.const(0, "int64"))
        return tirx.min(chunks_of(rows), tirx.truncdiv(left + (C - 1), tirx.const(C, "int64")))

    @T.inline
    def load(target, rows, extra, weight, b, h, first, limit, width, columns):
        """Rows from ``first`` on with their column in float32, times their weight; zeros beyond."""
        for i in T.serial(C):
            if first + i < limit:
                row: T.let[T.int64] = place(sig, first + i, limit)
                factor: T.let[T.float32] = weight[b, h, row] if weight is not None else T.float32(1)
                for d in T.serial(width):
                    target[i, d] = T.Cast("float32", rows[b, row, h, d]) * factor
                target[i, width] = extra[b, h, row] * factor
                for d in T.serial(columns - width - 1):
                    target[i, width + 1 + d] = T.float32(0)
            else:
                for d in T.serial(columns):
                    target[i, d] = T.float32(0)

    @T.inline
    def take_powers(powers, decay, h):
        """powers[C - 1 + n] = g^n, and 0 for a negative n: of a key behind the query."""
        rate: T.let[T.float32] = T.log(decay[h])
        for n in T.serial(2 * C):
            powers[n] = T.Select(
                n < C - 1,
                T.float32(0),
                T.Select(n == C - 1, T.float32(1), T.exp(rate * T.Cast("float32", n - (C - 1)))),
            )

    @T.inline
    def take_chunk(M, Kr, Vr, Kd, powers, rows, age):
        """M = g^(rows - 1 + age) M + the sums of the chunk's ``rows`` keys."""
        for j in T.serial(C):
            steps: T.let[T.int64] = T.max(rows - 1 - j, T.int64(0)) + (C - 1)
            for d in T.serial(Dp):
                Kd[j, d] = Kr[j, d] * powers[steps]
        for d in T.serial(Dp):
            for e in T.serial(Ep):
                M[d, e] = M[d, e] * powers[rows - 1 + age + (C - 1)]
        for d, e, j in T.grid(Dp, Ep, C):
            with T.sblock("take_keys"):
                vd, ve, vj = T.axis.remap("SSR", [d, e, j])
                M[vd, ve] = M[vd, ve] + Kd[vj, vd] * Vr[vj, ve]

    @T.prim_func(s_tir=True, check_well_formed=False)
    def linear(
        Q: sig.own("q"), K: sig.own("k"), V: sig.own("v"), q_extra: sig.own("q_extra"),
        k_extra: sig.own("k_extra"), v_extra: sig.own("v_extra"),
        key_weight: sig.own("key_weight"), out_weight: sig.own("out_weight"),
        decay: sig.own("decay"), state: sig.own("state"), O: sig.own("out"),
        out_extra: sig.own("out_extra"), state_out: sig.own("state_out"), parts: sig.own("parts"),
    ):  # fmt: skip
        inputs = T.meta_var(whole([K, V, k_extra, v_extra, key_weight, decay]))
        for t in T.parallel(summed * B * H):
            with T.sblock("sum_part"):
                vt = T.axis.spatial(summed * B * H, t)
                T.reads(inputs)
                T.writes(whole([parts]))
                s: T.let[T.int64] = T.truncdiv(vt, B * H)
                b: T.let[T.int64] = T.truncdiv(T.truncmod(vt, B * H), H)
                h: T.let[T.int64] = T.truncmod(vt, H)
                hk: T.let[T.int64] = T.truncdiv(h, group)
                powers = T.sblock_alloc_buffer((2 * C,), "float32")
                Kr = T.sblock_alloc_buffer((C, Dp), "float32")
                Kd = T.sblock_alloc_buffer((C, Dp), "float32")
                Vr = T.sblock_alloc_buffer((C, Ep), "float32")
                M = T.sblock_alloc_buffer((Dp, Ep), "float32")
                first: T.let[T.int64] = s * chunks_of(Sk) * C
                count: T.let[T.int64] = chunks_from(first, Sk)
                take_powers(powers, decay, h)
                for d in T.serial(Dp):
                    for e in T.serial(Ep):
                        M[d, e] = T.float32(0)
                for n in range(count):
                    with T.sblock("keys"):
                        vn = T.axis.opaque(count, n)
                        T.reads(*inputs, powers[0 : 2 * C], M[0:Dp, 0:Ep])
                        T.writes(Kr[0:C, 0:Dp], Kd[0:C, 0:Dp], Vr[0:C, 0:Ep], M[0:Dp, 0:Ep])
                        j0: T.let[T.int64] = first + vn * C
                        rows: T.let[T.int64] = T.min(Sk - j0, T.int64(C))
                        load(Kr, K, k_extra, None, b, hk, j0, Sk, D, Dp)
                        load(Vr, V, v_extra, key_weight, b, hk, j0, Sk, Dv, Ep)
                        take_chunk(M, Kr, Vr, Kd, powers, rows, 1)
                for d in T.serial(D + 1):
                    for e in T.serial(Dv + 1):
                        parts[s, b, h, d, e] = M[d, e]
        for t in T.parallel(B * H):
            with T.sblock("join_parts"):
                vt = T.axis.spatial(B * H, t)
                T.reads(whole([parts, state, decay]))
                T.writes(whole([parts]))
                b: T.let[T.int64] = T.truncdiv(vt, H)
                h: T.let[T.int64] = T.truncmod(vt, H)
                before = T.sblock_alloc_buffer((D + 1, Dv + 1), "float32")
                run: T.let[T.int64] = chunks_of(Sk) * C
                for d in T.serial(D + 1):
                    for e in T.serial(Dv + 1):
                        before[d, e] = T.if_then_else(
                            T.Cast("int64", d) < Ds, state[b, h, d, e], T.float32(0)
                        )
                for s in range(splits):
                    rows: T.let[T.int64] = T.max(T.min(Sk - s * run, run), T.int64(0))
                    steps: T.let[T.int64] = T.max(
                        rows - T.Select(s == 0, 1 - state_age, T.int64(0)), T.int64(0)
                    )
                    passed: T.let[T.float32] = T.pow(decay[h], T.Cast("float32", steps))
                    for d in T.serial(D + 1):
                        for e in T.serial(Dv + 1):
                            own: T.let[T.float32] = parts[s, b, h, d, e]
                            parts[s, b, h, d, e] = before[d, e]
                            before[d, e] = before[d, e] * passed + own
                if not causal:
                    for s in range(splits):
                        for d in T.serial(D + 1):
                            for e in T.serial(Dv + 1):
                                parts[s, b, h, d, e] = before[d, e]
        for t in T.parallel(splits * B * H):
            with T.sblock("rows"):
                vt = T.axis.spatial(splits * B * H, t)
                T.reads(*inputs, *whole([Q, q_extra, out_weight, parts]))
                T.writes(whole([O, out_extra, state_out]))
                s: T.let[T.int64] = T.truncdiv(vt, B * H)
                b: T.let[T.int64] = T.truncdiv(T.truncmod(vt, B * H), H)
                h: T.let[T.int64] = T.truncmod(vt, H)
                hk: T.let[T.int64] = T.truncdiv(h, group)
                powers = T.sblock_alloc_buffer((2 * C,), "float32")
                Qr = T.sblock_alloc_buffer((C, Dt), "float32")
                if causal:
                    Qt = T.sblock_alloc_buffer((Dt, C), "float32")
                    Kr = T.sblock_alloc_buffer((C, Dp), "float32")
                    Kd = T.sblock_alloc_buffer((C, Dp), "float32")
                    Vr = T.sblock_alloc_buffer((C, Ep), "float32")
                    S = T.sblock_alloc_buffer((C, C), "float32")
                    P = T.sblock_alloc_buffer((C, C), "float32")
                staged = T.meta_var(whole([Qt, Kr, Kd, Vr, S, P] if causal else []))
                M = T.sblock_alloc_buffer((Dp, Ep), "float32")
                acc = T.sblock_alloc_buffer((C, Ep), "float32")
                first: T.let[T.int64] = s * chunks_of(Sq) * C
                count: T.let[T.int64] = chunks_from(first, Sq)
                take_powers(powers, decay, h)
                for d in T.serial(D + 1):
                    for e in T.serial(Dv + 1):
                        M[d, e] = parts[s, b, h, d, e]
                    for e in T.serial(Ep - (Dv + 1)):
                        M[d, Dv + 1 + e] = T.float32(0)
                for d in T.serial(Dp - (D + 1)):
                    for e in T.serial(Ep):
                        M[D + 1 + d, e] = T.float32(0)
                for n in range(count):
                    with T.sblock("chunk"):
                        vn = T.axis.opaque(count, n)
                        T.reads(
                            *inputs, *whole([Q, q_extra, out_weight]), powers[0 : 2 * C],
                            M[0:Dp, 0:Ep],
                        )  # fmt: skip
                        T.writes(
                            *whole([O, out_extra]), *staged, Qr[0:C, 0:Dt], M[0:Dp, 0:Ep],
                            acc[0:C, 0:Ep],
                        )  # fmt: skip
                        i0: T.let[T.int64] = first + vn * C
                        rows: T.let[T.int64] = T.min(Sq - i0, T.int64(C))
                        load(Qr, Q, q_extra, None, b, h, i0, Sq, D, Dt)
                        for i, e, d in T.grid(C, Ep, Dp):
                            with T.sblock("earlier"):
                                vi, ve, vd = T.axis.remap("SSR", [i, e, d])
                                with T.init():
                                    acc[vi, ve] = T.float32(0)
                                acc[vi, ve] = acc[vi, ve] + Qr[vi, vd] * M[vd, ve]
                        if causal:
                            load(Kr, K, k_extra, None, b, hk, i0, Sk, D, Dp)
                            load(Vr, V, v_extra, key_weight, b, hk, i0, Sk, Dv, Ep)
                            age: T.let[T.int64] = T.Select(i0 == 0, state_age, T.int64(1))
                            for i in T.serial(C):
                                for e in T.serial(Ep):
                                    acc[i, e] = acc[i, e] * powers[i + age + (C - 1)]
                            for d, i in T.grid(Dt, C):
                                with T.sblock("transpose_q"):
                                    vd, vi = T.axis.remap("SS", [d, i])
                                    Qt[vd, vi] = Qr[vi, vd]
                            for j, i, d in T.grid(C, C, Dp):
                                with T.sblock("scores"):
                                    vj, vi, vd = T.axis.remap("SSR", [j, i, d])
                                    with T.init():
                                        S[vj, vi] = T.float32(0)
                                    S[vj, vi] = S[vj, vi] + Kr[vj, vd] * Qt[vd, vi]
                            for j in T.serial(C):
                                for i in T.serial(C):
                                    # A product would keep what is not finite of later keys.
                                    P[j, i] = T.Select(
                                        i >= j, S[j, i] * powers[C - 1 + i - j], T.float32(0)
                                    )
                            for i, e, j in T.grid(C, Ep, C):
                                with T.sblock("pv"):
                                    vi, ve, vj = T.axis.remap("SSR", [i, e, j])
                                    acc[vi, ve] = acc[vi, ve] + P[vj, vi] * Vr[vj, ve]
                            take_chunk(M, Kr, Vr, Kd, powers, rows, age)
                        for i in range(rows):
                            row: T.let[T.int64] = place(sig, i0 + i, Sq)
                            factor: T.let[T.float32] = out_factor(
                                sig, acc[i, Dv], out_weight[b, h, row]
                            )
                            out_extra[b, h, row] = acc[i, Dv]
                            for e in T.serial(Dv):
                                O[b, row, h, e] = T.Cast(dtype, acc[i, e] * factor)
                if s + 1 == splits:
                    for d in T.serial(Ds):
                        for e in T.serial(Dv + 1):
                            state_out[b, h, d, e] = M[d, e]

    return sig.finish(linear, f"{spec.name}_fwd")
