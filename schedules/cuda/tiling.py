"""Which rows a block works on, and the key or query tiles that it visits, in registers."""

from __future__ import annotations

from functools import cached_property

from tvm import tirx

from ...definition.arithmetic import visibility
from ...problem.visits import Visits
from .builder import CudaKernel, assign, name_registers, signature_sizes
from .program import Grid


def round_up(value: int, multiple: int) -> int:
    """``value``, or the next multiple."""
    return -(-value // multiple) * multiple


def query_grid(block_q: int) -> Grid:
    """A block for each query tile of each head: what ``QueryTile`` decodes."""
    return lambda sizes: (
        sizes.blocks(sizes.seqlen_q, block_q) * sizes.heads * sizes.batch, 1, 1
    )  # fmt: skip


def key_grid(block_k: int) -> Grid:
    """A block for each key tile of each key/value head: what ``KeyTile`` decodes."""
    return lambda sizes: (
        sizes.blocks(sizes.seqlen_k, block_k) * sizes.kv_heads * sizes.batch, 1, 1
    )  # fmt: skip


class QueryTile:
    """The query tile of this block: batch, head, kv_head, rows first .. first + block_q - 1.

    Tiles of a head follow each other, the last rows first: under a causal mask they take longest,
    so the grid ends with short blocks.
    """

    def __init__(self, kernel: CudaKernel, block_q: int):
        sizes, div, mod = signature_sizes(kernel.sig), tirx.truncdiv, tirx.truncmod
        tiles = kernel.scalar(int32(sizes.blocks(sizes.seqlen_q, block_q)))
        heads = int32(sizes.heads)
        self.head = kernel.scalar(mod(div(kernel.block, tiles), heads))
        self.batch = kernel.scalar(div(kernel.block, tiles * heads))
        self._kernel, self._group = kernel, div(heads, int32(sizes.kv_heads))
        self.first = kernel.scalar((tiles - 1 - mod(kernel.block, tiles)) * block_q)
        self.rows = int32(sizes.seqlen_q)
        self.block_q = block_q
        name_registers(self)

    @cached_property
    def kv_head(self):
        """Key/value head of this block's head."""
        return self._kernel.scalar(tirx.truncdiv(self.head, self._group))


def key_visits(kernel: CudaKernel, tile: QueryTile, block_k: int) -> Visits:
    """The key tiles that a query tile sees, the last first: there the mask and the end bite."""
    seen = visibility(kernel.sig)
    visits = seen.keys(tile.first, tile.first + tile.block_q, block_k, last_first=True)
    return held(kernel, visits, "start", "full_low", "full_high", "count")


class KeyTile:
    """The key tile of this block: batch, kv_head, keys first .. first + block_k - 1.

    Under a causal mask the first keys are seen by most rows: those blocks go out first.
    """

    def __init__(self, kernel: CudaKernel, block_k: int):
        sizes, div, mod = signature_sizes(kernel.sig), tirx.truncdiv, tirx.truncmod
        tiles = kernel.scalar(int32(sizes.blocks(sizes.seqlen_k, block_k)))
        kv_heads = int32(sizes.kv_heads)
        self.kv_head = kernel.scalar(mod(div(kernel.block, tiles), kv_heads))
        self.batch = kernel.scalar(div(kernel.block, tiles * kv_heads))
        self.group = kernel.scalar(div(int32(sizes.heads), kv_heads))
        self.first = kernel.scalar(mod(kernel.block, tiles) * block_k)
        self.keys = int32(sizes.seqlen_k)
        self.block_k = block_k
        name_registers(self)


class QueryVisits:
    """The query tiles that see a key tile, of every query head of its group, head after head.

    count: how many in all; head, first: the tile at hand; ``step`` goes to the next one, whose
    place next_head, next_first tell before.
    """

    def __init__(self, kernel: CudaKernel, tile: KeyTile, block_q: int):
        past = tile.first + tile.block_k
        visits = visibility(kernel.sig).queries(tile.first, past, block_q, pad_is_boundary=True)
        self._visits = visits = held(kernel, visits, "end", "full_low", "full_high")
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

    def boundary(self):
        """Whether masks or ends may hide part of the tile at hand."""
        return self._visits.is_boundary(self.first)


def held(kernel: CudaKernel, visits: Visits, *names: str) -> Visits:
    """``visits`` with the numbers called ``names`` in registers."""
    visits = visits.held(**{name: kernel.scalar(getattr(visits, name)) for name in names})
    name_registers(visits)
    return visits


def int32(value):
    """Lengths are checked to fit 31 bits."""
    return tirx.Cast("int32", value)
