"""Attention forward in TensorIR for few query rows: keys split into chunks, partials combined."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from ....definition.arithmetic import visibility
from ....definition.derive.bound import BoundRecurrence
from ....definition.kinds import recurrence_of, row_numbers
from ....definition.scores import Scores
from ....definition.signature import Signature
from ....problem.spec import AttentionSpec
from .entries import places_of
from .regions import whole
from .row_states import row_states
from .split_combine import combined_chunks
from .staging import padded


@dataclass(frozen=True)
class SplitTile:
    """Block sizes of ``split_forward``; they change speed, never results beyond rounding.

    rows: packed query rows of a task, in groups of ``row_block`` that share a loaded key.
    chunk: keys of a task, in blocks of block_k. lanes: keys whose maxima and sums are kept apart
    until the end of a chunk. depth, depth_v: head dims rounded up to whole vectors; where that adds
    columns, K or V is staged with zeros, else its whole blocks are read in place, where the keys of
    one lie at one stride.
    """

    rows: int
    row_block: int
    chunk: int
    block_k: int
    lanes: int
    depth: int
    depth_v: int

    @property
    def block_q(self) -> int:
        """Rows of a tile, as other forwards call it."""
        return self.rows


def split_forward(spec: AttentionSpec, tile: SplitTile, math=None) -> tirx.PrimFunc:
    """Flash-decoding (Dao et al., 2023): a task per chunk of keys, then one combination per row.

    The query rows that share a key/value head (its heads times Sq positions) are packed into one
    tile, so that a chunk of K and V is read once for all of them. Within a chunk the softmax is the
    plain one; the partial (m, l, acc) of chunks are combined in order, so that the bits do not
    depend on the number of threads. They take B * H * Sq * ceil(Sk / chunk) * (depth_v + 2) floats.
    Head dimensions are the minor axis of both products, keys that of the softmax. ``math`` gives
    the vector forms of exp2 and friends (None: intrinsics).
    """
    sig = Signature(spec, "forward")
    scores, places = Scores(sig, math), places_of(sig, with_part=True)
    find_tile = places.find_chunk()
    softmax = BoundRecurrence(recurrence_of(spec.softmax), math)
    inputs, numbers = list(sig.inputs.values()), partial(row_numbers, sig)
    statistics = spec.forward_statistics
    dim, dim_v, group = spec.head_dim, spec.head_dim_v, sig.group
    R, RB, C, BK, W = tile.rows, tile.row_block, tile.chunk, tile.block_k, tile.lanes
    D, Dv = tile.depth, tile.depth_v
    all_rows, chunks = places.packed_rows, places.key_chunks(C)
    work = places.chunks(R, C)
    combine = combined_chunks(sig, softmax, numbers, C)
    reduce_max, reduce_sum = row_states(softmax, "m", "max"), row_states(softmax, "l", "sum")

    @T.prim_func(s_tir=True, check_well_formed=False)
    def attention(
        Q: sig.own("q"), K: sig.own("k"), V: sig.own("v"), O: sig.own("out"), L: sig.own("lse"),
        L_low: sig.own("lse_low"),
    ):  # fmt: skip
        chunk_m = T.sblock_alloc_buffer((all_rows, chunks), "float32")
        chunk_l = T.sblock_alloc_buffer((all_rows, chunks), "float32")
        chunk_acc = T.sblock_alloc_buffer((all_rows, chunks, Dv), "float32")
        for t in T.serial(work.count):
            with T.sblock("chunk"):
                vt = T.axis.spatial(work.count, t)
                T.reads(whole([Q, K, V]))
                T.writes(
                    chunk_m[0:all_rows, 0:chunks],
                    chunk_l[0:all_rows, 0:chunks],
                    chunk_acc[0:all_rows, 0:chunks, 0:Dv],
                )
                place = T.sblock_alloc_buffer((places.size,), "int64")
                with T.sblock("place"):
                    T.writes(whole([place]))
                    find_tile(place, vt, work, R)
                # A variable: a block that becomes a micro-kernel reads its operands alone.
                first_key: T.let[T.int64] = places.first_key(place)
                sequences = T.meta_var(places.sequences(place, first_key))
                b: T.let[T.int64] = place[0]
                hk: T.let[T.int64] = place[1]
                r0: T.let[T.int64] = place[2]
                c: T.let[T.int64] = place[places.size - 1]
                lengths = T.meta_var(sequences.lengths(b))
                seen = T.meta_var(visibility(sig, lengths))
                left = T.meta_var(group * lengths[0] - r0)
                rows: T.let[T.int32] = T.max(T.Cast("int32", T.min(left, R)), 1)
                q0 = T.meta_var(T.Cast("int32", T.truncdiv(r0, group)))
                q_end = T.meta_var(T.Cast("int32", T.truncdiv(r0 + rows - 1, group)) + 1)
                c0 = T.meta_var(T.Cast("int32", c) * C)
                visits = T.meta_var(seen.keys(q0, q_end, BK, within=(c0, c0 + C)))
                visible = T.sblock_alloc_buffer((4,), "int32")
                with T.sblock("visible"):
                    T.writes(visible[0:4])
                    # Whole blocks from the first visible key on: a narrow window skips the others.
                    visible[0] = visits.first(0)
                    visible[1] = visits.end
                    visible[2] = visits.full_low
                    visible[3] = visits.full_high
                first: T.let[T.int32] = visible[0]
                keys: T.let[T.int32] = T.min(T.max(visible[1] - first, 0), C)
                blocks: T.let[T.int32] = T.truncdiv(keys + (BK - 1), BK)
                inner: T.let[T.int32] = T.truncdiv(keys, BK)
                direct = T.meta_var(places.in_place(sequences, b, BK, inner))
                direct_k: T.let[T.int32] = direct if dim == D else 0
                direct_v: T.let[T.int32] = direct if dim_v == Dv else 0
                kept = T.meta_var(visits.held(full_low=visible[2], full_high=visible[3]))
                boundary: T.let[T.bool] = kept.is_boundary(first, blocks * BK)
                # Neither where no key is seen nor where the entry ends before this tile.
                seen_keys = T.meta_var(places.some(left > 0, keys))
                some = T.meta_var(seen_keys > 0)
                groups: T.let[T.int32] = T.if_then_else(some, T.truncdiv(rows + (RB - 1), RB), 0)
                key_at = T.meta_var(partial(sequences.key, b, hk))
                run_at = T.meta_var(partial(sequences.key_of_run, b, hk))
                k_region = T.meta_var(K[key_at(slice(0, lengths[1]), slice(0, dim))])
                v_region = T.meta_var(V[key_at(slice(0, lengths[1]), slice(0, dim_v))])
                head = T.sblock_alloc_buffer((R,), "int32")
                position = T.sblock_alloc_buffer((R,), "int32")
                Qt = T.sblock_alloc_buffer((R, D), "float32")
                Kb = T.sblock_alloc_buffer((BK, D), "float32")
                Vb = T.sblock_alloc_buffer((BK, Dv), "float32")
                S = T.sblock_alloc_buffer((R, C), "float32")
                X = T.sblock_alloc_buffer((R, C), "float32")
                Y = T.sblock_alloc_buffer((R, C), "float32")
                P = T.sblock_alloc_buffer((R, C), "float32")
                lane_m = T.sblock_alloc_buffer((R, W), "float32")
                lane_l = T.sblock_alloc_buffer((R, W), "float32")
                m = T.sblock_alloc_buffer((R,), "float32")
                l = T.sblock_alloc_buffer((R,), "float32")
                acc = T.sblock_alloc_buffer((R, Dv), "float32")
                # Rows past the last repeat it, and are not stored.
                for i in range(groups * RB):
                    with T.sblock("row_head"):
                        vi = T.axis.spatial(R, i)
                        head[vi] = T.Cast(
                            "int32", hk * group + T.truncmod(r0 + T.min(vi, rows - 1), group)
                        )
                for i in range(groups * RB):
                    with T.sblock("row_position"):
                        vi = T.axis.spatial(R, i)
                        position[vi] = T.Cast("int32", T.truncdiv(r0 + T.min(vi, rows - 1), group))
                for i, d in T.grid(groups * RB, D):
                    with T.sblock("load_q"):
                        vi = T.axis.spatial(R, i)
                        vd = T.axis.spatial(D, d)
                        row_at = T.meta_var(sequences.query(b, head[vi], position[vi], vd))
                        Qt[vi, vd] = padded(Q, row_at, True, dim)
                for n in range(direct_k):
                    with T.sblock("direct_scores"):
                        vn = T.axis.spatial(T.truncdiv(C, BK), n)
                        T.reads(Qt[0:R, 0:D], k_region)
                        T.writes(S[0:R, 0:C])
                        for g, i, j, d in T.grid(groups, RB, BK, D):
                            with T.sblock("scores"):
                                vi = T.axis.spatial(R, g * RB + i)
                                vj = T.axis.spatial(BK, j)
                                vd = T.axis.reduce(D, d)
                                with T.init():
                                    S[vi, vn * BK + vj] = T.float32(0)
                                S[vi, vn * BK + vj] = S[vi, vn * BK + vj] + Qt[vi, vd] * T.Cast(
                                    "float32", K[run_at(first + vn * BK, vj, vd)]
                                )
                for n in range(blocks - direct_k):
                    with T.sblock("staged_scores"):
                        vn = T.axis.spatial(T.truncdiv(C, BK), direct_k + n)
                        T.reads(Qt[0:R, 0:D], k_region)
                        T.writes(S[0:R, 0:C], Kb[0:BK, 0:D])
                        for j, d in T.grid(BK, D):
                            with T.sblock("load_k"):
                                vj, vd = T.axis.remap("SS", [j, d])
                                Kb[vj, vd] = padded(
                                    K,
                                    key_at(first + vn * BK + vj, vd),
                                    vn * BK + vj < keys,
                                    dim,
                                )
                        for g, i, j, d in T.grid(groups, RB, BK, D):
                            with T.sblock("rest_scores"):
                                vi = T.axis.spatial(R, g * RB + i)
                                vj = T.axis.spatial(BK, j)
                                vd = T.axis.reduce(D, d)
                                with T.init():
                                    S[vi, vn * BK + vj] = T.float32(0)
                                S[vi, vn * BK + vj] = S[vi, vn * BK + vj] + Qt[vi, vd] * Kb[vj, vd]
                for i, j in T.grid(groups * RB, blocks * BK):
                    with T.sblock("score_mod"):
                        vi = T.axis.spatial(R, i)
                        vj = T.axis.spatial(C, j)
                        bound = T.meta_var(scores.at(b, head[vi], lengths=lengths))
                        X[vi, vj] = bound.scaled(S[vi, vj], position[vi], first + vj)
                for i, j in T.grid(groups * RB, blocks * BK):
                    with T.sblock("mask"):
                        vi = T.axis.spatial(R, i)
                        vj = T.axis.spatial(C, j)
                        bound = T.meta_var(scores.at(b, head[vi], lengths=lengths))
                        Y[vi, vj] = bound.masked(X[vi, vj], position[vi], first + vj, boundary)
                if softmax.has_sum:
                    reduce_max(Y, lane_m, m, groups * RB, blocks * (BK // W))
                for i, j in T.grid(groups * RB, blocks * BK):
                    with T.sblock("exp"):
                        vi = T.axis.spatial(R, i)
                        vj = T.axis.spatial(C, j)
                        P[vi, vj] = softmax.weight(Y[vi, vj], m[vi])
                if softmax.has_sum:
                    reduce_sum(P, lane_l, l, groups * RB, blocks * (BK // W))
                for i, d in T.grid(groups * RB, Dv):
                    with T.sblock("init_acc"):
                        vi = T.axis.spatial(R, i)
                        vd = T.axis.spatial(Dv, d)
                        acc[vi, vd] = softmax.nothing("acc")
                for n in range(direct_v):
                    with T.sblock("direct_pv"):
                        vn = T.axis.opaque(T.truncdiv(C, BK), n)
                        T.reads(P[0:R, 0:C], v_region, acc[0:R, 0:Dv])
                        T.writes(acc[0:R, 0:Dv])
                        for g, i, d, j in T.grid(groups, RB, Dv, BK):
                            with T.sblock("pv"):
                                vi = T.axis.spatial(R, g * RB + i)
                                vd = T.axis.spatial(Dv, d)
                                vj = T.axis.reduce(BK, j)
                                acc[vi, vd] = acc[vi, vd] + P[vi, vn * BK + vj] * T.Cast(
                                    "float32", V[run_at(first + vn * BK, vj, vd)]
                                )
                for n in range(blocks - direct_v):
                    with T.sblock("staged_pv"):
                        vn = T.axis.opaque(T.truncdiv(C, BK), direct_v + n)
                        T.reads(P[0:R, 0:C], v_region, acc[0:R, 0:Dv])
                        T.writes(acc[0:R, 0:Dv], Vb[0:BK, 0:Dv])
                        for j, d in T.grid(BK, Dv):
                            with T.sblock("load_v"):
                                vj, vd = T.axis.remap("SS", [j, d])
                                Vb[vj, vd] = padded(
                                    V,
                                    key_at(first + vn * BK + vj, vd),
                                    vn * BK + vj < keys,
                                    dim_v,
                                )
                        for g, i, d, j in T.grid(groups, RB, Dv, BK):
                            with T.sblock("rest_pv"):
                                vi = T.axis.spatial(R, g * RB + i)
                                vd = T.axis.spatial(Dv, d)
                                vj = T.axis.reduce(BK, j)
                                acc[vi, vd] = acc[vi, vd] + P[vi, vn * BK + vj] * Vb[vj, vd]
                first_row: T.let[T.int64] = places.packed_row(place)
                stored: T.let[T.int32] = T.if_then_else(some, rows, 0)
                if softmax.has_sum:
                    for i in range(stored):
                        with T.sblock("store_m"):
                            vi = T.axis.spatial(R, i)
                            chunk_m[first_row + vi, c] = m[vi]
                    for i in range(stored):
                        with T.sblock("store_l"):
                            vi = T.axis.spatial(R, i)
                            chunk_l[first_row + vi, c] = l[vi]
                for i, d in T.grid(stored, Dv):
                    with T.sblock("store_acc"):
                        vi = T.axis.spatial(R, i)
                        vd = T.axis.spatial(Dv, d)
                        chunk_acc[first_row + vi, c, vd] = acc[vi, vd]
        results = T.meta_var(dict(zip(statistics, [L, L_low], strict=False)))
        combine(chunk_m, chunk_l, chunk_acc, inputs, O, results)

    softmax.check(statistics, "scores", "pv", *scores.used)
    return sig.finish(attention, f"{spec.name}_fwd", statistics)
