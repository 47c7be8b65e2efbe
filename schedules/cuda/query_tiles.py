"""The tiles of Q, dO and row statistics that a block of the backward brings to shared memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tvm import tirx

from .builder import CudaKernel
from .copies import Copies, each
from .row_statistics import RowStatistics
from .rows import RowCursor
from .shared_tile import SharedTile
from .tiling import KeyTile, QueryVisits


class QueryTiles:
    """What a key tile's visits read, a tile of queries at a time.

    targets: where each tensor of rows goes, by its name. The order of calls: ``ask_first``; in each
    round ``next_parts``, whose parts are called in order between other work. After all parts of a
    tile comes ``RowStatistics.settle``.
    """

    def __init__(
        self,
        kernel: CudaKernel,
        copies: Copies,
        tile: KeyTile,
        visits: QueryVisits,
        targets: Mapping[str, SharedTile],
        statistics: RowStatistics,
    ):
        self._kernel, self._copies, self._statistics = kernel, copies, statistics
        self._tile, self._visits = tile, visits
        self._cursors = {
            name: RowCursor(kernel, target, tile.query_rows(name, visits.head), visits.first)
            for name, target in targets.items()
        }

    def ask_first(self) -> None:
        """Ask for the first tile, into stage 0; the group of copies is left open."""
        each(self._parts(0, self._visits.head, self._visits.first, self._tile.rows))

    def next_parts(self, number, stage) -> list[Callable[[], None]]:
        """Ask for the tile after that visited as ``number``, in parts: a group of copies.

        Looks ahead to it (``QueryVisits.look_ahead``).
        """
        visits = self._visits
        visits.look_ahead()
        # No rows after the last tile: zeros are copied then, which costs less than a branch here.
        end = tirx.Select(number + 1 < visits.count, self._tile.rows, 0)
        place = visits.next_head, visits.next_first, self._kernel.scalar(end)
        return [self._skip, *self._parts(stage, *place), self._copies.commit]

    def _parts(self, stage, head, first, end) -> list[Callable[[], None]]:
        """Ask for the tile at which the cursors are; zeros from row ``end`` on."""
        index, cursors = self._tile.statistics(head), self._cursors.values()
        rows = [p for c in cursors for p in self._copies.parts(c, stage, end - first)]
        return [lambda: self._statistics.ask(index, first, end), *rows]

    def _skip(self) -> None:
        """Let the cursors go to the next tile."""
        visits = self._visits
        for name, cursor in self._cursors.items():
            cursor.skip(visits.next_first - visits.first, self._bytes_on(name))

    def _bytes_on(self, name: str):
        """From a row of the head at hand to the same row of the next tile's head."""
        this, following = (self._tile.query_rows(name, head).address(0, 0) for head in (0, 1))
        passed = tirx.Cast("int64", self._visits.next_head - self._visits.head)
        return (following - this) * passed
