"""Tiles of the rows of a whole group: the query heads that share a key/value head, packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from ...definition.arithmetic import int32, visibility
from ...definition.scores import BoundScores
from ...problem.visits import Visits
from .builder import CudaKernel, name_registers, typed
from .entries import find_group
from .rows import Cursor, address_of
from .shared_tile import SharedTile
from .tiling import RowTile, held


@dataclass(frozen=True)
class GroupRow:
    """A row of a group: its query and its query head, int32."""

    query: Any
    head: Any


class GroupTile(RowTile):
    """The tile of this block: rows first .. first + block_q - 1 of the group of kv_head.

    Row r is that of query r // group in head r % group of the group, so that one tile of keys
    serves all heads that read it. rows: of the group in all; queries: of the entry. part: of the
    keys, of as many as workspaces have ``splits``.
    """

    def __init__(self, kernel: CudaKernel, block_q: int, split: bool):
        self.group = kernel.scalar(int32(kernel.sig.group), name="group")
        place = find_group(kernel, block_q, self.group, split)
        super().__init__(kernel, place)
        self.block_q, self.queries, self.kv_head = block_q, place.rows, place.head
        self.part = kernel.scalar(place.part)
        self._splits = int32(kernel.sig.sizes["splits"])
        self.rows = kernel.scalar(self.queries * self.group)
        name_registers(self)

    def row(self, number) -> GroupRow:
        """The row ``number`` of the group."""
        query = tirx.truncdiv(number, self.group)
        return GroupRow(query, self.kv_head * self.group + (number - query * self.group))

    def query_cursor(self, name: str, target: SharedTile) -> Cursor:
        """A cursor that brings this tile of the tensor ``name`` of queries to ``target``."""
        return GroupCursor(self._kernel, target, self, name)

    def key_visits(self, block_k: int) -> Visits:
        """The tiles of keys that these rows see in this part, the last one first."""
        return self._all_visits(self.block_q, block_k).part(self.part, self._splits)

    def parts(self, block_q: int, block_k: int):
        """How many parts have tiles of keys that these rows see, of which the first are those.

        block_q: rows of the tile, one that holds these, that was split.
        """
        return self._all_visits(block_q, block_k).parts(self._splits)

    def _all_visits(self, block_q: int, block_k: int) -> Visits:
        """The tiles of keys, in all parts, of the tile of ``block_q`` rows that holds these."""
        first = self.first - tirx.truncmod(self.first, block_q)
        last = tirx.truncdiv(first + (block_q - 1), self.group)
        seen = visibility(self._kernel.sig, (self.queries, self.keys))
        queries = tirx.truncdiv(first, self.group), last + 1
        visits = seen.keys(*queries, block_k, last_first=True)
        return held(self._kernel, visits, "count")

    def element(self, row: GroupRow, column) -> tuple:
        """Index of an element of ``row`` in a tensor of queries."""
        return self._sequences.query(self.batch, row.head, row.query, column)

    def statistic(self, row: GroupRow) -> tuple:
        """Index of a statistic of ``row``."""
        return self._sequences.statistic(self.batch, row.head, row.query)


class GroupCursor(Cursor):
    """A cursor over the rows of a ``GroupTile`` in a tensor of queries, for that tile alone."""

    def __init__(self, kernel: CudaKernel, target: SharedTile, tile: GroupTile, name: str):
        self._buffer, self._tile = kernel.buffers[name], tile
        super().__init__(kernel, target, int(self._buffer.shape[-1]))
        self._keep_offset()

    def _address_of(self, number: int, row, column):
        own = self._tile.row(self._tile.first + row)
        start = address_of(self._buffer.ptr_to(list(self._tile.element(own, 0))))
        at_column = typed(column * self.tile.element_bytes, "int64")
        return self.kernel.scalar(start + at_column, "int64")

    def _go_on(self, is_last: bool) -> None:
        pass


class GroupScores:
    """Scores of the rows of a group, each in a head of its own; asked as ``BoundScores`` is."""

    def __init__(self, scores_of: Callable[[Any], BoundScores]):
        """scores_of(head): those of a query head."""
        self._scores_of = scores_of

    def scaled(self, raw, row: GroupRow, k_idx):
        """A dot product of ``row`` to its score, before the mask."""
        return self._scores_of(row.head).scaled(raw, row.query, k_idx)

    def masked(self, score, row: GroupRow, k_idx):
        """``score``, or -inf where the mask or the end of the keys hides it."""
        return self._scores_of(row.head).masked(score, row.query, k_idx)
