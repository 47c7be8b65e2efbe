"""A row of any length in TensorIR, taken in blocks of whole vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T


@dataclass(frozen=True)
class RowBlocks:
    """A row of ``columns`` in blocks of ``steps`` vectors of ``lanes``, the last one shorter."""

    columns: Any
    lanes: int
    steps: int

    @property
    def width(self) -> int:
        """Elements of a block."""
        return self.lanes * self.steps

    @property
    def count(self):
        """Blocks of the row."""
        width = self.width
        return tirx.truncdiv(self.columns + (width - 1), tirx.const(width, "int64"))

    def vectors_from(self, first):
        """Vectors of the block that begins with column ``first``."""
        left = self.columns - first + (self.lanes - 1)
        whole = tirx.truncdiv(left, tirx.const(self.lanes, "int64"))
        return tirx.min(whole, tirx.const(self.steps, "int64"))

    def load(self):
        """An inline function (block, source, line, first, vectors, nothing): so many vectors of
        line ``line`` as float32, ``nothing`` behind the row's end."""
        columns, lanes = self.columns, self.lanes

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

        return load

    def store(self):
        """An inline function (target, line, first, block): those that the row has."""
        columns, width = self.columns, self.width

        @T.inline
        def store(target, line, first, block):
            for c in T.serial(T.min(columns - first, T.int64(width))):
                target[line, first + c] = T.Cast(target.dtype, block[c])

        return store
