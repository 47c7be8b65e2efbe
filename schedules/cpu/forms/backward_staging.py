"""What the backward's products read, in words: tiles of K and V by key, of Q and dO by row."""

from __future__ import annotations

from tvm.script import tirx as T

from .staging import column_word, row_word

# An inline function numbers the blocks of its second use: each tensor makes its own.


def staged_keys(name: str, operand):
    """(load, pair, turn) of the keys of a tile from ``first`` on: blocks "load_`name`" and so on.

    load: rows (keys, words) of pairs of columns. pair: (keys / pack, columns) of pairs of keys.
    turn: from rows, (steps, words, keys of a step).
    """

    @T.inline
    def load(rows, first, to):
        for j, d in T.grid(*to.shape):
            with T.sblock(f"load_{name}"):
                vj, vd = T.axis.remap("SS", [j, d])
                to[vj, vd] = column_word(operand, rows, first + vj, vd * operand.pack)

    @T.inline
    def pair(rows, first, to):
        for j, d in T.grid(*to.shape):
            with T.sblock(f"pair_{name}"):
                vj, vd = T.axis.remap("SS", [j, d])
                to[vj, vd] = row_word(operand, rows, first + vj * operand.pack, vd)

    @T.inline
    def turn(source, to):
        for u, d, j in T.grid(*to.shape):
            with T.sblock(f"turn_{name}"):
                vu, vd, vj = T.axis.remap("SSS", [u, d, j])
                to[vu, vd, vj] = source[vu * to.shape[2] + vj, vd]

    return load, pair, turn


def staged_queries(name: str, operand):
    """(load, pair, turn) of the rows of a block from ``first`` on: blocks "load_`name`" and so on.

    load: rows (rows, words) of pairs of columns. pair: (rows / pack, columns) of pairs of rows.
    turn: from pairs, their transpose.
    """

    @T.inline
    def load(rows, first, to):
        for i, d in T.grid(*to.shape):
            with T.sblock(f"load_{name}"):
                vi, vd = T.axis.remap("SS", [i, d])
                to[vi, vd] = column_word(operand, rows, first + vi, vd * operand.pack)

    @T.inline
    def pair(rows, first, to):
        for i, d in T.grid(*to.shape):
            with T.sblock(f"pair_{name}"):
                vi, vd = T.axis.remap("SS", [i, d])
                to[vi, vd] = row_word(operand, rows, first + vi * operand.pack, vd)

    @T.inline
    def turn(source, to):
        for d, i in T.grid(*to.shape):
            with T.sblock(f"turn_{name}"):
                vd, vi = T.axis.remap("SS", [d, i])
                to[vd, vi] = source[vi, vd]

    return load, pair, turn
