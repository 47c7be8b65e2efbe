"""Attention backward in TensorIR, streaming: one pass, five products per pair of blocks."""

from __future__ import annotations

from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from ....definition.arithmetic import TIR, int32, visibility
from ....definition.derive.bound import BoundGradient
from ....definition.kinds import gradient_of
from ....definition.score_expressions import has_linear_exponent
from ....definition.scores import Scores
from ....definition.signature import Signature
from ....problem.spec import AttentionSpec
from .backward_keys import key_gradient, tile_gradient
from .backward_rows import delta_pass, dq_pass, dsink_pass
from .backward_staging import staged_numbers, staged_rows, transposed, turned_keys
from .backward_sums import Beside, BlockOfRows, InPlace
from .backward_weights import (
    dot_products,
    linear_weights,
    paired,
    recomputed_weights,
    score_gradients,
)
from .dropout import weight_dropout
from .entries import places_of
from .regions import whole
from .staging import Rows
from .tasks import dealt_work
from .tiles import BackwardTile
from .walks import COUNT, MergedWalk, RangeWalk


def streaming_backward(spec: AttentionSpec, tile: BackwardTile, math=None) -> tirx.PrimFunc:
    """Gradients by recomputation from lse, one pass over query rows per key tile.

    Per pair of blocks: S and P again, dV += P^T dO, dP = dO V^T, dS = P o (dP - delta) o dscore,
    dQ += dS K, dK += dS^T Q (FlashAttention-2, algorithm 2). Keys are the minor axis of the block
    buffers. A tile of block_k keys is staged once and meets each query block in steps of step_k.
    Key tiles c, c + C, c + 2C... add their dQ to the private copy c of ``dq_acc``
    (C, B, H, Sq_pad, D_pad) float32, zero on entry; the copies are summed in order at the end, so
    the result is the same bit for bit from run to run, and one batch and head occupies C workers.
    ``delta`` (B, H, Sq) float32 receives rowsum(dO o O) - dlse.

    The words of an operand pair neighbours of the axis that a product sums over: ``*_r`` buffers
    are row by row with pairs of columns, ``*_p`` hold pairs of rows. Float32 words need one of
    them. ``*_c`` is the transpose that head_rows asks for; without it, it is its source.
    """
    sig = Signature(spec, "backward")
    scores, places = Scores(sig, math), places_of(sig)
    dropout = weight_dropout(sig)
    gradient = BoundGradient(gradient_of(spec.softmax), math, dropout.factor)
    drop = dropout.drop(gradient, rows_are_keys=False)
    dim, dim_v, group = spec.head_dim, spec.head_dim_v, sig.group
    with_low, is_linear = "lse_low" in spec.saved_statistics, has_linear_exponent(spec)
    has_sum, has_delta = gradient.has_sum, gradient.reads_delta
    operand, pack, turned = tile.operand, tile.operand.pack, tile.head_rows
    BQ, BK, BS, W, Wv = tile.block_q, tile.block_k, tile.step_k, tile.words, tile.words_v
    D, Dv, Dl, Dvl = tile.depth, tile.depth_v, tile.depth_lanes, tile.lanes_v
    word, pairs, BQp, BSp = operand.dtype, pack > 1, BQ // pack, BS // pack
    weigh = linear_weights(gradient) if is_linear else recomputed_weights(gradient)
    differentiate = score_gradients(gradient, scores)
    pair_p, pair_ds = (paired(name, operand, of_rows=True) for name in ("pair_p", "pair_ds"))
    pair_keys = paired("pair_keys", operand, of_rows=False)
    copies, rows = tirx.Var("C", "int64"), tirx.Var("Sq_pad", "int64")
    workers = dealt_work(sig.batch, sig.kv_heads, copies, TIR)
    delta_rows, dq_rows = delta_pass(sig, gradient), dq_pass(sig)
    walk = RangeWalk()
    if spec.block_mask:
        walk = MergedWalk(tile.block_k, tile.step_k, spec.block_mask[1])
    begin_walk, advance = walk.begin(), walk.advance()
    has_sink, dsink_rows = bool(sig.inputs), dsink_pass(sig, gradient)
    dq_sums = (Beside if places.share_blocks else InPlace)(BQ, Dl)
    look_up, zero_dq, add_dq = places.look_up(), dq_sums.zero(), dq_sums.add()

    multiply_qk, multiply_do = (dot_products(name, operand.dot) for name in ("scores", "dp"))

    def place(row, column):
        return (column, row) if turned else (row, column)

    add_dk, add_dv = (key_gradient(name, operand.dot, place) for name in ("dk", "dv"))
    (zero_dk, store_dk), (zero_dv, store_dv) = (
        tile_gradient("dk"), tile_gradient("dv", gradient.magnified)
    )  # fmt: skip
    (load_k, pair_k), (load_v, _), (load_q, pair_q), (load_do, pair_do) = (
        staged_rows(name, operand) for name in ("k", "v", "q", "do")
    )
    load_delta, load_low = (staged_numbers(name, 0) for name in ("delta", "low"))
    load_lse = staged_numbers("lse", "inf", gradient.row)
    turn_k, turn_v = map(turned_keys, ("k", "v"))
    turn_q, turn_do, turn_dk, turn_dv = map(transposed, ("q", "do", "dk", "dv"))

    @T.prim_func(s_tir=True, check_well_formed=False)
    def attention(
        Q: sig.own("q"), K: sig.own("k"), V: sig.own("v"), O: sig.own("out"), dO: sig.own("dout"),
        L: sig.own("lse"), L_low: sig.own("lse_low"), dL: sig.own("dlse"), dQ: sig.own("dq"),
        dK: sig.own("dk"), dV: sig.own("dv"), dSink: sig.own("dsink"), delta_r: sig.own("delta"),
        A: sig.own("dq_acc", copies=copies, rows=rows, head_dim_pad=Dl),
    ):  # fmt: skip
        if has_delta:
            delta_rows(O, dO, dL, delta_r)
        if has_sink:
            dsink_rows(delta_r, L, L_low, dSink)
        for t in T.serial(workers.count):
            with T.sblock("worker"):
                vt = T.axis.spatial(workers.count, t)
                rows_in = T.meta_var(
                    [
                        Q, dO, *[delta_r] * has_delta, *[L] * has_sum, *[L_low] * with_low,
                        *dropout.inputs,
                    ]
                )  # fmt: skip
                T.reads(whole([*rows_in, K, V]))
                T.writes(whole([A, dK, dV]))
                place_of = T.sblock_alloc_buffer((places.size,), "int64")
                share = T.meta_var(workers.place(vt))
                place_of[0] = share["entry"]
                place_of[1] = share["head"]
                place_of[2] = share["part"]
                look_up(place_of)
                sequences = T.meta_var(places.sequences(place_of))
                b: T.let[T.int64] = place_of[0]
                hk: T.let[T.int64] = place_of[1]
                c: T.let[T.int64] = place_of[2]
                head = T.sblock_alloc_buffer((1,), "int64")
                walked = T.sblock_alloc_buffer((walk.size,), "int32")
                lengths = T.meta_var(sequences.lengths(b))
                seen = T.meta_var(visibility(sig, lengths, b))
                k_tiles = T.meta_var(T.truncdiv(lengths[1] + (BK - 1), BK))
                keys: T.let[T.int32] = int32(lengths[1])
                k_rows = T.meta_var(Rows(K, partial(sequences.key, b, hk), keys, dim))
                v_rows = T.meta_var(Rows(V, partial(sequences.key, b, hk), keys, dim_v))
                K_r = T.sblock_alloc_buffer((BK, W), word)
                K_p = T.sblock_alloc_buffer((BK // pack, Dl), word) if pairs else T.meta_var(K_r)
                V_r = T.sblock_alloc_buffer((BK, Wv), word)
                Kt = T.sblock_alloc_buffer((BK // BS, W, BS), word)
                Vt = T.sblock_alloc_buffer((BK // BS, Wv, BS), word)
                Q_r = T.sblock_alloc_buffer((BQ, W), word)
                Q_p = T.sblock_alloc_buffer((BQp, Dl), word) if pairs else T.meta_var(Q_r)
                Q_c = T.sblock_alloc_buffer((Dl, BQp), word) if turned else T.meta_var(Q_p)
                dO_r = T.sblock_alloc_buffer((BQ, Wv), word)
                dO_p = T.sblock_alloc_buffer((BQp, Dvl), word) if pairs else T.meta_var(dO_r)
                dO_c = T.sblock_alloc_buffer((Dvl, BQp), word) if turned else T.meta_var(dO_p)
                lse_b = T.sblock_alloc_buffer((BQ,), "float32") if has_sum else T.meta_var(Q_r)
                low_b = T.sblock_alloc_buffer((BQ,), "float32") if with_low else T.meta_var(lse_b)
                delta_b = (
                    T.sblock_alloc_buffer((BQ,), "float32") if has_delta else T.meta_var(lse_b)
                )
                statistics = T.meta_var([*[lse_b] * has_sum, *[low_b] * with_low])
                dQ_b = dq_sums.buffer(A)
                S = T.sblock_alloc_buffer((BQ, BS), "float32")
                X = T.meta_var(S) if is_linear else T.sblock_alloc_buffer((BQ, BS), "float32")
                Y = T.meta_var(S) if is_linear else T.sblock_alloc_buffer((BQ, BS), "float32")
                P = T.sblock_alloc_buffer((BQ, BS), "float32")
                key = dropout.head(P)
                P_kept = dropout.kept(P)
                P_p = T.sblock_alloc_buffer((BQp, BS), word) if pairs else T.meta_var(P_kept)
                dP = T.sblock_alloc_buffer((BQ, BS), "float32")
                dS = T.sblock_alloc_buffer((BQ, BS), "float32")
                dS_p = T.sblock_alloc_buffer((BQp, BS), word) if pairs else T.meta_var(dS)
                dS_r = T.sblock_alloc_buffer((BQ, BSp), word) if pairs else T.meta_var(dS)
                dK_b = T.sblock_alloc_buffer((BK, Dl), "float32")
                dK_c = T.sblock_alloc_buffer((Dl, BK), "float32") if turned else T.meta_var(dK_b)
                dV_b = T.sblock_alloc_buffer((BK, Dvl), "float32")
                dV_c = T.sblock_alloc_buffer((Dvl, BK), "float32") if turned else T.meta_var(dV_b)
                for n in T.serial(T.truncdiv(k_tiles - c + copies - 1, copies)):
                    with T.sblock("k_tile"):
                        vn = T.axis.opaque(T.truncdiv(k_tiles - c + copies - 1, copies), n)
                        T.reads(whole([*rows_in, K, V]))
                        T.writes(whole([A, dK, dV]))
                        k0: T.let[T.int32] = T.Cast("int32", (vn * copies + c) * BK)
                        k_end: T.let[T.int32] = T.min(k0 + BK, keys)
                        load_k(k_rows, k0, K_r)
                        if pairs:
                            pair_k(k_rows, k0, K_p)
                        turn_k(K_r, Kt)
                        load_v(v_rows, k0, V_r)
                        turn_v(V_r, Vt)
                        zero_dk(dK_c)
                        zero_dv(dV_c)
                        for g in range(group):
                            head[0] = hk * group + g
                            h: T.let[T.int64] = head[0]
                            blocks_of = T.meta_var(partial(seen.of_head(h).queries, block=BQ))
                            visits = T.meta_var(walk.visits(blocks_of, k0, k_end))
                            begin_walk(walked, visits, True)
                            q_blocks: T.let[T.int32] = walked[COUNT]
                            for m in range(q_blocks):
                                advance(walked, visits)
                                with T.sblock("q_block"):
                                    T.where(walk.exists(walked))
                                    vm = T.axis.opaque(q_blocks, m)
                                    staged = T.meta_var([K_p, Kt, Vt])
                                    sums = T.meta_var([A, dK_c, dV_c, dQ_b])
                                    work = T.meta_var([S, X, Y, P, P_kept, dP, dS, P_p, dS_p, dS_r])
                                    q_words = T.meta_var([Q_r, Q_p, Q_c, dO_r, dO_p, dO_c])
                                    block = T.meta_var(
                                        [*q_words, lse_b, low_b, delta_b, *dropout.held(key)]
                                    )
                                    T.reads(whole([*rows_in, *staged, dK_c, dV_c]))
                                    T.writes(whole([*sums, *block, *work]))
                                    dropout.write_head(key, b, h)
                                    bound = T.meta_var(scores.at(b, h, lengths=lengths))
                                    row_at = T.meta_var(partial(sequences.query, b, h))
                                    q_rows = T.meta_var(Rows(Q, row_at, lengths[0], dim))
                                    do_rows = T.meta_var(Rows(dO, row_at, lengths[0], dim_v))
                                    sum_at = T.meta_var(partial(sequences.gradient_sum, b, h))
                                    number_at = T.meta_var(partial(sequences.statistic, b, h))
                                    row0: T.let[T.int32] = walk.first(walked, visits, vm)
                                    q0: T.let[T.int64] = T.Cast("int64", row0)
                                    dq_block = T.meta_var(BlockOfRows(c, sum_at, q0, lengths[0]))
                                    of_rows = T.meta_var(
                                        seen.keys(
                                            row0, row0 + BQ, BS, within=(k0, k0 + BK),
                                            pad_is_boundary=scores.hides_rows,
                                        )
                                    )  # fmt: skip
                                    visible = T.sblock_alloc_buffer((4,), "int32")
                                    visible[0] = of_rows.start
                                    visible[1] = of_rows.count
                                    visible[2] = of_rows.full_low
                                    visible[3] = of_rows.full_high
                                    lo: T.let[T.int32] = visible[0]
                                    steps: T.let[T.int32] = visible[1]
                                    full_lo: T.let[T.int32] = visible[2]
                                    full_hi: T.let[T.int32] = visible[3]
                                    kept = T.meta_var(
                                        of_rows.held(full_low=full_lo, full_high=full_hi)
                                    )
                                    load_q(q_rows, q0, Q_r)
                                    load_do(do_rows, q0, dO_r)
                                    if pairs:
                                        pair_q(q_rows, q0, Q_p)
                                        pair_do(do_rows, q0, dO_p)
                                    if turned:
                                        turn_q(Q_p, Q_c)
                                        turn_do(dO_p, dO_c)
                                    if has_delta:
                                        load_delta(number_at, lengths[0], delta_r, q0, delta_b)
                                    if has_sum:
                                        load_lse(number_at, lengths[0], L, q0, lse_b)
                                    if with_low:
                                        load_low(number_at, lengths[0], L_low, q0, low_b)
                                    zero_dq(dQ_b)
                                    for u in T.serial(steps):
                                        with T.sblock("step"):
                                            T.where(walk.meets(walked, lo + u))
                                            vu = T.axis.opaque(steps, u)
                                            T.reads(whole([*block, *staged, dK_c, dV_c]))
                                            T.writes(whole([*sums, *work]))
                                            s: T.let[T.int32] = lo + vu
                                            k1: T.let[T.int32] = k0 + s * BS
                                            edge: T.let[T.bool] = walk.is_edge(
                                                walked, s, kept.is_boundary(k1)
                                            )
                                            with T.sblock("p_scope"):
                                                T.reads(
                                                    whole(
                                                        [Q_r, Kt, lse_b, low_b, *dropout.held(key)]
                                                    )
                                                )
                                                T.writes(whole([S, X, Y, P, P_kept, P_p]))
                                                multiply_qk(Q_r, Kt, S, s, D)
                                                weigh(S, X, Y, P, bound, q0, k1, edge, statistics)
                                                drop(P, P_kept, key, row0, k1)
                                                if pairs:
                                                    pair_p(P_kept, P_p)
                                            with T.sblock("ds_scope"):
                                                T.reads(whole([dO_r, Vt, P, P_kept, S, delta_b]))
                                                T.writes(whole([dP, dS, dS_p, dS_r]))
                                                multiply_do(dO_r, Vt, dP, s, Dv)
                                                differentiate(
                                                    S, P, P_kept, dP, delta_b, dS, bound, q0, k1
                                                )
                                                if pairs:
                                                    pair_ds(dS, dS_p)
                                                    pair_keys(dS, dS_r)
                                            add_dv(P_p, dO_c, dV_c, s)
                                            with T.sblock("dq_scope"):
                                                T.reads(whole([dS_r, K_p]))
                                                T.writes(dq_sums.region(dQ_b, dq_block))
                                                for i, d, j in T.grid(BQ, Dl, BSp):
                                                    with T.sblock("dq"):
                                                        vi, vd, vj = T.axis.remap("SSR", [i, d, j])
                                                        to = T.meta_var(
                                                            dq_sums.at(dq_block, vi, vd)
                                                        )
                                                        dQ_b[to] = dQ_b[to] + operand.dot(
                                                            dS_r[vi, vj], K_p[s * BSp + vj, vd]
                                                        )
                                            add_dk(dS_p, Q_c, dK_c, s)
                                    add_dq(dQ_b, A, dq_block)
                        if turned:
                            turn_dk(dK_c, dK_b)
                            turn_dv(dV_c, dV_b)
                        store_dk(dK_b, k_rows._replace(buffer=dK), k0)
                        store_dv(dV_b, v_rows._replace(buffer=dV), k0)
        dq_rows(A, dQ)

    gradient.check("scores", "dp", "dq", "dk", "dv", *scores.used)
    return sig.finish(attention, f"{spec.name}_bwd")
