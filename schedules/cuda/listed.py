"""The tiles that a block visits where a call lists them: one list of blocks after the other."""

from __future__ import annotations

from tvm import tirx

from ...definition.arithmetic import visibility
from ...problem.listed import ListedVisits
from ...problem.visits import Visits
from .builder import CudaKernel, assign, loop, loop_while, name_registers, when
from .rows import RowCursor, Rows
from .shared_tile import SharedTile
from .tiling import KeyTile, KeyVisits, QueryVisits, held


def visited_keys(kernel: CudaKernel, visits: Visits) -> KeyVisits:
    """The key tiles of ``visits``, the last one first, as a kernel goes through them."""
    kind = ListedKeys if isinstance(visits, ListedVisits) else KeyVisits
    return kind(kernel, visits)


def visited_queries(kernel: CudaKernel, tile: KeyTile, block_q: int) -> QueryVisits:
    """The query tiles that see ``tile``, as a kernel goes through them."""
    kind = ListedQueries if kernel.sig.spec.block_mask else QueryVisits
    return kind(kernel, tile, block_q)


class ListedKeys(KeyVisits):
    """The key tiles of the blocks in a query tile's list."""

    def __init__(self, kernel: CudaKernel, visits: ListedVisits):
        self._visits = held(kernel, visits, "full_low", "full_high", "start", "count", "tiles")
        self._number = kernel.scalar(0)
        self.first = kernel.scalar(self._visits.first(0))
        self.hides = kernel.scalar(self._visits.hides(0), "bool")
        name_registers(self)

    @property
    def any(self):
        return self._visits.exists(self._number)

    @property
    def has_next(self):
        return self._visits.exists(self._number + 1)

    def boundary(self):
        return tirx.Or(super().boundary(), self.hides)

    def cursor(self, kernel: CudaKernel, target: SharedTile, rows: Rows) -> RowCursor:
        return ListedCursor(kernel, target, rows, self._visits)

    def step(self) -> None:
        assign(self._number, self._number + 1)
        assign(self.first, self._visits.first(self._number))
        assign(self.hides, self._visits.hides(self._number))


class ListedCursor(RowCursor):
    """A cursor over the rows of listed tiles, each of which may lie anywhere."""

    def __init__(self, kernel: CudaKernel, tile: SharedTile, rows: Rows, visits: ListedVisits):
        self._visits, self._number = visits, kernel.scalar(0)
        self._row = kernel.scalar(visits.first(0))
        super().__init__(kernel, tile, rows, self._row, 0)
        name_registers(self)

    def _go_on(self, is_last: bool) -> None:
        super()._go_on(is_last)
        if is_last:
            assign(self._number, self._number + 1)
            following = self.kernel.scalar(self._visits.first(self._number))
            self.skip(following - self._row, 0)
            assign(self._row, following)


class ListedQueries(QueryVisits):
    """The query tiles of the blocks in a key tile's lists, of which each query head has one."""

    def __init__(self, kernel: CudaKernel, tile: KeyTile, block_q: int):
        seen = visibility(kernel.sig, (tile.rows, tile.keys), tile.batch)
        past = tile.first + tile.block_k
        self._of_head = lambda head: seen.of_head(head).queries(tile.first, past, block_q)
        self.head = kernel.scalar(tile.kv_head * tile.group)
        self._last_head = kernel.scalar(self.head + (tile.group - 1))
        self.count = kernel.scalar(0)
        with loop(tile.group) as number:
            assign(self.count, self.count + self._of_head(self.head + number).count)
        self._pass_empty(self.head)
        self._number = kernel.scalar(0)
        self.first = kernel.scalar(self._of_head(self.head).first(0))
        self.hides = kernel.scalar(self._of_head(self.head).hides(0), "bool")
        self._next_number = kernel.scalar(0)
        self.next_head, self.next_first = kernel.scalar(self.head), kernel.scalar(self.first)
        name_registers(self)

    def look_ahead(self) -> None:
        assign(self.next_head, self.head)
        assign(self._next_number, self._number + 1)
        is_over = tirx.Not(self._of_head(self.head).exists(self._next_number))
        with when(tirx.And(is_over, self.head < self._last_head)):
            assign(self._next_number, 0)
            assign(self.next_head, self.head + 1)
            self._pass_empty(self.next_head)
        assign(self.next_first, self._of_head(self.next_head).first(self._next_number))

    def step(self) -> None:
        assign(self._number, self._next_number)
        super().step()
        assign(self.hides, self._of_head(self.head).hides(self._number))

    def _pass_empty(self, head) -> None:
        """Let ``head`` go to the next list that is not empty, or to the last one."""
        none = self._of_head(head).count == 0
        with loop_while(tirx.And(head < self._last_head, none)):
            assign(head, head + 1)
