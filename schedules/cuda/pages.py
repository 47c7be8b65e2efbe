"""Rows of keys that lie in pages, which a table finds, on their way into shared memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from ...definition.arithmetic import int32
from ...definition.signature import Signature
from ...problem.sequences import PagedSequences
from .arch import FULL_WARP, WARP
from .builder import CudaKernel, assign, store, when
from .rows import Cursor, address_of
from .shared_tile import SharedTile


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


class PageCursor(Cursor):
    """A cursor over ``PagedRows``, of pages of any size.

    Each lane of a warp looks up a few of the rows that the warp's lanes bring, one tile ahead, so
    that nobody waits for the table; addresses are then shuffled to whom they concern.
    """

    def __init__(
        self, kernel: CudaKernel, tile: SharedTile, rows: PagedRows, first, advance: int
    ):  # fmt: skip
        """first: the row at which the first tile begins; advance: rows from a tile to the next."""
        super().__init__(kernel, tile, int(rows.buffer.shape[-1]))
        self._rows, self._advance = rows, advance
        self._first = kernel.scalar(first)
        shape = (-(-self._passes * self._rows_of_pass // WARP),)
        self._page, self._inner = (kernel.registers(shape, "int32") for _ in range(2))
        self._found: list = []
        for number in range(shape[0]):
            store(self._page, (number,), 0)
            store(self._inner, (number,), 0)
        with when(rows.count > 0):
            self._look_up()
        self._keep_offset()

    def pieces(self, left=None, wanted=None) -> list:
        self._found = [
            self.kernel.scalar(self._rows.address(self._page[n], self._inner[n]), "int64")
            for n in range(int(self._page.shape[0]))
        ]
        return super().pieces(left, wanted)

    @property
    def _rows_of_pass(self) -> int:
        """Most rows of which lanes of a warp have pieces in one pass, and as many as divide 32."""
        if WARP % self._per_row == 0:
            return WARP // self._per_row
        if self._per_row % WARP == 0:
            return 1
        most = (WARP + self._per_row - 2) // self._per_row + 1
        return 1 << (most - 1).bit_length()

    def _first_row(self, number):
        """The row of this warp's first piece in pass ``number``."""
        return tirx.truncdiv(number * self._movers + self.kernel.warp * WARP, self._per_row)

    def _look_up(self) -> None:
        """What this lane finds of the tile at hand: row ``lane % _rows_of_pass`` of some passes."""
        each = self._rows_of_pass
        for n in range(int(self._page.shape[0])):
            number = self.kernel.lane + n * WARP
            row = self._first_row(tirx.truncdiv(number, each)) + tirx.truncmod(number, each)
            page, inner = self._rows.look_up(self._first + row)
            store(self._page, (n,), page)
            store(self._inner, (n,), inner)

    def _address_of(self, number: int, row, column):
        each = self._rows_of_pass
        register, lane = divmod(number * each, WARP)
        own = lane + self._own_row(number, row)
        found = T.tvm_warp_shuffle(T.uint32(FULL_WARP), self._found[register], own, WARP, WARP)
        at_column = tirx.Cast("int64", column * self.tile.element_bytes)
        return self.kernel.scalar(found + at_column, "int64")

    def _own_row(self, number: int, row):
        """Which of the rows of its warp's pieces in pass ``number`` this thread's is."""
        if self._rows_of_pass == 1:
            return 0
        if WARP % self._per_row == 0:
            return tirx.truncdiv(self.kernel.lane, self._per_row)
        return row - self._first_row(number)

    def _go_on(self, is_last: bool) -> None:
        if is_last:
            assign(self._first, self._first + self._advance)
            self._look_up()


def in_int32(sequences: PagedSequences, sig: Signature) -> PagedSequences:
    """``sequences`` with sizes and tables in int32, which page numbers and positions fit."""
    sizes: Mapping[str, Any] = {
        name: int32(sequences.sizes[name]) for name in ("page_size", "pages", "most_pages")
    }
    return replace(sequences, sizes={**sequences.sizes, **sizes}, spans=sig.spans)
