"""Which rows a block works on, and the key or query tiles that it visits, in registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial

from tvm import tirx

from ...definition.arithmetic import TIR, int32, lengths_of, sequences_of, visibility
from ...problem.visits import Visits
from ...problem.work import Work
from .builder import CudaKernel, assign, name_registers, signature_sizes
from .program import Grid, Sizes
from .rows import Rows


def round_up(value: int, multiple: int) -> int:
    """``value``, or the next multiple."""
    return -(-value // multiple) * multiple


def query_work(sizes: Sizes, block_q: int) -> Work:
    """A block for each query tile of each head, the last rows of a head first."""
    tiles = sizes.blocks(sizes.seqlen_q, block_q)
    axes = {"entry": sizes.batch, "head": sizes.heads, "tile": tiles}
    return Work(axes, last_first=True)


def key_work(sizes: Sizes, block_k: int) -> Work:
    """A block for each key tile of each key/value head.

    Under a causal mask the first keys are seen by most rows: those blocks go out first.
    """
    tiles = sizes.blocks(sizes.seqlen_k, block_k)
    return Work({"entry": sizes.batch, "head": sizes.kv_heads, "tile": tiles})


def query_grid(block_q: int) -> Grid:
    """The launch of ``query_work``, whose places are ``QueryTile``."""
    return lambda sizes: (query_work(sizes, block_q).count, 1, 1)


def key_grid(block_k: int) -> Grid:
    """The launch of ``key_work``, whose places are ``KeyTile``."""
    return lambda sizes: (key_work(sizes, block_k).count, 1, 1)


class QueryTile:
    """The query tile of this block: batch, head, kv_head, rows first .. first + block_q - 1."""

    def __init__(self, kernel: CudaKernel, block_q: int):
        sizes = signature_sizes(kernel.sig)
        place = _place(kernel, query_work(sizes, block_q))
        self.head, self.batch = kernel.scalar(place["head"]), kernel.scalar(place["entry"])
        self._kernel = kernel
        self._group = tirx.truncdiv(int32(sizes.heads), int32(sizes.kv_heads))
        self.first = kernel.scalar(place["tile"] * block_q)
        self._sequences = sequences_of(kernel.sig)
        self.rows, self.keys = lengths_of(kernel.sig, self.batch)
        self.block_q = block_q
        name_registers(self)

    @cached_property
    def kv_head(self):
        """Key/value head of this block's head."""
        return self._kernel.scalar(tirx.truncdiv(self.head, self._group))

    def query_rows(self, name: str) -> Rows:
        """Rows of this head in the tensor ``name`` of queries: q, out or a gradient."""
        return _rows(self._kernel, name, partial(self._sequences.query, self.batch, self.head))

    def key_rows(self, name: str) -> Rows:
        """Rows of the key/value head in the tensor ``name`` of keys."""
        return _rows(self._kernel, name, partial(self._sequences.key, self.batch, self.kv_head))

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

    def __init__(self, kernel: CudaKernel, tile: QueryTile, block_k: int):
        seen = visibility(kernel.sig, (tile.rows, tile.keys))
        visits = seen.keys(tile.first, tile.first + tile.block_q, block_k, last_first=True)
        self._visits = held(kernel, visits, "full_low", "full_high")
        self.first = kernel.scalar(visits.first(0))
        # Of no visits, the tile after the first.
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

    def step(self) -> None:
        """Go to the next tile."""
        assign(self.first, self.first - self._visits.block)


class KeyTile:
    """The key tile of this block: batch, kv_head, keys first .. first + block_k - 1."""

    def __init__(self, kernel: CudaKernel, block_k: int):
        sizes = signature_sizes(kernel.sig)
        place = _place(kernel, key_work(sizes, block_k))
        self.kv_head, self.batch = kernel.scalar(place["head"]), kernel.scalar(place["entry"])
        self.group = kernel.scalar(tirx.truncdiv(int32(sizes.heads), int32(sizes.kv_heads)))
        self.first = kernel.scalar(place["tile"] * block_k)
        self._kernel, self._sequences = kernel, sequences_of(kernel.sig)
        self.rows, self.keys = lengths_of(kernel.sig, self.batch)
        self.block_k = block_k
        name_registers(self)

    def query_rows(self, name: str, head) -> Rows:
        """Rows of a query head in the tensor ``name``: q or dout."""
        return _rows(self._kernel, name, partial(self._sequences.query, self.batch, head))

    def key_rows(self, name: str) -> Rows:
        """Rows of this head in the tensor ``name`` of keys: k, v or a gradient."""
        return _rows(self._kernel, name, partial(self._sequences.key, self.batch, self.kv_head))

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


def _rows(kernel: CudaKernel, name: str, index: Callable) -> Rows:
    buffer = kernel.buffers[name]
    return Rows(buffer, int(buffer.shape[-1]), index)


def _place(kernel: CudaKernel, work: Work) -> dict:
    """What this block takes of ``work``, int32; the number of tiles is kept in a register."""
    axes = {name: int32(extent) for name, extent in work.axes.items()}
    axes["tile"] = kernel.scalar(axes["tile"])
    return replace(work, axes=axes, arithmetic=TIR).place(kernel.block)
