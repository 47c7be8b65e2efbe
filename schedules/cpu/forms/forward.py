"""Attention forward in TensorIR, streaming: online softmax over key blocks."""

from __future__ import annotations

import math
from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from ....definition.arithmetic import TIR, int32, visibility
from ....definition.derive.bound import BoundRecurrence
from ....definition.kinds import recurrence_of, row_numbers
from ....definition.scores import Scores
from ....definition.signature import Signature
from ....problem.spec import AttentionSpec
from .dropout import weight_dropout
from .entries import places_of
from .forward_results import stored_results
from .online_softmax import raised_maxima, rescaled_sums
from .regions import along, whole
from .staging import Rows, column_word, row_word
from .tasks import groups_of_tile
from .tiles import ForwardTile
from .walks import COUNT, MergedWalk, RangeWalk


def streaming_forward(
    spec: AttentionSpec, tile: ForwardTile, functions=None, threads=None
) -> tirx.PrimFunc:
    """The forward with an online softmax over key blocks (FlashAttention, algorithm 1).

    A tile of query rows goes through the key blocks it sees in groups of ``tile.group`` rows, so
    that a staged block of keys and values serves them all. Within a group query rows are the minor
    axis of every buffer: row statistics are elementwise over lanes. Blocks outside the visible key
    range are not visited, blocks inside the fully visible range pay no mask. A row's maximum is
    raised, and its sums rescaled, only where a row of the group outgrew it by SLACK.

    functions: the vector forms of exp2 and friends (None: intrinsics). threads: an int64 expression
    (None: 1); tiles get small enough to occupy that many, down to a single group. Each product sits
    in its own nested sblock, which is what lets Schedule tile it.
    """
    sig = Signature(spec, "forward")
    scores, places = Scores(sig, functions), places_of(sig)
    find_tile, walk = places.find_row_tile(), RangeWalk(places.some)
    if spec.block_mask:
        walk = MergedWalk(tile.block_q, tile.group, spec.block_mask[0])
    begin_walk, advance = walk.begin(), walk.advance()
    hides_rows = scores.hides_rows
    dropout = weight_dropout(sig)
    recurrence = recurrence_of(spec.softmax, spec.dropout)
    softmax = BoundRecurrence(recurrence, functions, dropout.factor)
    drop = dropout.drop(softmax, rows_are_keys=True)
    raise_maxima, rescale_sums = raised_maxima(softmax), rescaled_sums(softmax)
    store_results = stored_results(softmax)
    inputs, numbers = list(sig.inputs.values()), partial(row_numbers, sig)
    statistics = spec.forward_statistics
    dim, dim_v, group = spec.head_dim, spec.head_dim_v, sig.group
    BQ, BK, D, Dv = tile.block_q, tile.block_k, tile.depth, tile.depth_v
    operand, pack = tile.operand, tile.operand.pack
    R = tile.group
    G, W = BQ // R, math.gcd(R, 16)
    Dq, Do = (-(-size // tile.square) * tile.square for size in (D // pack, Dv))
    threads = T.int64(1) if threads is None else threads

    @T.prim_func(s_tir=True, check_well_formed=False)
    def attention(
        Q: sig.own("q"), K: sig.own("k"), V: sig.own("v"), O: sig.own("out"), L: sig.own("lse"),
        L_low: sig.own("lse_low"),
    ):  # fmt: skip
        results = T.meta_var(whole([O, *[L, L_low][: len(statistics)]]))
        tasks: T.let[T.int64] = threads * tile.tasks_per_thread
        all_groups = T.meta_var(places.row_work(places.row_tiles(R)).count)
        share: T.let[T.int64] = T.truncdiv(all_groups, tasks)
        tile_rows: T.let[T.int64] = groups_of_tile(share, G, TIR, walk.step) * R
        tiles: T.let[T.int64] = places.row_tiles(tile_rows)
        work = T.meta_var(places.row_work(tiles))
        for t in T.serial(work.count):
            with T.sblock("q_tile"):
                vt = T.axis.spatial(work.count, t)
                T.reads(whole([Q, K, V, *inputs, *dropout.inputs]))
                T.writes(results)
                place_of = T.sblock_alloc_buffer((places.size,), "int64")
                find_tile(place_of, vt, work, tile_rows)
                sequences = T.meta_var(places.sequences(place_of))
                b: T.let[T.int64] = place_of[0]
                h: T.let[T.int64] = place_of[1]
                lengths = T.meta_var(sequences.lengths(b))
                seen = T.meta_var(visibility(sig, lengths, b).of_head(h))
                bound = T.meta_var(scores.at(b, h, lengths=lengths))
                head = dropout.head(Q)
                dropout.write_head(head, b, h)
                q0: T.let[T.int64] = place_of[2]
                hk: T.let[T.int64] = T.truncdiv(h, group)
                q_end: T.let[T.int64] = T.min(q0 + tile_rows, lengths[0])
                groups: T.let[T.int32] = T.Cast("int32", T.truncdiv(q_end - q0 + (R - 1), R))
                q_first: T.let[T.int32] = T.Cast("int32", q0)
                q_last: T.let[T.int32] = T.Cast("int32", q_end)
                blocks_of = T.meta_var(partial(seen.keys, block=BK))
                visits = T.meta_var(walk.visits(blocks_of, q_first, q_last))
                walked = T.sblock_alloc_buffer((walk.size,), "int32")
                begin_walk(walked, visits, q0 < q_end)
                k_blocks: T.let[T.int32] = walked[COUNT]
                keys: T.let[T.int32] = int32(lengths[1])
                q_rows = T.meta_var(Rows(Q, partial(sequences.query, b, h), lengths[0], dim))
                k_rows = T.meta_var(Rows(K, partial(sequences.key, b, hk), keys, dim))
                v_rows = T.meta_var(Rows(V, partial(sequences.key, b, hk), keys, dim_v))
                Qr = T.sblock_alloc_buffer((R, Dq), operand.dtype)
                Qt = T.sblock_alloc_buffer((G, Dq, R), operand.dtype)
                Kb = T.sblock_alloc_buffer((BK, D // pack), operand.dtype)
                Vb = T.sblock_alloc_buffer((BK // pack, Dv), operand.dtype)
                S = T.sblock_alloc_buffer((BK, R), "float32")
                Y = T.sblock_alloc_buffer((BK, R), "float32")
                E = T.sblock_alloc_buffer((BK, R), "float32")
                P_kept = dropout.kept(E)
                P = P_kept if pack == 1 else T.sblock_alloc_buffer((BK // pack, R), operand.dtype)
                if softmax.has_sum:
                    m = T.sblock_alloc_buffer((G, R), "float32")
                    m_new = T.sblock_alloc_buffer((R,), "float32")
                    m_kept = T.sblock_alloc_buffer((R,), "float32")
                    growth_lanes = T.sblock_alloc_buffer((W,), "float32")
                    growth = T.sblock_alloc_buffer((1,), "float32")
                    l = T.sblock_alloc_buffer((G, R), "float32")
                    l_block = T.sblock_alloc_buffer((R,), "float32")
                    l_new = T.sblock_alloc_buffer((R,), "float32")
                    alpha = T.sblock_alloc_buffer((R,), "float32")
                    l_inv = T.sblock_alloc_buffer((R,), "float32")
                    row_states = T.meta_var([m, l])
                    new_maxima, maxima = T.meta_var([m_new]), T.meta_var([m_kept])
                    sums, inverses = T.meta_var([l_block]), T.meta_var([l_inv])
                else:  # a kind without a sum over keys has none of these
                    row_states = T.meta_var([])
                    new_maxima, maxima = T.meta_var([]), T.meta_var([])
                    sums, inverses = T.meta_var([]), T.meta_var([])
                acc = T.sblock_alloc_buffer((G, Dv, R), "float32")
                out_t = T.sblock_alloc_buffer((Do, R), "float32")
                out_r = T.sblock_alloc_buffer((R, Do), "float32")
                for g in range(groups):
                    with T.sblock("start"):
                        vg = T.axis.opaque(groups, g)
                        T.reads(whole([Q, *inputs]))
                        T.writes(
                            Qr[0:R, 0:Dq],
                            Qt[vg, 0:Dq, 0:R],
                            *along(row_states, vg),
                            acc[vg, 0:Dv, 0:R],
                        )
                        for i, d in T.grid(R, Dq):
                            with T.sblock("load_q"):
                                vi, vd = T.axis.remap("SS", [i, d])
                                Qr[vi, vd] = column_word(
                                    operand, q_rows, q0 + vg * R + vi, vd * pack
                                )
                        for d, i in T.grid(Dq, R):
                            with T.sblock("transpose_q"):
                                vd, vi = T.axis.remap("SS", [d, i])
                                Qt[vg, vd, vi] = Qr[vi, vd]
                        if softmax.has_sum:
                            for i in range(R):
                                with T.sblock("init_m"):
                                    vi = T.axis.spatial(R, i)
                                    m[vg, vi] = softmax.start("m", **numbers(h))
                            for i in range(R):
                                with T.sblock("init_l"):
                                    vi = T.axis.spatial(R, i)
                                    l[vg, vi] = softmax.start("l", m=m[vg, vi], **numbers(h))
                        for d, i in T.grid(Dv, R):
                            with T.sblock("init_acc"):
                                vd, vi = T.axis.remap("SS", [d, i])
                                acc[vg, vd, vi] = softmax.start("acc")
                for n in range(k_blocks):
                    advance(walked, visits)
                    with T.sblock("k_block"):
                        T.where(walk.exists(walked))
                        vn = T.axis.opaque(k_blocks, n)
                        T.reads(
                            *whole([K, V]),
                            Qt[0:G, 0:Dq, 0:R],
                            *along(row_states),
                            acc[0:G, 0:Dv, 0:R],
                        )
                        T.writes(
                            Kb[0:BK, 0 : D // pack],
                            Vb[0 : BK // pack, 0:Dv],
                            *along(row_states),
                            acc[0:G, 0:Dv, 0:R],
                        )
                        k0: T.let[T.int32] = walk.first(walked, visits, vn)
                        of_keys = T.meta_var(seen.queries(k0, k0 + BK, R, within=(q_first, q_last)))
                        group_span = T.sblock_alloc_buffer((2,), "int32")
                        group_span[0] = of_keys.start
                        group_span[1] = of_keys.count
                        g_first: T.let[T.int32] = group_span[0]
                        seen_groups: T.let[T.int32] = group_span[1]
                        for j, d in T.grid(BK, D // pack):
                            with T.sblock("load_k"):
                                vj, vd = T.axis.remap("SS", [j, d])
                                Kb[vj, vd] = column_word(operand, k_rows, k0 + vj, vd * pack)
                        for j, d in T.grid(BK // pack, Dv):
                            with T.sblock("load_v"):
                                vj, vd = T.axis.remap("SS", [j, d])
                                Vb[vj, vd] = row_word(operand, v_rows, k0 + vj * pack, vd)
                        for g in range(seen_groups):
                            with T.sblock("group"):
                                T.where(walk.meets(walked, g_first + g))
                                vg = T.axis.opaque(seen_groups, g)
                                T.reads(
                                    Qt[0:G, 0:Dq, 0:R],
                                    Kb[0:BK, 0 : D // pack],
                                    Vb[0 : BK // pack, 0:Dv],
                                    *along(row_states),
                                    acc[0:G, 0:Dv, 0:R],
                                )
                                T.writes(
                                    *along(row_states),
                                    acc[0:G, 0:Dv, 0:R],
                                )
                                r: T.let[T.int32] = g_first + vg
                                row0: T.let[T.int32] = q_first + r * R
                                of_rows = T.meta_var(
                                    seen.keys(
                                        row0, row0 + R, BK, pad_is_boundary=hides_rows,
                                        hides=walk.hides(walked, r),
                                    )
                                )  # fmt: skip
                                full = T.sblock_alloc_buffer((2,), "int32")
                                full[0] = of_rows.full_low
                                full[1] = of_rows.full_high
                                kept = T.meta_var(of_rows.held(full_low=full[0], full_high=full[1]))
                                boundary: T.let[T.bool] = kept.is_boundary(k0)
                                with T.sblock("score_scope"):
                                    T.reads(
                                        Qt[r, 0 : D // pack, 0:R],
                                        Kb[0:BK, 0 : D // pack],
                                        *along(row_states[:1], r),
                                    )
                                    T.writes(S[0:BK, 0:R], Y[0:BK, 0:R], *along(new_maxima))
                                    X = T.sblock_alloc_buffer((BK, R), "float32")
                                    for j, i, d in T.grid(BK, R, D // pack):
                                        with T.sblock("scores"):
                                            vj, vi, vd = T.axis.remap("SSR", [j, i, d])
                                            with T.init():
                                                S[vj, vi] = T.float32(0)
                                            S[vj, vi] = S[vj, vi] + operand.dot(
                                                Kb[vj, vd], Qt[r, vd, vi]
                                            )
                                    for j, i in T.grid(BK, R):
                                        with T.sblock("score_mod"):
                                            vj, vi = T.axis.remap("SS", [j, i])
                                            X[vj, vi] = bound.scaled(S[vj, vi], row0 + vi, k0 + vj)
                                    for j, i in T.grid(BK, R):
                                        with T.sblock("mask"):
                                            vj, vi = T.axis.remap("SS", [j, i])
                                            Y[vj, vi] = bound.masked(
                                                X[vj, vi], row0 + vi, k0 + vj, boundary
                                            )
                                    if softmax.has_sum:
                                        for j, i in T.grid(BK, R):
                                            with T.sblock("row_max"):
                                                vj, vi = T.axis.remap("RS", [j, i])
                                                with T.init():
                                                    m_new[vi] = m[r, vi]
                                                m_new[vi] = softmax.join("m", m_new[vi], Y[vj, vi])
                                if softmax.has_sum:
                                    raise_maxima(m, m_new, m_kept, alpha, growth_lanes, growth, r)
                                with T.sblock("exp_scope"):
                                    T.reads(
                                        Y[0:BK, 0:R], *along(maxima), *along(dropout.held(head))
                                    )
                                    T.writes(
                                        E[0:BK, 0:R],
                                        P[0 : BK // pack, 0:R],
                                        *along(sums),
                                    )
                                    for j, i in T.grid(BK, R):
                                        with T.sblock("exp"):
                                            vj, vi = T.axis.remap("SS", [j, i])
                                            E[vj, vi] = softmax.weight(
                                                Y[vj, vi], *[x[vi] for x in maxima]
                                            )
                                    drop(E, P_kept, head, k0, row0)
                                    if pack > 1:
                                        for j, i in T.grid(BK // pack, R):
                                            with T.sblock("store_p"):
                                                vj, vi = T.axis.remap("SS", [j, i])
                                                kept_of = T.meta_var(
                                                    [P_kept[vj * pack + e, vi] for e in range(pack)]
                                                )
                                                P[vj, vi] = operand.encode(*kept_of)
                                    if softmax.has_sum:
                                        for j, i in T.grid(BK, R):
                                            with T.sblock("row_sum"):
                                                vj, vi = T.axis.remap("RS", [j, i])
                                                with T.init():
                                                    l_block[vi] = T.float32(0)
                                                l_block[vi] = softmax.join(
                                                    "l", l_block[vi], E[vj, vi]
                                                )
                                if softmax.has_sum:
                                    rescale_sums(l, l_block, l_new, alpha, acc, growth, r)
                                with T.sblock("pv_scope"):
                                    T.reads(
                                        P[0 : BK // pack, 0:R],
                                        Vb[0 : BK // pack, 0:Dv],
                                        acc[r, 0:Dv, 0:R],
                                    )
                                    T.writes(acc[r, 0:Dv, 0:R])
                                    for d, i, j in T.grid(Dv, R, BK // pack):
                                        with T.sblock("pv"):
                                            vd, vi, vj = T.axis.remap("SSR", [d, i, j])
                                            acc[r, vd, vi] = acc[r, vd, vi] + operand.dot(
                                                Vb[vj, vd], P[vj, vi]
                                            )
                for g in range(groups):
                    with T.sblock("finish"):
                        vg = T.axis.opaque(groups, g)
                        T.reads(*along(row_states, vg), acc[vg, 0:Dv, 0:R])
                        T.writes(results)
                        store_results(
                            Rows(O, partial(sequences.query, b, h), lengths[0], dim_v),
                            dict(zip(statistics, [L, L_low], strict=False)),
                            partial(sequences.statistic, b, h),
                            q0 + vg * R, vg, [acc, *row_states], [out_t, out_r, *inverses],
                        )  # fmt: skip

    softmax.check(statistics, "scores", "pv", *scores.used)
    return sig.finish(attention, f"{spec.name}_fwd", statistics)
