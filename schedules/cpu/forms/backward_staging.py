"""What the backward's products read, in words: tiles of K and V by key, of Q and dO by row."""

from __future__ import annotations

from tvm.script import tirx as T

from .staging import column_word, row_word

# An inline function numbers the blocks of its second use: each tensor makes its own.


def staged_rows(name: str, operand):
    """(load, pair) of a tile's rows from ``first`` on: blocks "load_`name`" and "pair_`name`".

    load: (rows, words) of pairs of columns. pair: (rows / pack, columns) of pairs of rows.
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

    return load, pair


def staged_numbers(name: str, otherwise, converted=lambda value: value):
    """Block "load_`name`": numbers of the rows from ``first`` on, ``converted``; ``otherwise`` past
    the last of ``count``. index(row): where one lies."""

    @T.inline
    def load(index, count, source, first, to):
        for i in range(to.shape[0]):
            with T.sblock(f"load_{name}"):
                vi = T.axis.spatial(to.shape[0], i)
                value = T.meta_var(converted(source[index(first + vi)]))
                to[vi] = T.if_then_else(first + vi < count, value, T.float32(otherwise))

    return load


def turned_keys(name: str):
    """Block "turn_`name`": (steps, words, keys of a step) from loaded rows."""

    @T.inline
    def turn(source, to):
        for u, d, j in T.grid(*to.shape):
            with T.sblock(f"turn_{name}"):
                vu, vd, vj = T.axis.remap("SSS", [u, d, j])
                to[vu, vd, vj] = source[vu * to.shape[2] + vj, vd]

    return turn


def transposed(name: str):
    """Block "turn_`name`": the transpose of a matrix."""

    @T.inline
    def turn(source, to):
        for i, j in T.grid(*to.shape):
            with T.sblock(f"turn_{name}"):
                vi, vj = T.axis.remap("SS", [i, j])
                to[vi, vj] = source[vj, vi]

    return turn
