"""Dropout in the forms for CPUs: what is left of a block of weights."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T
from tvm.tirx.script.builder import ir as build

from ....definition.derive.bound import BoundGradient, BoundRecurrence
from ....definition.dropout import Dropout
from ....definition.signature import Signature
from ....problem.dropout import SIDE
from .regions import whole

# Queries and keys of a block begin at multiples of it.
SQUARE = 2 * SIDE


def weight_dropout(sig: Signature) -> NoDropout:
    """What a form asks of dropout, where the spec of ``sig`` has it and where not."""
    return WeightDropout(sig) if sig.spec.dropout else NoDropout()


class NoDropout:
    """All weights are kept: there is nothing to read, to hold or to do.

    factor: what weights that are kept are multiplied by. inputs: what a task reads.
    """

    factor = None
    inputs: tuple[tirx.Buffer, ...] = ()

    def head(self, other):
        """Memory for what the words of a head are made with; ``other`` where it is not needed."""
        return T.meta_var(other)

    def held(self, head) -> list:
        """``head``, where something is in it."""
        return []

    def write_head(self, head, b, h) -> None:
        """Store what the words of entry ``b`` and query head ``h`` are made with."""

    def kept(self, weights):
        """Memory for what is left of a block of ``weights``."""
        return T.meta_var(weights)

    def drop(self, softmax: BoundRecurrence | BoundGradient, rows_are_keys: bool):
        """An inline function: block "drop", after which kept (rows, columns) is what of ``weights``
        dropout keeps, 0 elsewhere; row0 and column0 are the first of the block."""

        @T.inline
        def drop(weights, kept, head, row0, column0):
            pass

        return drop


class WeightDropout(NoDropout):
    """Weights are dropped by squares, a lane a square, whose words are made together."""

    def __init__(self, sig: Signature):
        self._dropout, self.inputs = Dropout(sig), (sig.rng,)
        self.factor = self._dropout.factor

    def head(self, other):
        return T.sblock_alloc_buffer((4,), "uint64")

    def held(self, head) -> list:
        return [head]

    def write_head(self, head, b, h) -> None:
        for number in range(4):
            build.buffer_store(head, self._dropout.head_word(b, h, number), [number])

    def kept(self, weights):
        return T.sblock_alloc_buffer(weights.shape, "float32")

    def drop(self, softmax: BoundRecurrence | BoundGradient, rows_are_keys: bool):
        dropout = self._dropout

        def keep(weights, kept, head, first, square, corner):
            """The four weights of a square of rows and columns."""
            place = [T.shift_right(x, 1) + number for x, number in zip(first, square, strict=True)]
            if rows_are_keys:
                place = place[::-1]
            words = dropout.square([head[n] for n in range(4)], *place, build.Bind)
            for number, word in enumerate(words):
                lower_query, lower_key = number % 2, number // 2
                row, column = (
                    (lower_key, lower_query) if rows_are_keys else (lower_query, lower_key)
                )
                at = [corner[0] + row * SIDE, corner[1] + column * SIDE]
                build.buffer_store(kept, softmax.keep(weights[tuple(at)], dropout.kept(word)), at)

        # An inline function numbers the blocks of its second use: each definition makes its own.
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

        return drop
