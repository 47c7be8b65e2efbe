"""Which rows a block works on, and the key or query tiles that it visits."""

from __future__ import annotations

from functools import cached_property

from tvm import tirx

from ...definition.scores import Scores
from .builder import CudaKernel, assign, name_registers, signature_sizes
from .program import Grid, Sizes


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


class KeyBlocks:
    """The key tiles that a query tile sees, the last first: there the mask and the end bite.

    count: how many; a tile is a boundary when a mask or the end of the keys may hide part of it.
    """

    def __init__(self, kernel: CudaKernel, scores: Scores, tile: QueryTile, block_k: int):
        self.block_k, self.keys = block_k, int32(kernel.sig.seqlen_k)
        last = tirx.min(tile.first + tile.block_q, tile.rows) - 1
        low, high, full_low, full_high = scores.key_range(tile.first, last)
        start = kernel.scalar(tirx.truncdiv(low, block_k))
        self._stop = kernel.scalar(Sizes.blocks(high, block_k))
        self._full = kernel.scalar(full_low), kernel.scalar(full_high)
        self.count = kernel.scalar(tirx.max(self._stop - start, 0))
        name_registers(self)

    def first(self, number):
        """First key of the tile visited as number ``number``."""
        return (self._stop - 1 - number) * self.block_k

    def boundary(self, first):
        """Whether the tile that begins at key ``first`` pays for masks."""
        low, high = self._full
        return tirx.Or(first < low, first + self.block_k > high)


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


class QueryBlocks:
    """The query tiles that see a key tile, of every query head of its group, head after head.

    count: how many in all; head, first: the tile at hand; ``step`` goes to the next one, whose
    place next_head, next_first tell before.
    """

    def __init__(self, kernel: CudaKernel, scores: Scores, tile: KeyTile, block_q: int):
        self.block_q, self.rows, self._tile = block_q, int32(kernel.sig.seqlen_q), tile
        last = tirx.min(tile.first + tile.block_k, tile.keys) - 1
        low, high, full_low, full_high = scores.query_range(tile.first, last)
        self._start = kernel.scalar(tirx.truncdiv(low, block_q) * block_q)
        self._stop = kernel.scalar(high)
        self._full = kernel.scalar(full_low), kernel.scalar(full_high)
        tiles = tirx.max(Sizes.blocks(self._stop - self._start, block_q), 0)
        self.count = kernel.scalar(tiles * tile.group)
        self.head = kernel.scalar(tile.kv_head * tile.group)
        self.first = kernel.scalar(self._start)
        self.next_head, self.next_first = kernel.scalar(self.head), kernel.scalar(self.first)
        name_registers(self)

    def look_ahead(self) -> None:
        """Set next_head, next_first."""
        same = self.first + self.block_q < self._stop
        assign(self.next_head, tirx.Select(same, self.head, self.head + 1))
        assign(self.next_first, tirx.Select(same, self.first + self.block_q, self._start))

    def step(self) -> None:
        """Go to the next tile."""
        assign(self.head, self.next_head)
        assign(self.first, self.next_first)

    def boundary(self):
        """Whether masks or ends may hide part of the tile at hand."""
        low, high = self._full
        past_keys = self._tile.first + self._tile.block_k > self._tile.keys
        inside = tirx.Or(self.first < low, self.first + self.block_q > high)
        return tirx.Or(inside, past_keys)


def int32(value):
    """Lengths are checked to fit 31 bits."""
    return tirx.Cast("int32", value)
