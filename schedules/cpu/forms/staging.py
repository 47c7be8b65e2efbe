"""Elements of inputs as staged words, zero outside the array."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tvm import tirx


class Rows(NamedTuple):
    """The rows of one head in ``buffer``: ``count`` of them, of ``columns`` elements.

    index(row, column): where an element lies; its last number is the column.
    """

    buffer: tirx.Buffer
    index: Callable[..., tuple]
    count: tirx.PrimExpr
    columns: int


def padded(buffer, index, inside, columns: int):
    """Element ``index`` as float32 where ``inside`` and its last index is below ``columns``."""
    value = tirx.Cast("float32", buffer[index])
    return tirx.if_then_else(tirx.And(inside, index[-1] < columns), value, tirx.const(0, "float32"))


def column_word(operand, rows: Rows, row, column):
    """The word of neighbouring columns of a row, from the element at (row, column) on."""
    return _word(operand, rows, [(row, column + e) for e in range(operand.pack)])


def row_word(operand, rows: Rows, row, column):
    """The word of neighbouring rows of a column, from the element at (row, column) on."""
    return _word(operand, rows, [(row + e, column) for e in range(operand.pack)])


def _word(operand, rows: Rows, places):
    buffer, index, count, columns = rows
    return operand.stage(
        *[padded(buffer, index(row, column), row < count, columns) for row, column in places]
    )
