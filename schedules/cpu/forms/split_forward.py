"""Attention forward in TensorIR for few query rows: keys split into chunks, partials combined."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from ....definition.arithmetic import TIR, visibility
from ....definition.derive.bound import BoundRecurrence
from ....definition.kinds import recurrence_of, row_numbers
from ....definition.scores import Scores
from ....definition.signature import Signature
from ....problem.spec import AttentionSpec
from .chunks import Chunks
from .key_runs import found_runs
from .regions import whole
from .row_states import row_states
from .split_combine import combined_chunks
from .split_products import key_scores, value_sums
from .staging import Rows, column_word
from .tasks import heads_of_task
from .tiles import FLOAT32, Bf16PairOperand, Float32Operand


@dataclass(frozen=True)
class SplitTile:
    """Block sizes of ``split_forward``; they change speed, never results beyond rounding.

    rows: most packed query rows of a key/value head in a task, in groups of ``row_block`` that
    share a loaded key. heads: most key/value heads of a task. chunk: keys of a task, in blocks of
    block_k. lanes: keys whose maxima and sums are kept apart until the end of a row. depth,
    depth_v: head dims rounded up to whole vectors; where that adds columns, K or V is staged with
    zeros, else its whole blocks are read in place, where the keys of one lie at one stride. ahead:
    blocks of keys that are asked for before they are read (0: none). tasks_per_thread: tasks have
    fewer heads where there would be fewer.
    """

    rows: int
    row_block: int
    heads: int
    chunk: int
    block_k: int
    lanes: int
    depth: int
    depth_v: int
    operand: Float32Operand | Bf16PairOperand = FLOAT32
    ahead: int = 0
    tasks_per_thread: int = 4

    @property
    def block_q(self) -> int:
        """Rows of a tile, as other forwards call it."""
        return self.rows

    @property
    def aligned(self) -> int:
        """Keys of whole blocks and whole vectors of lanes."""
        return max(self.block_k, self.lanes)


def split_forward(spec: AttentionSpec, tile: SplitTile, math=None, threads=None) -> tirx.PrimFunc:
    """Flash-decoding (Dao et al., 2023): a task per chunk of keys, then one combination per row.

    The query rows that share a key/value head (its heads times Sq positions) are packed into one
    tile, so that a chunk of K and V is read once for all of them. A task takes heads that lie side
    by side, so that it reads K and V nearly in the order of memory. Within a chunk the softmax is
    the plain one; the partial (m, l, acc) of chunks are combined in order, so that the bits do not
    depend on the number of threads. They take depth_v + 2 floats for each head, query and chunk of
    its entry's keys. Head dimensions are the minor axis of both products, keys that of the softmax.
    ``math`` gives the vector forms of exp2 and friends (None: intrinsics); threads: an int64
    expression (None: 1).
    """
    sig = Signature(spec, "forward")
    RB, C, BK, W, U = tile.row_block, tile.chunk, tile.block_k, tile.lanes, tile.aligned
    D, Dv, R = tile.depth, tile.depth_v, tile.heads * tile.rows
    operand, pack = tile.operand, tile.operand.pack
    scores, chunks = Scores(sig, math), Chunks(sig, tile.rows, C)
    count_chunks, find_chunk, places = chunks.count(), chunks.find(), chunks.places
    softmax = BoundRecurrence(recurrence_of(spec.softmax), math)
    inputs, numbers = list(sig.inputs.values()), partial(row_numbers, sig)
    statistics = spec.forward_statistics
    dim, dim_v, group = spec.head_dim, spec.head_dim_v, sig.group
    combine = combined_chunks(sig, softmax, numbers, chunks)
    reduce_max, reduce_sum = row_states(softmax, "m", "max", W), row_states(softmax, "l", "sum", W)
    direct_scores, staged_scores = key_scores(tile, dim)
    direct_sums, staged_sums = value_sums(tile, dim_v)
    find_runs, width = found_runs(BK), chunks.run_width
    threads = T.int64(1) if threads is None else threads

    @T.prim_func(s_tir=True, check_well_formed=False)
    def attention(
        Q: sig.own("q"), K: sig.own("k"), V: sig.own("v"), O: sig.own("out"), L: sig.own("lse"),
        L_low: sig.own("lse_low"),
    ):  # fmt: skip
        results = T.meta_var(dict(zip(statistics, [L, L_low], strict=False)))
        before = T.sblock_alloc_buffer(chunks.table, "int64")
        with T.sblock("count_chunks"):
            T.writes(whole([before]))
            count_chunks(before)
        tiles: T.let[T.int64] = before[sig.batch, 0]
        tasks: T.let[T.int64] = threads * tile.tasks_per_thread
        # Heads that lie apart are read in order one after the other.
        together = T.meta_var(K.strides[-2] < K.strides[-3])
        most = T.meta_var(T.Select(together, T.int64(tile.heads), T.int64(1)))
        heads: T.let[T.int64] = heads_of_task(tiles, sig.kv_heads, most, tasks, TIR)
        work = T.meta_var(chunks.work(tiles, heads))
        # Memory for what was counted: beside a long entry there may be many short ones.
        left_by_all: T.let[T.int64] = chunks.results(before)
        with T.sblock("parts"):
            T.reads(whole([Q, K, V, before, *inputs]))
            T.writes(whole([O, *results.values()]))
            chunk_m = T.sblock_alloc_buffer((left_by_all,), "float32")
            chunk_l = T.sblock_alloc_buffer((left_by_all,), "float32")
            chunk_acc = T.sblock_alloc_buffer((left_by_all, Dv), "float32")
            for t in T.serial(work.count):
                with T.sblock("chunk"):
                    vt = T.axis.spatial(work.count, t)
                    T.reads(whole([Q, K, V, before]))
                    T.writes(whole([chunk_m, chunk_l, chunk_acc]))
                    place = T.sblock_alloc_buffer((chunks.size,), "int64")
                    with T.sblock("place"):
                        T.reads(whole([before]))
                        T.writes(whole([place]))
                        find_chunk(place, vt, before, work, heads)
                    sequences = T.meta_var(places.sequences(place))
                    b: T.let[T.int64] = place[0]
                    hk: T.let[T.int64] = place[1]
                    r0: T.let[T.int64] = place[2]
                    c: T.let[T.int64] = place[chunks.size - 1]
                    lengths = T.meta_var(sequences.lengths(b))
                    seen = T.meta_var(visibility(sig, lengths))
                    left = T.meta_var(T.min(group * lengths[0] - r0, tile.rows))
                    rows: T.let[T.int32] = T.Cast("int32", left)
                    q0 = T.meta_var(T.Cast("int32", T.truncdiv(r0, group)))
                    q_end = T.meta_var(T.Cast("int32", T.truncdiv(r0 + rows - 1, group)) + 1)
                    c0 = T.meta_var(T.Cast("int32", c) * C)
                    visits = T.meta_var(seen.keys(q0, q_end, U, within=(c0, c0 + C)))
                    visible = T.sblock_alloc_buffer((4,), "int32")
                    with T.sblock("visible"):
                        T.writes(visible[0:4])
                        # From the first visible keys on: a narrow window skips the others.
                        visible[0] = visits.first(0)
                        visible[1] = visits.end
                        visible[2] = visits.full_low
                        visible[3] = visits.full_high
                    first: T.let[T.int32] = visible[0]
                    keys: T.let[T.int32] = T.min(T.max(visible[1] - first, 0), C)
                    blocks: T.let[T.int32] = T.truncdiv(keys + (BK - 1), BK)
                    vectors: T.let[T.int32] = T.truncdiv(keys + (U - 1), U) * (U // W)
                    inner: T.let[T.int32] = T.truncdiv(keys, BK)
                    direct: T.let[T.int32] = places.in_place(sequences, b, BK, inner)
                    direct_k: T.let[T.int32] = direct if dim == D else 0
                    direct_v: T.let[T.int32] = direct if dim_v == Dv else 0
                    bounds = T.meta_var(visits.held(full_low=visible[2], full_high=visible[3]))
                    boundary: T.let[T.bool] = bounds.is_boundary(first, vectors * W)
                    own_heads = T.meta_var(T.Cast("int32", T.min(heads, sig.kv_heads - hk)))
                    own: T.let[T.int32] = T.if_then_else(keys > 0, own_heads, 0)
                    groups: T.let[T.int32] = T.truncdiv(rows + (RB - 1), RB)
                    key_at = T.meta_var(partial(sequences.key, b))
                    head = T.sblock_alloc_buffer((R,), "int32")
                    position = T.sblock_alloc_buffer((R,), "int32")
                    runs = T.sblock_alloc_buffer((C // BK, width), "int64")
                    Qt = T.sblock_alloc_buffer((R, D // pack), operand.dtype)
                    Kb = T.sblock_alloc_buffer((BK, D // pack), operand.dtype)
                    Vb = T.sblock_alloc_buffer((BK // pack, Dv), operand.dtype)
                    S = T.sblock_alloc_buffer((R, C), "float32")
                    P = T.sblock_alloc_buffer((R, C // pack), operand.dtype)
                    m = T.sblock_alloc_buffer((R,), "float32")
                    l = T.sblock_alloc_buffer((R,), "float32")
                    acc = T.sblock_alloc_buffer((R, Dv), "float32")
                    # Rows past the last of a head repeat it, and are not stored.
                    for h, i in T.grid(own, groups * RB):
                        with T.sblock("row_head"):
                            vi = T.axis.spatial(R, h * (groups * RB) + i)
                            vh, vr = T.axis.remap("SS", [h, i])
                            of_head = T.meta_var(T.truncmod(r0 + T.min(vr, rows - 1), group))
                            head[vi] = T.Cast("int32", (hk + vh) * group + of_head)
                    for h, i in T.grid(own, groups * RB):
                        with T.sblock("row_position"):
                            vi = T.axis.spatial(R, h * (groups * RB) + i)
                            vr = T.axis.spatial(tile.rows, i)
                            row = T.meta_var(r0 + T.min(vr, rows - 1))
                            position[vi] = T.Cast("int32", T.truncdiv(row, group))
                    for i, d in T.grid(own * groups * RB, D // pack):
                        with T.sblock("load_q"):
                            vi = T.axis.spatial(R, i)
                            vd = T.axis.spatial(D // pack, d)
                            row_at = T.meta_var(partial(sequences.query, b, head[vi]))
                            of_row = T.meta_var(Rows(Q, row_at, lengths[0], dim))
                            Qt[vi, vd] = column_word(operand, of_row, position[vi], vd * pack)
                    find_runs(runs, sequences, b, first, direct)
                    direct_scores(Qt, K, S, runs, hk, own, groups, direct_k)
                    of_task = T.meta_var((first, hk, own, groups))
                    staged_scores(Qt, K, key_at, keys, Kb, S, *of_task, direct_k, blocks)
                    # Row by row: what lies between two loops stays in the first-level cache.
                    for i in T.serial(own * groups * RB):
                        with T.sblock("row"):
                            vi = T.axis.spatial(R, i)
                            T.reads(whole([S, head, position, *inputs]))
                            T.writes(whole([P, m, l]))
                            X = T.sblock_alloc_buffer((C,), "float32")
                            Y = T.sblock_alloc_buffer((C,), "float32")
                            E = T.sblock_alloc_buffer((C,), "float32")
                            bound = T.meta_var(scores.at(b, head[vi], lengths=lengths))
                            for j in T.serial(vectors * W):
                                with T.sblock("score_mod"):
                                    vj = T.axis.spatial(C, j)
                                    X[vj] = bound.scaled(S[vi, vj], position[vi], first + vj)
                            for j in T.serial(vectors * W):
                                with T.sblock("mask"):
                                    vj = T.axis.spatial(C, j)
                                    at = T.meta_var((position[vi], first + vj))
                                    Y[vj] = bound.masked(X[vj], *at, boundary)
                            if softmax.has_sum:
                                reduce_max(Y, m, vi, vectors)
                            for j in T.serial(vectors * W):
                                with T.sblock("exp"):
                                    vj = T.axis.spatial(C, j)
                                    E[vj] = softmax.weight(Y[vj], m[vi])
                            for j in T.serial(vectors * (W // pack)):
                                with T.sblock("store_p"):
                                    vj = T.axis.spatial(C // pack, j)
                                    pair = T.meta_var([E[vj * pack + e] for e in range(pack)])
                                    P[vi, vj] = operand.encode(*pair)
                            if softmax.has_sum:
                                reduce_sum(E, l, vi, vectors)
                    for i, d in T.grid(own * groups * RB, Dv):
                        with T.sblock("init_acc"):
                            vi = T.axis.spatial(R, i)
                            vd = T.axis.spatial(Dv, d)
                            acc[vi, vd] = softmax.nothing("acc")
                    direct_sums(P, V, acc, runs, hk, own, groups, direct_v)
                    staged_sums(P, V, key_at, keys, Vb, acc, *of_task, direct_v, blocks)
                    for h in range(own):
                        with T.sblock("store"):
                            vh = T.axis.spatial(tile.heads, h)
                            T.reads(whole([m, l, acc, before]))
                            T.writes(whole([chunk_m, chunk_l, chunk_acc]))
                            to: T.let[T.int64] = chunks.result(
                                before, b, lengths[0], hk + vh, r0, c
                            )
                            own_row: T.let[T.int32] = vh * groups * RB
                            if softmax.has_sum:
                                for i in range(rows):
                                    with T.sblock("store_m"):
                                        vi = T.axis.spatial(tile.rows, i)
                                        chunk_m[to + vi] = m[own_row + vi]
                                for i in range(rows):
                                    with T.sblock("store_l"):
                                        vi = T.axis.spatial(tile.rows, i)
                                        chunk_l[to + vi] = l[own_row + vi]
                            for i, d in T.grid(rows, Dv):
                                with T.sblock("store_acc"):
                                    vi = T.axis.spatial(tile.rows, i)
                                    vd = T.axis.spatial(Dv, d)
                                    chunk_acc[to + vi, vd] = acc[own_row + vi, vd]
            combine(chunk_m, chunk_l, chunk_acc, before, inputs, O, results)

    softmax.check(statistics, "scores", "pv", *scores.used)
    return sig.finish(attention, f"{spec.name}_fwd", statistics)
