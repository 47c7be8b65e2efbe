"""Cursors over rows in pages: lanes look rows up, and tell one another where they lie."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.script import tirx as T

from .arch import FULL_WARP, WARP
from .builder import CudaKernel, assign, store, when
from .pages import PagedRows
from .rows import Cursor
from .shared_tile import SharedTile


class _PlacesOfRows(Cursor):
    """A cursor whose lanes know where rows lie: each a few of those that its warp brings.

    Addresses are shuffled to the lanes that bring the rows.
    """

    def __init__(self, kernel: CudaKernel, tile: SharedTile, rows: PagedRows):
        super().__init__(kernel, tile, int(rows.buffer.shape[-1]))
        self.rows = rows
        shape = (-(-self._passes * self._rows_of_pass // WARP),)
        self._page, self._inner = (kernel.registers(shape, "int32") for _ in range(2))
        self._addresses: list = []
        self._keep_offset()

    @property
    def shape(self) -> tuple:
        """What decides which rows a lane knows."""
        return self._passes, self._movers, self._per_row

    @property
    def places(self) -> list[tuple]:
        """(page, row in it) of each row that this lane knows, registers, by number."""
        return [(self._page[n], self._inner[n]) for n in range(int(self._page.shape[0]))]

    def set(self, number: int, page, inner) -> None:
        """Say where the row ``number`` of this lane lies in the tile at hand."""
        store(self._page, (number,), page)
        store(self._inner, (number,), inner)

    def pieces(self, left=None, wanted=None) -> list:
        self._addresses = [
            self.kernel.scalar(self.rows.address(*place), "int64") for place in self.places
        ]
        return super().pieces(left, wanted)

    def row_of_lane(self, number: int):
        """The tile's row that this lane knows as ``number``."""
        each, own = self._rows_of_pass, self.kernel.lane + number * WARP
        return self._first_row(tirx.truncdiv(own, each)) + tirx.truncmod(own, each)

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

    def _address_of(self, number: int, row, column):
        register, lane = divmod(number * self._rows_of_pass, WARP)
        own = lane + self._own_row(number, row)
        address = self._addresses[register]
        found = T.tvm_warp_shuffle(T.uint32(FULL_WARP), address, own, WARP, WARP)
        at_column = tirx.Cast("int64", column * self.tile.element_bytes)
        return self.kernel.scalar(found + at_column, "int64")

    def _own_row(self, number: int, row):
        """Which of the rows of its warp's pieces in pass ``number`` this thread's is."""
        if self._rows_of_pass == 1:
            return 0
        if WARP % self._per_row == 0:
            return tirx.truncdiv(self.kernel.lane, self._per_row)
        return row - self._first_row(number)


class PageCursor(_PlacesOfRows):
    """A cursor over ``PagedRows``, of pages of any size.

    Rows are looked up a tile ahead, so that nobody waits for the table.
    """

    def __init__(self, kernel: CudaKernel, tile: SharedTile, rows: PagedRows, first, advance: int):
        """first: the row at which the first tile begins; advance: rows from a tile to the next."""
        super().__init__(kernel, tile, rows)
        self._first, self._advance = kernel.scalar(first), advance
        self._follower: FollowingCursor | None = None
        for number in range(len(self.places)):
            self.set(number, 0, 0)
        with when(rows.count > 0):
            self._look_up()

    def lead(self, follower: FollowingCursor) -> None:
        """Tell ``follower`` the places of each tile that is asked for."""
        self._follower = follower

    def pieces(self, left=None, wanted=None) -> list:
        if self._follower is not None:
            for number, place in enumerate(self.places):
                self._follower.set(number, *place)
        return super().pieces(left, wanted)

    def _go_on(self, is_last: bool) -> None:
        if is_last:
            assign(self._first, self._first + self._advance)
            self._look_up()

    def _look_up(self) -> None:
        for number in range(len(self.places)):
            row = self._first + self.row_of_lane(number)
            self.set(number, *self.rows.look_up(row))


class FollowingCursor(_PlacesOfRows):
    """A cursor over the rows of another tensor in the same pages, tile by tile behind a leader.

    Its tile at hand is the one that was last asked of the leader.
    """

    def _go_on(self, is_last: bool) -> None:
        pass


def page_cursors(
    kernel: CudaKernel, tiles: Sequence[SharedTile], rows: Sequence[PagedRows], first, advance: int
) -> list[Cursor]:
    """Cursors over equal rows of several tensors, which are asked for tiles in this order."""
    leader = PageCursor(kernel, tiles[0], rows[0], first, advance)
    found: list[Cursor] = [leader]
    for tile, own in zip(tiles[1:], rows[1:], strict=True):
        follower = FollowingCursor(kernel, tile, own)
        if follower.shape == leader.shape:
            leader.lead(follower)
            found.append(follower)
        else:
            found.append(PageCursor(kernel, tile, own, first, advance))
    return found
