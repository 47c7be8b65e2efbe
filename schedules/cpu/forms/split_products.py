"""The split forward's products, of blocks of keys that are read in place and of staged ones."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T

from ....problem.dtype import DTYPES
from ....problem.sequences import key_of_run
from .key_runs import CACHE_LINE, asked
from .regions import whole
from .staging import Rows, column_word, row_word

# Rows of a task lie head by head, each head's in whole groups of row_block.
# An inline function numbers the blocks of its second use: each definition makes its own.


def key_scores(tile, dim: int):
    """(direct, staged): S = Q K^T of the blocks of keys before ``direct``, and of the others."""
    C, BK, operand = tile.chunk, tile.block_k, tile.operand
    scores, rest_scores = _scores("scores", tile), _scores("rest_scores", tile)

    @T.inline
    def direct_scores(Qt, K, S, runs, first_head, heads, groups, direct):
        for n, h in T.grid(direct, heads):
            with T.sblock("direct_scores"):
                vn = T.axis.spatial(C // BK, n)
                vh = T.axis.spatial(tile.heads, h)
                T.reads(whole([Qt, K, runs]))
                T.writes(whole([S]))
                row0: T.let[T.int32] = vh * groups * tile.row_block
                head: T.let[T.int64] = first_head + vh
                ask(K, runs, T.min(vn + tile.ahead, direct - 1), head, tile, tile.depth)
                outer: T.let[T.int64] = runs[vn, 0]
                inner: T.let[T.int64] = runs[vn, runs.shape[1] - 1]
                run = T.meta_var((outer, inner)[-int(runs.shape[1]) :])
                own = T.meta_var(lambda j, d: key_of_run(run, head, j, d))
                scores(Qt, S, row0, vn * BK, groups, lambda j, d: _column(operand, K, own, j, d))

    @T.inline
    def staged_scores(Qt, K, key_at, keys, Kb, S, first, first_head, heads, groups, direct, blocks):
        for n, h in T.grid(blocks - direct, heads):
            with T.sblock("staged_scores"):
                vn = T.axis.spatial(C // BK, direct + n)
                vh = T.axis.spatial(tile.heads, h)
                T.reads(whole([Qt, K]))
                T.writes(whole([S, Kb]))
                row0: T.let[T.int32] = vh * groups * tile.row_block
                head: T.let[T.int64] = first_head + vh
                own = T.meta_var(lambda j, d: key_at(head, first + j, d))
                for j, d in T.grid(*Kb.shape):
                    with T.sblock("load_k"):
                        vj, vd = T.axis.remap("SS", [j, d])
                        word = T.meta_var((vn * BK + vj, vd * operand.pack))
                        Kb[vj, vd] = column_word(operand, Rows(K, own, keys, dim), *word)
                rest_scores(Qt, S, row0, vn * BK, groups, lambda j, d: Kb[j, d])

    return direct_scores, staged_scores


def value_sums(tile, dim_v: int):
    """(direct, staged): acc += P V of the blocks of keys before ``direct``, and of the others."""
    C, BK, operand = tile.chunk, tile.block_k, tile.operand
    sums, rest_sums = _sums("pv", tile), _sums("rest_pv", tile)

    @T.inline
    def direct_sums(P, V, acc, runs, first_head, heads, groups, direct):
        for n, h in T.grid(direct, heads):
            with T.sblock("direct_pv"):
                vn = T.axis.opaque(C // BK, n)
                vh = T.axis.spatial(tile.heads, h)
                T.reads(whole([P, V, runs, acc]))
                T.writes(whole([acc]))
                row0: T.let[T.int32] = vh * groups * tile.row_block
                head: T.let[T.int64] = first_head + vh
                ask(V, runs, T.min(vn + tile.ahead, direct - 1), head, tile, tile.depth_v)
                outer: T.let[T.int64] = runs[vn, 0]
                inner: T.let[T.int64] = runs[vn, runs.shape[1] - 1]
                run = T.meta_var((outer, inner)[-int(runs.shape[1]) :])
                own = T.meta_var(lambda j, d: key_of_run(run, head, j, d))
                sums(P, acc, row0, vn, groups, lambda j, d: _row(operand, V, own, j, d))

    @T.inline
    def staged_sums(P, V, key_at, keys, Vb, acc, first, first_head, heads, groups, direct, blocks):
        for n, h in T.grid(blocks - direct, heads):
            with T.sblock("staged_pv"):
                vn = T.axis.opaque(C // BK, direct + n)
                vh = T.axis.spatial(tile.heads, h)
                T.reads(whole([P, V, acc]))
                T.writes(whole([acc, Vb]))
                row0: T.let[T.int32] = vh * groups * tile.row_block
                head: T.let[T.int64] = first_head + vh
                own = T.meta_var(lambda j, d: key_at(head, first + j, d))
                for j, d in T.grid(*Vb.shape):
                    with T.sblock("load_v"):
                        vj, vd = T.axis.remap("SS", [j, d])
                        word = T.meta_var((vn * BK + vj * operand.pack, vd))
                        Vb[vj, vd] = row_word(operand, Rows(V, own, keys, dim_v), *word)
                rest_sums(P, acc, row0, vn, groups, lambda j, d: Vb[j, d])

    return direct_sums, staged_sums


def _scores(name: str, tile):
    """Block `name`: S of a block of keys, from column ``first`` on; word(j, d): of a key."""
    RB, BK, words = tile.row_block, tile.block_k, tile.depth // tile.operand.pack

    @T.inline
    def multiply(Qt, S, row0, first, groups, word):
        for g, i, j, d in T.grid(groups, RB, BK, words):
            with T.sblock(name):
                vi = T.axis.spatial(tile.rows, g * RB + i)
                vj = T.axis.spatial(BK, j)
                vd = T.axis.reduce(words, d)
                at = T.meta_var((row0 + vi, first + vj))
                with T.init():
                    S[at] = T.float32(0)
                S[at] = S[at] + tile.operand.dot(Qt[row0 + vi, vd], word(vj, vd))

    return multiply


def _sums(name: str, tile):
    """Block `name`: acc += P V of block ``number`` of the keys; word(j, d): of a column of it."""
    RB, words, Dv = tile.row_block, tile.block_k // tile.operand.pack, tile.depth_v

    @T.inline
    def multiply(P, acc, row0, number, groups, word):
        for g, i, d, j in T.grid(groups, RB, Dv, words):
            with T.sblock(name):
                vi = T.axis.spatial(tile.rows, g * RB + i)
                vd = T.axis.spatial(Dv, d)
                vj = T.axis.reduce(words, j)
                at = T.meta_var((row0 + vi, vd))
                weight = T.meta_var(P[row0 + vi, number * words + vj])
                acc[at] = acc[at] + tile.operand.dot(weight, word(vj, vd))

    return multiply


def _column(operand, buffer, index, row, word):
    """The word of neighbouring columns, all of which exist."""
    columns = [word * operand.pack + e for e in range(operand.pack)]
    return operand.stage(*[tirx.Cast("float32", buffer[index(row, column)]) for column in columns])


def _row(operand, buffer, index, word, column):
    """The word of neighbouring rows, all of which exist."""
    rows = [word * operand.pack + e for e in range(operand.pack)]
    return operand.stage(*[tirx.Cast("float32", buffer[index(row, column)]) for row in rows])


@T.inline
def ask(buffer, runs, block, head, tile, columns):
    """Ask for a head of ``block`` of the blocks in ``runs``."""
    if tile.ahead > 0:
        of = T.meta_var(CACHE_LINE // DTYPES[buffer.dtype].bytes)
        run = T.meta_var([runs[block, n] for n in range(int(runs.shape[1]))])
        for j, line in T.grid(tile.block_k, -(-columns // of)):
            T.evaluate(asked(buffer, key_of_run(run, head, j, line * of)))
