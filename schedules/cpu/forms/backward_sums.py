"""Where dQ of a block of rows is summed up: in its place among all rows, or beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from tvm.script import tirx as T

from .regions import whole

# An inline function numbers the blocks of its second use: each definition makes its own.


class BlockOfRows(NamedTuple):
    """The rows of a block in copy ``copy`` of the sums of all rows, of which ``count`` exist.

    index(row, column): where an element lies in a copy; the block begins at row ``first``.
    """

    copy: Any
    index: Callable[..., tuple]
    first: Any
    count: Any

    def at(self, row, column) -> tuple:
        """Index of an element of the block in the sums of all rows."""
        return self.copy, *self.index(self.first + row, column)


@dataclass(frozen=True)
class InPlace:
    """Each step adds to the sums of all rows: those past the end of an entry are nobody's.

    rows, columns: of a block.
    """

    rows: int
    columns: int

    def buffer(self, total):
        """What each step adds to."""
        return T.meta_var(total)

    def at(self, block: BlockOfRows, row, column) -> tuple:
        """Index of an element of the block in that."""
        return block.at(row, column)

    def region(self, buffer, block: BlockOfRows) -> list:
        """What a step writes."""
        rows = slice(block.first, block.first + self.rows)
        return [buffer[(block.copy, *block.index(rows, slice(0, self.columns)))]]

    def zero(self):
        """An inline function (buffer), before the first step."""

        @T.inline
        def zero(buffer):
            pass

        return zero

    def add(self):
        """An inline function (buffer, total, block), after the last step."""

        @T.inline
        def add(buffer, total, block):
            pass

        return add


class Beside(InPlace):
    """Where rows past the end of an entry are another's, to which others add: own ones alone are
    added in the end, in blocks "init_dq" and "add_dq"."""

    def buffer(self, total):
        return T.sblock_alloc_buffer((self.rows, self.columns), "float32")

    def at(self, block: BlockOfRows, row, column) -> tuple:
        return row, column

    def region(self, buffer, block: BlockOfRows) -> list:
        return whole([buffer])

    def zero(self):
        @T.inline
        def zero(buffer):
            for i, d in T.grid(*buffer.shape):
                with T.sblock("init_dq"):
                    vi, vd = T.axis.remap("SS", [i, d])
                    buffer[vi, vd] = T.float32(0)

        return zero

    def add(self):
        @T.inline
        def add(buffer, total, block):
            for i, d in T.grid(*buffer.shape):
                with T.sblock("add_dq"):
                    T.where(block.first + i < block.count)
                    vi, vd = T.axis.remap("SS", [i, d])
                    to = T.meta_var(block.at(vi, vd))
                    total[to] = total[to] + buffer[vi, vd]

        return add
