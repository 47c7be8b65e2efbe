"""What a warp has of a key tile and of the queries that meet it, and its products of these."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx

from .backward_config import BackwardConfig
from .builder import CudaKernel
from .fragments import Accumulator, gemm, reloading
from .product import Product
from .shared_tile import SharedTile


class KeyShare:
    """The place of a warp in a key tile: ``keys`` of its keys, ``queries`` of a query tile.

    column_group: which share of the queries, and of the columns of dK and dV, it has among the
    ``groups`` warps that have the same keys. Rows and columns of elements are of an accumulator of
    keys by queries.
    """

    def __init__(self, kernel: CudaKernel, product: Product, config: BackwardConfig):
        self.product, self.groups = product, config.column_groups
        self.keys = config.block_k * self.groups // config.num_warps
        self.queries = config.block_q // self.groups
        self.key_group, self.column_group = kernel.warp, 0
        if self.groups > 1:
            self.key_group = kernel.scalar(tirx.truncdiv(kernel.warp, self.groups))
            self.column_group = kernel.scalar(tirx.truncmod(kernel.warp, self.groups))

    @property
    def first_query(self):
        """Its first row of a query tile."""
        return self.column_group * self.queries

    def first_key(self, m: int):
        """First row, in the key tile, of row ``m`` of its tiles."""
        return self.key_group * self.keys + m * 16

    def key_row(self, acc: Accumulator, m: int, half: int):
        """Row of an element, in the key tile."""
        return self.key_group * self.keys + acc.row(m, half)

    def query_column(self, acc: Accumulator, n: int, odd: int):
        """Column of an element, a row of the query tile."""
        return self.first_query + acc.column(n, odd)

    def exchange(self, acc: Accumulator, words: Callable, tile: SharedTile, step: int) -> None:
        """A fragments of step ``step`` of ``acc`` to their place in [key][query]."""
        column = self.query_column(acc, step * self.product.step // 8, 0)
        for m in range(acc.m_tiles):
            self.product.store_fragment(tile, self.key_row(acc, m, 0), column, words(m))

    def transposed_product(
        self, acc: Accumulator, a: Callable, keys: SharedTile, rows: SharedTile, stage, first: int,
        beside: Sequence[Callable[[], None]],
    ) -> None:  # fmt: skip
        """acc = keys rows^T over the head dimension, from row ``first`` of its queries on.

        a: fragments for the keys. beside: work between the products.
        """
        product, first = self.product, first + self.first_query
        acc.zero()
        gemm(
            acc, product, keys.columns // product.step,
            reloading(
                a, acc.m_tiles,
                lambda a, m, step: product.load_a(a, keys, 0, self.first_key(m), step),
            ),
            lambda b, step, pair: product.load_b(b, rows, stage, first + pair * 16, step),
            beside,
        )  # fmt: skip

    def add(
        self, acc: Accumulator, a: Callable, rows: SharedTile, stage, group, step: int,
        beside: Sequence[Callable[[], None]] = (),
    ) -> None:  # fmt: skip
        """acc += A rows, over a step of the queries of column group ``group``."""
        product = self.product
        column, own = rows.columns_of(self.column_group, acc.n_tiles)
        depth = group * self.queries + step * product.step
        gemm(
            acc, product, 1, lambda _: [a(m) for m in range(acc.m_tiles)],
            lambda b, _, pair: product.load_b_rows(b, rows, stage, depth, own + pair, column),
            beside,
        )  # fmt: skip

    def add_others(
        self, acc: Accumulator, a: Callable, weights: SharedTile, rows: SharedTile, stage
    ) -> None:
        """acc += weights^T rows over the queries of all other column groups, the next one first.

        a: fragments for the weights.
        """
        steps = self.queries // self.product.step
        for other in range(1, self.groups):
            group = tirx.truncmod(self.column_group + other, self.groups)
            for step in range(steps):
                for m in range(acc.m_tiles):
                    row, at = self.first_key(m), group * steps + step
                    self.product.load_a_paired(a(m), weights, 0, row, at)
                self.add(acc, a, rows, stage, group, step)
