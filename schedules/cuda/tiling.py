"""Which rows a block works on, and the key or query tiles that it visits, in registers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial

from tvm import tirx

from ...definition.arithmetic import int32, visibility
from ...problem.visits import Visits
from .builder import CudaKernel, assign, name_registers
from .entries import Place, find_key_tile, find_query_tile
from .page_cursors import page_cursors
from .pages import PagedRows, in_int32
from .rows import Cursor, RowCursor, Rows
from .shared_tile import SharedTile


def round_up(value: int, multiple: int) -> int:
    """``value``, or the next multiple."""
    return -(-value // multiple) * multiple


class _Tile:
    """What tiles of queries and of keys have in common.

    batch: the entry of the block; first: its first row or key, a register; rows, keys: those of
    the entry, int32.
    """

    def __init__(self, kernel: CudaKernel, place: Place):
        self._kernel, self._sequences = kernel, place.sequences
        self.batch, self.first = place.entry, kernel.scalar(place.first)
        self.rows, self.keys = place.rows, place.keys

    def _rows(self, name: str, kind: str, head) -> Rows:
        """Rows of ``head`` in the tensor ``name``; kind: the method that places its elements."""
        buffer, sequences = self._kernel.buffers[name], self._sequences
        index, steps = (
            partial(getattr(x, kind), self.batch, head) for x in (sequences, sequences.from_zero())
        )
        return Rows(buffer, int(buffer.shape[-1]), index, steps)


class RowTile(_Tile):
    """What tiles of queries have in common: the keys that they read, those of ``kv_head``."""

    def has_row(self, number):
        """Whether the tile's row ``number`` is one of the entry's."""
        return number < self.rows - self.first

    def key_rows(self, name: str) -> Rows:
        """Rows of the key/value head in the tensor ``name`` of keys."""
        return self._rows(name, "key", self.kv_head)

    def key_cursors(self, targets: Mapping[str, SharedTile], visits: KeyVisits) -> list[Cursor]:
        """Cursors that bring ``key_rows`` of each tensor to its target, in pages where they are.

        Tiles are those of ``visits``, asked for in the order of ``targets``.
        """
        kernel = self._kernel
        if self._sequences.is_run(self.batch, 1) is True:
            return [
                visits.cursor(kernel, target, self.key_rows(name))
                for name, target in targets.items()
            ]
        sequences = in_int32(kernel, self._sequences)
        index = partial(sequences.key, self.batch, self.kv_head)
        rows = [
            PagedRows(kernel.buffers[name], lambda row: index(row, 0), self.keys)
            for name in targets
        ]
        return page_cursors(kernel, list(targets.values()), rows, visits.first, visits.advance)


class QueryTile(RowTile):
    """The query tile of this block: batch, head, kv_head, rows first .. first + block_q - 1.

    find: which work the block's place is of, a function of entries.py.
    """

    def __init__(
        self,
        kernel: CudaKernel,
        block_q: int,
        find: Callable[[CudaKernel, int], Place] = find_query_tile,
    ):
        place = find(kernel, block_q)
        self.head, self.block_q = place.head, block_q
        self._group = tirx.truncdiv(int32(kernel.sig.heads), int32(kernel.sig.kv_heads))
        super().__init__(kernel, place)
        name_registers(self)

    @cached_property
    def kv_head(self):
        """Key/value head of this block's head."""
        return self._kernel.scalar(tirx.truncdiv(self.head, self._group))

    def query_rows(self, name: str) -> Rows:
        """Rows of this head in the tensor ``name`` of queries: q, out or a gradient."""
        return self._rows(name, "query", self.head)

    def query_cursor(self, name: str, target: SharedTile) -> Cursor:
        """A cursor that brings the tile of ``query_rows`` to ``target``."""
        return RowCursor(self._kernel, target, self.query_rows(name), self.first)

    def key_visits(self, block_k: int) -> Visits:
        """The tiles of keys that these rows see, the last one first."""
        seen = visibility(self._kernel.sig, (self.rows, self.keys), self.batch).of_head(self.head)
        return seen.keys(self.first, self.first + self.block_q, block_k, last_first=True)

    def statistic(self, row) -> tuple:
        """Index of a statistic of ``row`` of this head."""
        return self._sequences.statistic(self.batch, self.head, row)

    def gradient_sum(self, row, column) -> tuple:
        """Index of an element of this head's sums of dQ, in the one copy that GPUs have."""
        return (0, *self._sequences.gradient_sum(self.batch, self.head, row, column))


