"""The threads that share a row of any length: its places, its pieces, what they know together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from ...definition.arithmetic import int32
from ...problem.dtype import DTYPES
from .arch import FULL_WARP, WARP
from .builder import CudaKernel, barrier, forget, leave_unless, name_registers, store, when
from .pieces import Piece
from .product import Product
from .program import Grid, blocks
from .rows import address_of

TEAM_WARPS = 8
# Bytes of the widest access.
WIDEST = 16


def team_grid(held: int, *lines: str) -> Grid:
    """Blocks for rows of "columns" elements, as many as the sizes called ``lines`` together."""
    short = WARP * held

    def grid(sizes: Mapping[str, Any]) -> tuple[Any, int, int]:
        rows, columns = sum(sizes[name] for name in lines), sizes["columns"]
        if isinstance(rows, int):
            return (blocks(rows, TEAM_WARPS) if columns <= short else rows), 1, 1
        return tirx.Select(columns <= short, blocks(rows, TEAM_WARPS), rows), 1, 1

    return grid


class RowTeam:
    """A warp of a row that it can hold, a block of a longer one.

    A row goes by in rounds, in each of which a thread holds ``held`` elements, in pieces. line: the
    team's row, of ``lines``. own: this thread's number among those of its team.
    """

    def __init__(self, kernel: CudaKernel, product: Product, held: int, columns, lines):
        self._kernel, self._product, self._columns = kernel, product, columns
        self._held = held
        self._bytes = DTYPES[product.dtype].bytes
        self.short = kernel.scalar(columns <= WARP * held, "bool")
        self.team = kernel.scalar(tirx.Select(self.short, WARP, kernel.threads))
        self.own = kernel.scalar(tirx.Select(self.short, kernel.lane, kernel.thread))
        block = tirx.Cast("int64", kernel.block)
        line = tirx.Select(self.short, block * TEAM_WARPS + kernel.warp, block)
        self.line = kernel.scalar(line, "int64")
        leave_unless(self.line < lines)
        # Elements of a round of the whole team, and rounds of a row.
        self.size = kernel.scalar(tirx.Cast("int64", self.team * held), "int64")
        rounds = tirx.truncdiv(columns + (self.size - 1), self.size)
        self.rounds = kernel.scalar(rounds, "int64")
        name_registers(self)

    def fits(self, *buffers: tirx.Buffer):
        """Whether their rows are whole pieces of the widest kind, at multiples of it."""
        found = self._columns
        for buffer in buffers:
            found = found | buffer.strides[0]
        found = found * self._bytes
        for buffer in buffers:
            found = found | address_of(buffer.ptr_to([0, 0]))
        return (found & T.int64(WIDEST - 1)) == 0

    def by_width(self, passes: Callable[[int], None], *buffers: tirx.Buffer) -> None:
        """``passes`` by pieces of so many elements: the widest where ``buffers`` fit, else one."""
        fits = self._kernel.scalar(self.fits(*buffers), "bool", "fits")
        for width, condition in ((WIDEST // self._bytes, fits), (1, tirx.Not(fits))):
            with when(condition):
                passes(width)

    def pieces(self, width: int) -> list[Piece]:
        """Registers for what a thread has of a round."""
        return [Piece(self._kernel, self._product, width) for _ in range(self._held // width)]

    def places(self, width: int, first) -> list[tuple]:
        """(column, whether the row has it) of this thread's pieces in the round from ``first``."""
        kernel = self._kernel
        # The compiler would else keep each piece's address of each tensor over all rounds.
        forget(self.own)
        left = kernel.scalar(int32(tirx.min(self._columns - first, self.size)))
        offsets = [(self.own + number * self.team) * width for number in range(self._held // width)]
        return [(first + tirx.Cast("int64", offset), offset < left) for offset in offsets]

    def load(
        self, pieces: Sequence[Piece], width: int, source: tirx.Buffer, line, first, nothing: float
    ) -> None:
        """The round from ``first`` of line ``line``; ``nothing`` behind the row's end."""
        filler = self._kernel.scalar(T.float32(nothing), "float32")
        for piece, (column, inside) in zip(pieces, self.places(width, first), strict=True):
            piece.set([filler] * width)
            with when(inside):
                piece.load(source.ptr_to([line, column]))

    def store(self, pieces: Sequence[Piece], width: int, target: tirx.Buffer, line, first) -> None:
        """The reverse of ``load``."""
        for piece, (column, inside) in zip(pieces, self.places(width, first), strict=True):
            with when(inside):
                piece.store(target.ptr_to([line, column]))

    def join(self, states: Sequence, merge: Callable, restart: Callable[[], None]) -> None:
        """Float32 registers ``states`` become those of the row, in each thread of the team.

        merge(*others): adds what other threads have to ``states``; restart: makes them those of
        nothing.
        """
        kernel = self._kernel
        for distance in (16, 8, 4, 2, 1):
            others = (
                T.tvm_warp_shuffle_xor(T.uint32(FULL_WARP), state, distance, WARP, WARP)
                for state in states
            )
            merge(*(kernel.scalar(other, "float32") for other in others))
        shared = [kernel.shared((TEAM_WARPS,), "float32", "of_warps") for _ in states]
        with when(tirx.Not(self.short)):
            with when(kernel.lane == 0):
                for tile, state in zip(shared, states, strict=True):
                    store(tile, (kernel.warp,), state)
            barrier()
            restart()
            for warp in range(TEAM_WARPS):
                merge(*(tile[warp] for tile in shared))
