"""The gradients of captured tables in TensorIR: S and dP again, tile by tile, and their sums."""

from __future__ import annotations

from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from ....definition.arithmetic import int32, visibility
from ....definition.derive.bound import BoundGradient
from ....definition.kinds import gradient_of
from ....definition.scores import Scores
from ....definition.signature import Signature
from ....problem.spec import AttentionSpec
from .backward_rows import delta_pass
from .backward_staging import staged_numbers, staged_rows, turned_keys
from .backward_weights import dot_products, recomputed_weights
from .dropout import weight_dropout
from .entries import places_of
from .regions import whole
from .staging import Rows
from .table_sums import in_turn, shares_of, sums_of
from .table_tasks import TableTasks
from .tiles import BackwardTile


def table_gradients(spec: AttentionSpec, tile: BackwardTile, math=None) -> tirx.PrimFunc:
    """dT[index(b, h, i, j)] += dS_ij d score_ij / d T[index], for each table T of ``spec.learned``.

    P and dP = dO V^T again for each tile of block_q rows and step_k keys; P o (dP - delta) times
    the derivative of the score by an element is what a pair adds to it. Tasks whose elements differ
    run side by side; others add to copies (parts, ...), which are zero on entry.
    """
    sig = Signature(spec, "tables")
    scores, places = Scores(sig, math), places_of(sig)
    dropout = weight_dropout(sig)
    gradient = BoundGradient(gradient_of(spec.softmax), math, dropout.factor)
    drop, weigh = dropout.drop(gradient, rows_are_keys=False), recomputed_weights(gradient)
    dim, dim_v, group, operand = spec.head_dim, spec.head_dim_v, sig.group, tile.operand
    with_low = "lse_low" in spec.saved_statistics
    has_sum, has_delta = gradient.has_sum, gradient.reads_delta
    BQ, BS, W, Wv = tile.block_q, tile.step_k, tile.words, tile.words_v
    D, Dv, word = tile.depth, tile.depth_v, operand.dtype
    tasks, find_tile = TableTasks(sig, places, BQ), places.find_row_tile()
    delta_rows = delta_pass(sig, gradient)
    (load_k, _), (load_v, _), (load_q, _), (load_do, _) = (
        staged_rows(name, operand) for name in ("k", "v", "q", "do")
    )
    load_delta, load_low = (staged_numbers(name, 0) for name in ("delta", "low"))
    load_lse = staged_numbers("lse", "inf", gradient.row)
    turn_k, turn_v = map(turned_keys, ("k", "v"))
    multiply_qk, multiply_do = (dot_products(name, operand.dot) for name in ("scores", "dp"))
    reads = [load for load in spec.table_loads if load.table in spec.learned]
    shares = in_turn([shares_of(n, scores, gradient) for n in range(len(reads))])
    sums = in_turn([sums_of(n, load) for n, load in enumerate(reads)])
    of_reads = [sig.table_gradients[load.table] for load in reads]
    results = [*sig.table_gradients.values()]

    @T.prim_func(s_tir=True, check_well_formed=False)
    def attention(
        Q: sig.own("q"), K: sig.own("k"), V: sig.own("v"), O: sig.own("out"), dO: sig.own("dout"),
        L: sig.own("lse"), L_low: sig.own("lse_low"), dL: sig.own("dlse"),
        delta_r: sig.own("delta"),
    ):  # fmt: skip
        if has_delta:
            delta_rows(O, dO, dL, delta_r)
        for t in T.serial(tasks.work.count):
            with T.sblock("worker"):
                vt = T.axis.spatial(tasks.work.count, t)
                rows_in = T.meta_var(
                    [
                        Q, dO, *[delta_r] * has_delta, *[L] * has_sum, *[L_low] * with_low,
                        *dropout.inputs,
                    ]
                )  # fmt: skip
                T.reads(whole([*rows_in, K, V]))
                T.writes(whole(results))
                part_of = T.sblock_alloc_buffer((1,), "int64")
                part_of[0] = tasks.work.place(vt)["part"]
                part: T.let[T.int64] = part_of[0]
                Q_r = T.sblock_alloc_buffer((BQ, W), word)
                dO_r = T.sblock_alloc_buffer((BQ, Wv), word)
                K_r = T.sblock_alloc_buffer((BS, W), word)
                V_r = T.sblock_alloc_buffer((BS, Wv), word)
                Kt = T.sblock_alloc_buffer((1, W, BS), word)
                Vt = T.sblock_alloc_buffer((1, Wv, BS), word)
                lse_b = T.sblock_alloc_buffer((BQ,), "float32") if has_sum else T.meta_var(Q_r)
                low_b = T.sblock_alloc_buffer((BQ,), "float32") if with_low else T.meta_var(lse_b)
                delta_b = (
                    T.sblock_alloc_buffer((BQ,), "float32") if has_delta else T.meta_var(lse_b)
                )
                statistics = T.meta_var([*[lse_b] * has_sum, *[low_b] * with_low])
                S = T.sblock_alloc_buffer((BQ, BS), "float32")
                X = T.sblock_alloc_buffer((BQ, BS), "float32")
                Y = T.sblock_alloc_buffer((BQ, BS), "float32")
                P = T.sblock_alloc_buffer((BQ, BS), "float32")
                key = dropout.head(P)
                P_kept = dropout.kept(P)
                dP = T.sblock_alloc_buffer((BQ, BS), "float32")
                G = T.meta_var([T.sblock_alloc_buffer((BQ, BS), "float32") for _ in reads])
                for n in T.serial(tasks.count(part)):
                    with T.sblock("q_tile"):
                        vn = T.axis.opaque(tasks.count(part), n)
                        block = T.meta_var([Q_r, dO_r, lse_b, low_b, delta_b, *dropout.held(key)])
                        work = T.meta_var([K_r, V_r, Kt, Vt, S, X, Y, P, P_kept, dP, *G])
                        T.reads(whole([*rows_in, K, V, *results]))
                        T.writes(whole([*block, *work, *results]))
                        place_of = T.sblock_alloc_buffer((places.size,), "int64")
                        find_tile(place_of, vn, tasks.tiles(vt, part), BQ)
                        sequences = T.meta_var(places.sequences(place_of))
                        b: T.let[T.int64] = place_of[0]
                        h: T.let[T.int64] = place_of[1]
                        hk: T.let[T.int64] = T.truncdiv(h, group)
                        q0: T.let[T.int64] = place_of[2]
                        row0: T.let[T.int32] = T.Cast("int32", q0)
                        lengths = T.meta_var(sequences.lengths(b))
                        keys: T.let[T.int32] = int32(lengths[1])
                        bound = T.meta_var(scores.at(b, h, lengths=lengths))
                        seen = T.meta_var(
                            visibility(sig, lengths, b)
                            .of_head(h)
                            .keys(row0, row0 + BQ, BS, pad_is_boundary=scores.hides_rows)
                        )
                        visible = T.sblock_alloc_buffer((4,), "int32")
                        visible[0] = seen.start
                        visible[1] = places.some(q0 < lengths[0], seen.count)
                        visible[2] = seen.full_low
                        visible[3] = seen.full_high
                        first: T.let[T.int32] = visible[0]
                        steps: T.let[T.int32] = visible[1]
                        full_lo: T.let[T.int32] = visible[2]
                        full_hi: T.let[T.int32] = visible[3]
                        kept = T.meta_var(
                            seen.held(start=first, full_low=full_lo, full_high=full_hi)
                        )
                        row_at = T.meta_var(partial(sequences.query, b, h))
                        key_at = T.meta_var(partial(sequences.key, b, hk))
                        number_at = T.meta_var(partial(sequences.statistic, b, h))
                        q_rows = T.meta_var(Rows(Q, row_at, lengths[0], dim))
                        do_rows = T.meta_var(Rows(dO, row_at, lengths[0], dim_v))
                        k_rows = T.meta_var(Rows(K, key_at, keys, dim))
                        v_rows = T.meta_var(Rows(V, key_at, keys, dim_v))
                        dropout.write_head(key, b, h)
                        load_q(q_rows, q0, Q_r)
                        load_do(do_rows, q0, dO_r)
                        if has_delta:
                            load_delta(number_at, lengths[0], delta_r, q0, delta_b)
                        if has_sum:
                            load_lse(number_at, lengths[0], L, q0, lse_b)
                        if with_low:
                            load_low(number_at, lengths[0], L_low, q0, low_b)
                        for u in T.serial(steps):
                            with T.sblock("step"):
                                vu = T.axis.opaque(steps, u)
                                T.reads(whole([K, V, *block, *results]))
                                T.writes(whole([*work, *results]))
                                k0: T.let[T.int32] = kept.first(vu)
                                edge: T.let[T.bool] = kept.boundary(vu)
                                load_k(k_rows, k0, K_r)
                                load_v(v_rows, k0, V_r)
                                turn_k(K_r, Kt)
                                turn_v(V_r, Vt)
                                with T.sblock("p_scope"):
                                    T.reads(whole([Q_r, Kt, lse_b, low_b, *dropout.held(key)]))
                                    T.writes(whole([S, X, Y, P, P_kept]))
                                    multiply_qk(Q_r, Kt, S, 0, D)
                                    weigh(S, X, Y, P, bound, q0, k0, edge, statistics)
                                    drop(P, P_kept, key, row0, k0)
                                weights = T.meta_var((P, P_kept))
                                pair = T.meta_var(
                                    lambda read, i, j: bound.by_tables(S[i, j], q0 + i, k0 + j)[
                                        read
                                    ]
                                )
                                with T.sblock("ds_scope"):
                                    T.reads(whole([dO_r, Vt, P, P_kept, S, delta_b]))
                                    T.writes(whole([dP, *G]))
                                    multiply_do(dO_r, Vt, dP, 0, Dv)
                                    shares(G, weights, dP, delta_b, pair)
                                with T.sblock("sum_scope"):
                                    T.reads(whole([*G, S, *results]))
                                    T.writes(whole(results))
                                    sums(G, of_reads, part, pair, None)

    # dQ, dK and dV are of another direction.
    gradient.check("scores", "dp", "dq", "dk", "dv", *scores.used)
    return sig.finish(attention, f"{spec.name}_tables")