class KeyVisits:
    """The key tiles that a query tile sees, one after the other, the last first.

    first: the tile at hand, a register. Only it and the last one are kept: they depend on the
    block's number, so that each number takes a register of every thread.
    """

    def __init__(self, kernel: CudaKernel, visits: Visits):
        """visits: the last tile first."""
        self._visits = held(kernel, visits, "full_low", "full_high")
        self.first = kernel.scalar(visits.first(0))
        # Without visits this is the tile after the first.
        self._last = kernel.scalar(visits.first(visits.count - 1))
        name_registers(self)

    @property
    def any(self):
        """Whether there is a tile at hand."""
        return self.first >= self._last

    @property
    def has_next(self):
        """Whether another tile comes after the one at hand."""
        return self.first > self._last

    def boundary(self):
        """Whether masks or ends may hide part of the tile at hand."""
        return self._visits.is_boundary(self.first)

    @property
    def advance(self) -> int:
        """Rows from a tile to the next one."""
        return -self._visits.block

    def cursor(self, kernel: CudaKernel, target: SharedTile, rows: Rows) -> RowCursor:
        """A cursor that brings ``rows`` of one tile after the other to ``target``."""
        return RowCursor(kernel, target, rows, self.first, self.advance)

    def step(self) -> None:
        """Go to the next tile."""
        assign(self.first, self.first - self._visits.block)


class KeyTile(_Tile):
    """The key tile of this block: batch, kv_head, keys first .. first + block_k - 1."""

    def __init__(self, kernel: CudaKernel, block_k: int):
        sig, place = kernel.sig, find_key_tile(kernel, block_k)
        self.kv_head, self.block_k = place.head, block_k
        self.group = kernel.scalar(tirx.truncdiv(int32(sig.heads), int32(sig.kv_heads)))
        super().__init__(kernel, place)
        name_registers(self)

    def has_key(self, number):
        """Whether the tile's key ``number`` is one of the entry's."""
        return number < self.keys - self.first

    def query_rows(self, name: str, head) -> Rows:
        """Rows of a query head in the tensor ``name``: q or dout."""
        return self._rows(name, "query", head)

    def key_rows(self, name: str) -> Rows:
        """Rows of this head in the tensor ``name`` of keys: k, v or a gradient."""
        return self._rows(name, "key", self.kv_head)

    def statistics(self, head) -> Callable:
        """Index of a statistic of a query head, by row."""
        return partial(self._sequences.statistic, self.batch, head)

    def gradient_sum(self, head, row, column) -> tuple:
        """Index of an element of a query head's sums of dQ, in the one copy that GPUs have."""
        return (0, *self._sequences.gradient_sum(self.batch, head, row, column))


class QueryVisits:
    """The query tiles that see a key tile, of every query head of its group, head after head.

    count: how many in all; head, first: the tile at hand; ``step`` goes to the next one, whose
    place next_head, next_first tell before.
    """

    def __init__(self, kernel: CudaKernel, tile: KeyTile, block_q: int):
        past = tile.first + tile.block_k
        seen = visibility(kernel.sig, (tile.rows, tile.keys))
        self._visits = visits = held(kernel, seen.queries(tile.first, past, block_q), "end")
        self._start = kernel.scalar(visits.first(0))
        self.count = kernel.scalar(visits.count * tile.group)
        self.head = kernel.scalar(tile.kv_head * tile.group)
        self.first = kernel.scalar(self._start)
        self.next_head, self.next_first = kernel.scalar(self.head), kernel.scalar(self.first)
        name_registers(self)

    def look_ahead(self) -> None:
        """Set next_head, next_first."""
        following = self.first + self._visits.block
        same = following < self._visits.end
        assign(self.next_head, tirx.Select(same, self.head, self.head + 1))
        assign(self.next_first, tirx.Select(same, following, self._start))

    def step(self) -> None:
        """Go to the next tile."""
        assign(self.head, self.next_head)
        assign(self.first, self.next_first)


def held(kernel: CudaKernel, visits: Visits, *names: str) -> Visits:
    """``visits`` with the numbers called ``names`` in registers."""
    visits = visits.held(**{name: kernel.scalar(getattr(visits, name)) for name in names})
    name_registers(visits)
    return visits
