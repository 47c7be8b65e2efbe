"""How the sums of dQ lie in dq_acc, which the blocks of key tiles add to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from .arch import WARP
from .builder import CudaKernel, emit
from .fragments import Accumulator


@dataclass(frozen=True)
class InFragments:
    """In the order of fragments, where each tile of queries has rows of its own.

    A warp adds to 128 bytes in a row. depth: columns of dq_acc.
    """

    kernel: CudaKernel
    depth: int

    def place(self, first, number, r: int) -> tuple:
        """(row, column) of this lane's element r of fragment ``number`` of the tile at ``first``.

        Fragments of 16 rows and 8 columns are numbered along the rows.
        """
        return first, (number * 4 + r) * WARP + self.kernel.lane

    def add(self, acc: Accumulator, index: Callable, first, tile: tuple, rows) -> None:
        """Add ``acc`` to the sums of the query tile at ``first``.

        index(row, column): of an element of dq_acc. tile: row and column, in fragments, at which
        ``acc`` lies. rows: of the entry. Those past the last one have sums that nobody reads.
        """
        for m, n, r in acc.elements():
            number = (tile[0] + m) * (self.depth // 8) + tile[1] + n
            at = index(*self.place(first, number, r))
            _add(self.kernel.buffers["dq_acc"].ptr_to(list(at)), acc.registers[m, n, r])


@dataclass(frozen=True)
class InQuads(InFragments):
    """The same with the four elements of a lane side by side, added by one instruction.

    A warp adds to 512 bytes in a row.
    """

    def place(self, first, number, r: int) -> tuple:
        return first, (number * WARP + self.kernel.lane) * 4 + r

    def add(self, acc: Accumulator, index: Callable, first, tile: tuple, rows) -> None:
        for m in range(acc.m_tiles):
            for n in range(acc.n_tiles):
                number = (tile[0] + m) * (self.depth // 8) + tile[1] + n
                at = index(*self.place(first, number, 0))
                target = self.kernel.buffers["dq_acc"].ptr_to(list(at))
                emit(T.ptx["red.global.add.v4.f32"](target, *acc.tile(m, n)))


@dataclass(frozen=True)
class InRows:
    """Row by row, where rows past the end of an entry are another's, which others add to.

    Those get a 0 that is chosen, not multiplied: 0 times a value that is not finite would be NaN.
    A warp adds to the halves of 8 sectors of 32 bytes.
    """

    kernel: CudaKernel
    depth: int

    def place(self, first, number, r: int) -> tuple:
        """As of ``InFragments``."""
        fragments = self.depth // 8
        row, column = tirx.truncdiv(number, fragments), tirx.truncmod(number, fragments)
        row, column = self._own(first, row, column)
        return row + r // 2 * 8, column + r % 2

    def add(self, acc: Accumulator, index: Callable, first, tile: tuple, rows) -> None:
        """As of ``InFragments``, but zeros to the rows past the last one."""
        for m, n, r in acc.elements():
            row, column = self._own(first, tile[0] + m, tile[1] + n)
            row = row + r // 2 * 8
            value = tirx.Select(row < rows, acc.registers[m, n, r], T.float32(0))
            at = index(row, column + r % 2)
            _add(self.kernel.buffers["dq_acc"].ptr_to(list(at)), value)

    def _own(self, first, m, n) -> tuple:
        """Row and column of this lane's first element of fragment (m, n)."""
        lane = self.kernel.lane
        return first + (m * 16 + lane // 4), n * 8 + lane % 4 * 2


def sum_order(kernel: CudaKernel, depth: int) -> InFragments | InRows:
    """The order of dq_acc in a kernel's call: by fragments, unless entries differ."""
    return (InRows if kernel.sig.spans else InFragments)(kernel, depth)


def _add(target, value) -> None:
    emit(T.ptx["red.global.add.f32"](target, value))
