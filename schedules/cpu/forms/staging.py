"""Elements of inputs as staged words, zero outside the array."""

from __future__ import annotations

from tvm import tirx


def padded(buffer, index, inside, columns: int):
    """Element ``index`` as float32 where ``inside`` and its last index is below ``columns``."""
    value = tirx.Cast("float32", buffer[index])
    return tirx.if_then_else(tirx.And(inside, index[-1] < columns), value, tirx.const(0, "float32"))


def column_word(operand, buffer, index, rows, columns: int):
    """The word of neighbouring columns of a row, from the element ``index`` (b, row, h, column)."""
    b, row, h, column = index
    places = [(b, row, h, column + e) for e in range(operand.pack)]
    return operand.stage(*[padded(buffer, place, row < rows, columns) for place in places])


def row_word(operand, buffer, index, rows, columns: int):
    """The word of neighbouring rows of a column, from the element ``index`` (b, row, h, column)."""
    b, row, h, column = index
    places = [(b, row + e, h, column) for e in range(operand.pack)]
    return operand.stage(*[padded(buffer, place, place[1] < rows, columns) for place in places])
