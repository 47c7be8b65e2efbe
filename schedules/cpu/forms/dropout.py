"""Dropout in the forms for CPUs: what is left of a block of weights."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx.script.builder import ir as build

from ....definition.derive.bound import BoundGradient, BoundRecurrence
from ....definition.dropout import Dropout
from ....problem.dropout import SIDE
from .regions import whole

# Queries and keys of a block begin at multiples of it.
SQUARE = 2 * SIDE


def write_head(dropout: Dropout | None, head: tirx.Buffer, b, h) -> None:
    """head (4,) becomes what the words of entry ``b`` and query head ``h`` are made with."""
    for number in range(4) if dropout else ():
        build.buffer_store(head, dropout.head_word(b, h, number), [number])


def dropped_weights(
    dropout: Dropout | None, softmax: BoundRecurrence | BoundGradient, rows_are_keys: bool
):
    """Block "drop": kept (rows, columns) is what of ``weights`` dropout keeps, 0 elsewhere.

    The first row and column are row0 and column0, head is of ``write_head``. A lane takes a square.
    Without dropout there is no block.
    """

    # An inline function numbers the blocks of its second use: each definition makes its own.
    def keep(weights, kept, head, first, square, corner):
        """The four weights of a square of rows and columns, whose words are made together."""
        place = [T.shift_right(x, 1) + number for x, number in zip(first, square, strict=True)]
        if rows_are_keys:
            place = place[::-1]
        words = dropout.square([head[n] for n in range(4)], *place, build.Bind)
        for number, word in enumerate(words):
            lower_query, lower_key = number % 2, number // 2
            row, column = (lower_key, lower_query) if rows_are_keys else (lower_query, lower_key)
            at = [corner[0] + row * SIDE, corner[1] + column * SIDE]
            build.buffer_store(kept, softmax.keep(weights[tuple(at)], dropout.kept(word)), at)

    @T.inline
    def drop_nothing(weights, kept, head, row0, column0):
        pass

    @T.inline
    def drop(weights, kept, head, row0, column0):
        R, C = T.meta_var(weights.shape[0] // SQUARE), T.meta_var(weights.shape[1] // SQUARE)
        for i, j, r, c in T.grid(R, C, SIDE, SIDE):
            with T.sblock("drop"):
                vi, vj, vr, vc = T.axis.remap("SSSS", [i, j, r, c])
                T.reads(whole([weights, head]))
                T.writes(whole([kept]))
                square = T.meta_var((vi * SIDE + vr, vj * SIDE + vc))
                corner = T.meta_var((vi * SQUARE + vr, vj * SQUARE + vc))
                keep(weights, kept, head, (row0, column0), square, corner)

    return drop if dropout else drop_nothing
