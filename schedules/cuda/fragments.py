"""Accumulator fragments of a warp's tiles: where their elements stand, products that fill them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from tvm import tirx

from .builder import CudaKernel, store
from .product import Product
from .shared_tile import SharedTile


@dataclass(frozen=True)
class Accumulator:
    """Float32 sums of ``m_tiles`` x ``n_tiles`` tiles of 16 x 8, four per lane and tile."""

    kernel: CudaKernel
    registers: tirx.Buffer
    m_tiles: int
    n_tiles: int

    def zero(self) -> None:
        """Start a sum."""
        self.map(lambda value, m, n, r: tirx.const(0, "float32"))

    def map(self, function: Callable) -> None:
        """Each element becomes function(value, m, n, r)."""
        for m, n, r in self.elements():
            store(self.registers, (m, n, r), function(self.registers[m, n, r], m, n, r))

    def elements(self, columns: Collection[int] | None = None) -> Iterator[tuple[int, int, int]]:
        """(m, n, r) of every element this lane holds, column by column.

        r = 2 * (lower half) + odd column. columns: those of tiles; None is all.
        """
        for n in range(self.n_tiles) if columns is None else columns:
            for m in range(self.m_tiles):
                for r in range(4):
                    yield m, n, r

    def row(self, m: int, half: int):
        """Row of the warp's tile that elements 2 half, 2 half + 1 of tile row m stand in."""
        return m * 16 + half * 8 + self.kernel.lane // 4

    def column(self, n: int, odd: int):
        """Column of an element of tile column n."""
        return n * 8 + self.kernel.lane % 4 * 2 + odd

    def to_shared(self, product: Product, tile: SharedTile, row, column, factor) -> None:
        """Its elements times ``factor``, rounded, to a tile of shared memory from (row, column)."""
        for m in range(self.m_tiles):
            for n in range(self.n_tiles):
                for half in range(2):
                    pair = [self.registers[m, n, 2 * half + odd] * factor for odd in range(2)]
                    at = row + self.row(m, half), column + self.column(n, 0)
                    product.store_pair(tile, *at, *pair)

    def tile(self, m: int, n: int) -> list:
        """The four registers of one tile."""
        return [self.registers[m, n, r] for r in range(4)]

    def values(self, m: int, step: int, product: Product) -> list:
        """What ``product.pack`` takes for reduction step ``step`` of tile row m."""
        first, count = step * product.tiles_per_step, product.tiles_per_step
        return [self.registers[m, n, r] for n in range(first, first + count) for r in range(4)]


def accumulator(kernel: CudaKernel, rows: int, columns: int) -> Accumulator:
    """Registers for a warp's tile of rows x columns."""
    m_tiles, n_tiles = rows // 16, columns // 8
    registers = kernel.registers((m_tiles, n_tiles, 4), "float32")
    return Accumulator(kernel, registers, m_tiles, n_tiles)


def gemm(
    acc: Accumulator,
    product: Product,
    steps: int,
    a_of: Callable[[int], list[list]],
    load_b: Callable[[list, int, int], None],
    beside: Sequence[Callable[[], None]] = (),
    after_steps: Sequence[Callable[[], None]] = (),
) -> None:
    """acc += A B over ``steps`` reduction steps.

    a_of(step) gives the A fragment of each tile row; load_b(words, step, pair) loads the B
    fragments of tile columns 2 pair and 2 pair + 1. beside: other work to issue while tensor cores
    multiply, spread evenly over them; after_steps: a share of it after each step instead.
    """
    words = acc.kernel.registers((product.words_b,), "uint32")
    b = [words[n] for n in range(product.words_b)]
    half, pairs = product.words_b // 2, acc.n_tiles // 2
    count, done, share = steps * pairs, 0, -(-len(after_steps) // steps)
    for step in range(steps):
        a = a_of(step)
        for pair in range(pairs):
            load_b(b, step, pair)
            for m in range(acc.m_tiles):
                for side in range(2):
                    own = b[side * half : (side + 1) * half]
                    product.multiply(acc.tile(m, 2 * pair + side), a[m], own)
            due = -(-len(beside) * (step * pairs + pair + 1) // count)
            for act in beside[done:due]:
                act()
            done = due
        for act in after_steps[step * share : (step + 1) * share]:
            act()


def reloading(words: Callable, m_tiles: int, load: Callable) -> Callable[[int], list[list]]:
    """``a_of`` for ``gemm``: each step fills the same fragments by load(a, m, step)."""

    def a_of(step: int) -> list[list]:
        for m in range(m_tiles):
            load(words(m), m, step)
        return [words(m) for m in range(m_tiles)]

    return a_of


def fragment(kernel: CudaKernel, product: Product, *shape: int) -> Callable[..., list]:
    """Registers for an array of A fragments; the result gives the words of one by its index."""
    words = kernel.registers((*shape, product.words_a), "uint32")
    return lambda *index: [words[(*index, n)] for n in range(product.words_a)]
