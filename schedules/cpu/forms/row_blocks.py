"""A row of any length in TensorIR, taken in blocks of whole vectors."""

from __future__ import annotations

from tvm import tirx
from tvm.script import tirx as T


class RowBlocks:
    """A row of ``columns`` in blocks of ``steps`` vectors of ``lanes``, the last one shorter.

    width: elements of a block. count: blocks of a row. vectors_from(first): vectors of the block
    that begins with column ``first``. load(block, source, line, first, vectors, nothing): these of
    line ``line`` as float32, ``nothing`` behind the row's end.
    """

    def __init__(self, columns, lanes: int, steps: int):
        width = lanes * steps
        self.width = width
        self.count = tirx.truncdiv(columns + (width - 1), tirx.const(width, "int64"))

        def vectors_from(first):
            left = tirx.truncdiv(columns - first + (lanes - 1), tirx.const(lanes, "int64"))
            return tirx.min(left, tirx.const(steps, "int64"))

        @T.inline
        def load(block, source, line, first, vectors, nothing):
            if first + vectors * lanes <= columns:
                for c in T.serial(vectors * lanes):
                    block[c] = T.Cast("float32", source[line, first + c])
            else:
                for c in T.serial(columns - first):
                    block[c] = T.Cast("float32", source[line, first + c])
                for c in T.serial(first + vectors * lanes - columns):
                    block[columns - first + c] = T.float32(nothing)

        @T.inline
        def store(target, line, first, block):
            for c in T.serial(T.min(columns - first, T.int64(width))):
                target[line, first + c] = T.Cast(target.dtype, block[c])

        self.vectors_from, self.load, self.store = vectors_from, load, store
