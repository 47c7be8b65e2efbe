"""Rows of keys that lie in pages, which a table finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from ...definition.arithmetic import TIR, int32
from ...problem.arithmetic import Arithmetic
from ...problem.sequences import PagedSequences
from .builder import CudaKernel
from .rows import address_of


@dataclass(frozen=True)
class PagedRows:
    """The rows of an entry's keys in ``buffer``.

    index(row): page, row in that page, head and column 0 of a row that the entry has. count: how
    many it has, int32.
    """

    buffer: tirx.Buffer
    index: Callable[[Any], tuple]
    count: Any

    def look_up(self, row) -> tuple:
        """(page, row in it) of ``row``, int32, or of the nearest row; ``count`` > 0."""
        page, inner, *_ = self.index(tirx.max(tirx.min(row, self.count - 1), 0))
        return page, inner

    def address(self, page, inner):
        """Address of the first element of a row, int64."""
        _, _, head, column = self.index(0)
        return address_of(self.buffer.ptr_to([page, inner, head, column]))


def in_int32(kernel: CudaKernel, sequences: PagedSequences) -> PagedSequences:
    """``sequences`` with sizes and tables in int32, which page numbers and positions fit."""
    narrow = {name: int32(sequences.sizes[name]) for name in ("page_size", "pages", "most_pages")}
    sizes, arithmetic = {**sequences.sizes, **narrow}, _dividing_by(kernel, narrow["page_size"])
    return replace(sequences, sizes=sizes, spans=kernel.sig.spans, arithmetic=arithmetic)


def _dividing_by(kernel: CudaKernel, size) -> Arithmetic:
    """``TIR``, which divides positions by ``size`` alone: by a multiplication.

    With the quotient of 2^32 - 1 in a register that of a number below 2^32 is the right one or one
    too small.
    """
    unsigned = tirx.Cast("uint32", tirx.max(size, 1))
    inverse = kernel.scalar(tirx.truncdiv(T.uint32(2**32 - 1), unsigned), "uint32")

    def parts(position) -> tuple:
        wide = tirx.Cast("uint64", tirx.Cast("uint32", position)) * tirx.Cast("uint64", inverse)
        quotient = int32(tirx.shift_right(wide, T.uint64(32)))
        rest = position - quotient * size
        return quotient, rest, rest >= size

    def quotient(position, _):
        found, _, is_small = parts(position)
        return found + int32(is_small)

    def remainder(position, _):
        _, rest, is_small = parts(position)
        return tirx.Select(is_small, rest - size, rest)

    return replace(TIR, quotient=quotient, remainder=remainder)
