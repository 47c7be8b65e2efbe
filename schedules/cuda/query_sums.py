"""What a key tile adds to the dQ of a query tile: a product over the keys of all warps."""

from __future__ import annotations

from functools import partial

from tvm import tirx

from .backward_config import BackwardConfig
from .builder import CudaKernel
from .fragments import accumulator, fragment, gemm, reloading
from .gradient_sums import sum_order
from .product import Product
from .shared_tile import SharedTile
from .tiling import KeyTile


class QuerySums:
    """dS K into dq_acc, whose order is ``sum_order``'s.

    scores: dS^T as [key][query]; keys: K. A warp has rows and columns of dQ, which it computes in
    ``BackwardConfig.dq_parts``.
    """

    def __init__(
        self, kernel: CudaKernel, product: Product, config: BackwardConfig, tile: KeyTile,
        scores: SharedTile, keys: SharedTile,
    ):  # fmt: skip
        self._kernel, self._product, self._config, self._tile = kernel, product, config, tile
        self._scores, self._keys = scores, keys

    def add(self, head, first) -> None:
        """That of query head ``head``, of the queries from ``first`` on."""
        config, n_tiles = self._config, self._keys.columns // 8
        groups = config.dq_groups(self._keys.columns)
        m_tiles = config.dq_rows(groups) // 16
        first_m = tirx.truncdiv(self._kernel.warp, groups) * m_tiles
        own_tiles = n_tiles // groups
        group = tirx.truncmod(self._kernel.warp, groups) if groups > 1 else 0
        part = own_tiles // config.dq_parts
        index = partial(self._tile.gradient_sum, head)
        order = sum_order(self._kernel, self._keys.columns)
        for start in range(0, own_tiles, part):
            dq = self._columns(
                first_m, m_tiles, self._keys.columns_of(group, own_tiles), start, part
            )
            at = (first_m, group * own_tiles + start)
            order.add(dq, index, first, at, self._tile.rows)

    def _columns(self, first_m, m_tiles: int, own: tuple, start: int, part: int):
        """Columns start .. start + part, in tiles, of those from ``own`` (``columns_of``) on."""
        kernel, product, (column, pair_of_own) = self._kernel, self._product, own
        dq = accumulator(kernel, 16 * m_tiles, 8 * part)
        a = fragment(kernel, product, m_tiles)
        dq.zero()
        gemm(
            dq, product, self._config.block_k // product.step,
            reloading(
                a, m_tiles,
                lambda a, m, step: product.load_a_transposed(
                    a, self._scores, 0, step * product.step, first_m + m
                ),
            ),
            lambda b, step, pair: product.load_b_rows(
                b, self._keys, 0, step * product.step, pair_of_own + start // 2 + pair, column
            ),
        )  # fmt: skip
        return dq
