"""Rows of a tensor in global memory, and how the threads of a block walk over them tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial, reduce
from math import gcd
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from .builder import CudaKernel, assign, opaque, typed, when
from .shared_tile import SWIZZLED_ROWS, SharedTile

_int64 = partial(typed, dtype="int64")


@dataclass(frozen=True)
class Rows:
    """Rows of ``columns`` elements in ``buffer``, where index(row, column) places an element.

    The rows lie at one stride, from the first to the last. steps(row, column): an index with equal
    differences, of which strides are made; None is ``index``. left: where a tile takes some of the
    columns, from which on there are fewer than it has, how many, an expression.
    """

    buffer: tirx.Buffer
    columns: int
    index: Callable[..., tuple]
    steps: Callable[..., tuple] | None = None
    left: Any = None

    def address(self, row, column):
        """Address of one element, int64."""
        return address_of(self.buffer.ptr_to(list(self.index(row, column))))

    def pitch(self):
        """Bytes from a row to the next, int64."""
        steps = self.steps or self.index
        here, below = (self.buffer.ptr_to(list(steps(row, 0))) for row in range(2))
        return address_of(below) - address_of(here)


@dataclass(frozen=True)
class Piece:
    """What one thread moves by one access.

    place(stage): its address in the tile. pointer: in the tensor. inside: whether the tensor has
    it; None where it surely does.
    """

    place: Callable[[Any], Any]
    pointer: Any
    inside: Any


class Cursor:
    """The rows that a block brings to a tile, or fetches from it, a tile at a time.

    A tile is moved in passes, in which threads have a piece each, or none. A kind says where a
    piece lies in the tensor (``_address_of``) and how to go on after it (``_go_on``).
    """

    def __init__(self, kernel: CudaKernel, tile: SharedTile, columns: int, left=None):
        """columns, left: of a row in the tensor, as of ``Rows``."""
        self.kernel, self.tile = kernel, tile
        has_fewer = left is not None or columns < tile.columns
        self._limit = (columns if left is None else left) if has_fewer else None
        self.access_bytes = vector_bytes(columns, tile.element_bytes)
        self._per_row = tile.row_bytes // self.access_bytes
        self._rows_a_pass = _rows_a_pass(kernel.threads // self._per_row)
        # A thread keeps its columns where a pass is whole rows.
        self._keeps_columns = self._rows_a_pass > 0
        self._movers = self._rows_a_pass * self._per_row or kernel.threads
        self._passes = -(-tile.rows * self._per_row // self._movers)
        self._first_offset = None

    def pieces(self, left=None, wanted=None) -> list[AbstractContextManager[Piece]]:
        """The pieces of this thread in the tile at hand: contexts, to be entered once, in order.

        left: rows that the tensor has from the tile's first on, int32; None: as many as the tile.
        wanted: whether any is, which may be false after the last tile. What stands in the context
        is for threads that have such a piece.
        """
        tests = [] if wanted is None else [self.kernel.scalar(wanted, "bool")]
        if left is not None and self._keeps_columns:
            left = self.kernel.scalar(left - self._position(0)[0])
        return [self._piece(number, left, tests) for number in range(self._passes)]

    def _keep_offset(self, once: bool = False) -> None:
        """Hold the place of this thread's first piece in the tile, where others follow from it."""
        if self._keeps_columns and self._rows_a_pass % SWIZZLED_ROWS == 0:
            tile, key = self.tile, ("piece", self._per_row, self.tile.row_bytes)
            offset = tile.offset_of(*self._position(0))
            self._first_offset = self.kernel.kept_offset(key, offset, once)

    @contextmanager
    def _piece(self, number: int, left, tests: list) -> Iterator[Piece]:
        start = number * self._movers
        row, column = self._position(start)
        address = self._address_of(number, row, column)
        if left is not None:
            tests = [*tests, (start // self._per_row if self._keeps_columns else row) < left]
        if self._limit is not None:
            tests = [*tests, column < self._limit]
        place = partial(self.tile.element, row=row, column=column)
        if self._first_offset is not None:
            passed = start // self._per_row * self.tile.row_bytes
            place = partial(self.tile.address, offset=self._first_offset + T.uint32(passed))
        movers = min(self._movers, self.tile.rows * self._per_row - start)
        is_partial = movers < self.kernel.threads
        with when(self.kernel.thread < movers) if is_partial else nullcontext():
            yield Piece(place, pointer(address), reduce(tirx.And, tests) if tests else None)
        self._go_on(is_last=number == self._passes - 1)

    def _address_of(self, number: int, row, column):
        """Address of this thread's piece of pass ``number``, at ``row`` and ``column``, int64."""
        raise NotImplementedError

    def _go_on(self, is_last: bool) -> None:
        """Go to the next piece; from the last one to the next tile."""
        raise NotImplementedError

    def _position(self, start: int) -> tuple:
        """(row, column) in the tile of this thread's piece in the pass that begins at ``start``."""
        index = self.kernel.thread + start
        elements = self.access_bytes // self.tile.element_bytes
        return index // self._per_row, index % self._per_row * elements


class RowCursor(Cursor):
    """A cursor over ``Rows``, which lie at one stride.

    Each thread holds the address of its next piece, and steps it from piece to piece and from tile
    to tile: an address made anew of entry, row and head takes 64-bit products for every piece. The
    steps are opaque to the compiler, which would turn them back into such products.
    """

    def __init__(
        self, kernel: CudaKernel, tile: SharedTile, rows: Rows, first, advance: int | None = None,
        once: bool = False,
    ):  # fmt: skip
        """first: the row at which the first tile begins. advance: rows from a tile to the next one
        (negative: back), None if no other follows. once: for one tile, inside any statement; it
        takes registers that others keep, and keeps none.
        """
        super().__init__(kernel, tile, rows.columns, rows.left)
        self._advance = advance
        row, column = self._position(0) if self._keeps_columns else (0, 0)
        self._address = kernel.scalar(rows.address(first + row, column), "int64")
        # No register holds it: it is a product of the call's strides, for uniform registers.
        self._pitch = rows.pitch()
        self._keep_offset(once)

    def skip(self, rows, more_bytes) -> None:
        """Go ``rows`` rows, int32, and ``more_bytes``, int64, on: to a tile that lies elsewhere."""
        assign(self._address, opaque(self._address + (self._pitch * _int64(rows) + more_bytes)))

    def _address_of(self, number: int, row, column):
        if self._keeps_columns:
            return self._address
        at_column = _int64(column * self.tile.element_bytes)
        return self._address + (_int64(row) * self._pitch + at_column)

    def _go_on(self, is_last: bool) -> None:
        count = self._rows_a_pass
        if is_last:
            count = (self._advance or 0) - count * (self._passes - 1)
        if count:
            assign(self._address, opaque(self._address + self._pitch * _int64(count)))


def _rows_a_pass(most: int) -> int:
    """Rows that one pass of all threads moves, of ``most`` for which there are threads.

    Whole periods of the swizzle, so that a thread's place in it stays the same; where there are too
    few for one, a power of two, so that places repeat after few passes. 0: a row takes several.
    """
    return most // SWIZZLED_ROWS * SWIZZLED_ROWS or 1 << most.bit_length() >> 1


def vector_bytes(columns: int, element_bytes: int) -> int:
    """Widest access that rows of ``columns`` contiguous elements allow: 16, 8, 4 or 2 bytes."""
    return gcd(columns * element_bytes, 16)


def address_of(pointer):
    """The address that ``pointer`` is, int64."""
    source = (
        "__device__ __forceinline__ long long tvm_flash_address(const void* p)"
        " { return (long long)p; }"
    )
    return T.cuda.func_call("tvm_flash_address", pointer, source_code=source, return_type="int64")


def pointer(address):
    """The pointer that ``address``, int64, is."""
    source = "__device__ __forceinline__ void* tvm_flash_pointer(long long a) { return (void*)a; }"
    return T.cuda.func_call("tvm_flash_pointer", address, source_code=source, return_type="handle")
