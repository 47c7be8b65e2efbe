"""The split forward's products, of blocks of keys that are read in place and of staged ones."""

from __future__ import annotations

from tvm.script import tirx as T

from ....problem.dtype import DTYPES
from ....problem.sequences import key_of_run
from .key_runs import CACHE_LINE, asked
from .regions import whole
from .staging import padded

# Rows of a task lie head by head, each head's in whole groups of row_block.
# An inline function numbers the blocks of its second use: each definition makes its own.


def key_scores(tile, dim: int):
    """(direct, staged): S = Q K^T of the blocks of keys before ``direct``, and of the others."""
    RB, C, BK, D = tile.row_block, tile.chunk, tile.block_k, tile.depth

    @T.inline
    def direct_scores(Qt, K, S, runs, first_head, heads, groups, direct):
        for n, h in T.grid(direct, heads):
            with T.sblock("direct_scores"):
                vn = T.axis.spatial(C // BK, n)
                vh = T.axis.spatial(tile.heads, h)
                T.reads(whole([Qt, K, runs]))
                T.writes(whole([S]))
                row0: T.let[T.int32] = vh * groups * RB
                hk: T.let[T.int64] = first_head + vh
                ask_for(K, runs, T.min(vn + tile.ahead, direct - 1), hk, tile, D)
                outer: T.let[T.int64] = runs[vn, 0]
                inner: T.let[T.int64] = runs[vn, runs.shape[1] - 1]
                run = T.meta_var((outer, inner)[-int(runs.shape[1]) :])
                for g, i, j, d in T.grid(groups, RB, BK, D):
                    with T.sblock("scores"):
                        vi = T.axis.spatial(tile.rows, g * RB + i)
                        vj = T.axis.spatial(BK, j)
                        vd = T.axis.reduce(D, d)
                        with T.init():
                            S[row0 + vi, vn * BK + vj] = T.float32(0)
                        S[row0 + vi, vn * BK + vj] = S[row0 + vi, vn * BK + vj] + Qt[row0 + vi, vd] * T.Cast(
                            "float32", K[key_of_run(run, hk, vj, vd)]
                        )

    @T.inline
    def staged_scores(Qt, k_rows, Kb, S, first, first_head, heads, groups, direct, blocks):
        for n, h in T.grid(blocks - direct, heads):
            with T.sblock("staged_scores"):
                vn = T.axis.spatial(C // BK, direct + n)
                vh = T.axis.spatial(tile.heads, h)
                T.reads(whole([Qt, k_rows.buffer]))
                T.writes(whole([S, Kb]))
                row0: T.let[T.int32] = vh * groups * RB
                hk: T.let[T.int64] = first_head + vh
                for j, d in T.grid(BK, D):
                    with T.sblock("load_k"):
                        vj, vd = T.axis.remap("SS", [j, d])
                        at = T.meta_var(k_rows.index(hk, first + vn * BK + vj, vd))
                        Kb[vj, vd] = padded(k_rows.buffer, at, vn * BK + vj < k_rows.count, dim)
                for g, i, j, d in T.grid(groups, RB, BK, D):
                    with T.sblock("rest_scores"):
                        vi = T.axis.spatial(tile.rows, g * RB + i)
                        vj = T.axis.spatial(BK, j)
                        vd = T.axis.reduce(D, d)
                        with T.init():
                            S[row0 + vi, vn * BK + vj] = T.float32(0)
                        S[row0 + vi, vn * BK + vj] = S[row0 + vi, vn * BK + vj] + Qt[row0 + vi, vd] * Kb[vj, vd]

    return direct_scores, staged_scores


def value_sums(tile, dim_v: int):
    """(direct, staged): acc += P V of the blocks of keys before ``direct``, and of the others."""
    RB, C, BK, Dv = tile.row_block, tile.chunk, tile.block_k, tile.depth_v

    @T.inline
    def direct_sums(P, V, acc, runs, first_head, heads, groups, direct):
        for n, h in T.grid(direct, heads):
            with T.sblock("direct_pv"):
                vn = T.axis.opaque(C // BK, n)
                vh = T.axis.spatial(tile.heads, h)
                T.reads(whole([P, V, runs, acc]))
                T.writes(whole([acc]))
                row0: T.let[T.int32] = vh * groups * RB
                hk: T.let[T.int64] = first_head + vh
                ask_for(V, runs, T.min(vn + tile.ahead, direct - 1), hk, tile, Dv)
                outer: T.let[T.int64] = runs[vn, 0]
                inner: T.let[T.int64] = runs[vn, runs.shape[1] - 1]
                run = T.meta_var((outer, inner)[-int(runs.shape[1]) :])
                for g, i, d, j in T.grid(groups, RB, Dv, BK):
                    with T.sblock("pv"):
                        vi = T.axis.spatial(tile.rows, g * RB + i)
                        vd = T.axis.spatial(Dv, d)
                        vj = T.axis.reduce(BK, j)
                        acc[row0 + vi, vd] = acc[row0 + vi, vd] + P[row0 + vi, vn * BK + vj] * T.Cast(
                            "float32", V[key_of_run(run, hk, vj, vd)]
                        )

    @T.inline
    def staged_sums(P, v_rows, Vb, acc, first, first_head, heads, groups, direct, blocks):
        for n, h in T.grid(blocks - direct, heads):
            with T.sblock("staged_pv"):
                vn = T.axis.opaque(C // BK, direct + n)
                vh = T.axis.spatial(tile.heads, h)
                T.reads(whole([P, v_rows.buffer, acc]))
                T.writes(whole([acc, Vb]))
                row0: T.let[T.int32] = vh * groups * RB
                hk: T.let[T.int64] = first_head + vh
                for j, d in T.grid(BK, Dv):
                    with T.sblock("load_v"):
                        vj, vd = T.axis.remap("SS", [j, d])
                        at = T.meta_var(v_rows.index(hk, first + vn * BK + vj, vd))
                        Vb[vj, vd] = padded(v_rows.buffer, at, vn * BK + vj < v_rows.count, dim_v)
                for g, i, d, j in T.grid(groups, RB, Dv, BK):
                    with T.sblock("rest_pv"):
                        vi = T.axis.spatial(tile.rows, g * RB + i)
                        vd = T.axis.spatial(Dv, d)
                        vj = T.axis.reduce(BK, j)
                        acc[row0 + vi, vd] = acc[row0 + vi, vd] + P[row0 + vi, vn * BK + vj] * Vb[vj, vd]

    return direct_sums, staged_sums


@T.inline
def ask_for(buffer, runs, block, head, tile, columns):
    """Ask for a head of ``block`` of the blocks in ``runs``."""
    if tile.ahead > 0:
        of = T.meta_var(CACHE_LINE // DTYPES[buffer.dtype].bytes)
        run = T.meta_var([runs[block, n] for n in range(int(runs.shape[1]))])
        for j, line in T.grid(tile.block_k, -(-columns // of)):
            T.evaluate(asked(buffer, key_of_run(run, head, j, line * of)))
