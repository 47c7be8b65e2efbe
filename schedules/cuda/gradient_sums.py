"""How the sums of dQ lie in dq_acc, which the blocks of key tiles add to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx

from .arch import WARP
from .builder import CudaKernel


@dataclass(frozen=True)
class InFragments:
    """In the order of fragments, where each tile of queries has rows of its own.

    A warp adds to 128 bytes in a row. depth: columns of dq_acc.
    """

    kernel: CudaKernel
    depth: int

    def tile(self, number) -> tuple:
        """(m, n) of the fragment ``number`` of a query tile, as ``place`` takes them."""
        return 0, number

    def place(self, first, m, n, r: int) -> tuple:
        """(row, column) of this lane's element r of fragment (m, n) of the tile at ``first``."""
        tile = m * (self.depth // 8) + n
        return first, (tile * 4 + r) * WARP + self.kernel.lane

    def inside(self, first, first_m, m_tiles: int, rows) -> Callable:
        """Whether an element's row is the entry's, of ``rows``, by (m - first_m, r); None: surely.

        Rows past the last one have sums that nobody reads.
        """
        return lambda m, r: None


@dataclass(frozen=True)
class InRows:
    """Row by row, where rows past the end of an entry are another's, which others add to.

    A warp adds to half of 8 sectors of 32 bytes.
    """

    kernel: CudaKernel
    depth: int

    def tile(self, number) -> tuple:
        return tirx.truncdiv(number, self.depth // 8), tirx.truncmod(number, self.depth // 8)

    def place(self, first, m, n, r: int) -> tuple:
        column = n * 8 + self.kernel.lane % 4 * 2 + r % 2
        return first + self._row(m) + r // 2 * 8, column

    def inside(self, first, first_m, m_tiles: int, rows) -> Callable:
        found = [
            [
                self.kernel.scalar(first + self._row(first_m + m) + half * 8 < rows, "bool")
                for half in range(2)
            ]
            for m in range(m_tiles)
        ]
        return lambda m, r: found[m][r // 2]

    def _row(self, m):
        return m * 16 + self.kernel.lane // 4


def sum_order(kernel: CudaKernel, depth: int) -> InFragments | InRows:
    """The order of dq_acc in a kernel's call: by fragments, unless entries differ."""
    return (InRows if kernel.sig.spans else InFragments)(kernel, depth)
