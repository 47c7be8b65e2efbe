"""Tiles in shared memory, swizzled so that rows read together fall into different banks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import gcd

from tvm import DataType, tirx
from tvm.script import tirx as T

from .builder import CudaKernel, typed

CHUNK_BYTES = 16
# The swizzle has the same pattern in each of so many rows.
SWIZZLED_ROWS = 8

_uint32 = partial(typed, dtype="uint32")


@dataclass(frozen=True)
class SharedTile:
    """``stages`` tiles of rows x columns; a row is whole chunks of 16 bytes.

    ldmatrix reads 8 rows of one chunk at once and 8 chunks fill the 32 banks, so the chunk number
    is xored with the row's: any 8 consecutive rows then hold a column in 8 different bank groups.
    """

    kernel: CudaKernel
    buffer: tirx.Buffer
    stages: int
    rows: int
    columns: int
    dtype: str

    @property
    def element_bytes(self) -> int:
        """Bytes of an element."""
        return DataType(self.dtype).bits // 8

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.columns * self.element_bytes

    @property
    def per_chunk(self) -> int:
        """Elements of a 16-byte chunk."""
        return CHUNK_BYTES // self.element_bytes

    @property
    def chunks(self) -> int:
        """Chunks of a row."""
        return self.columns // self.per_chunk

    @property
    def span(self) -> int:
        """Chunks within which the swizzle moves a chunk: 2, 4 or 8."""
        return gcd(self.chunks, 8)

    def chunk_of(self, row, chunk):
        """Where chunk number ``chunk`` of ``row`` lies.

        Rows advance by ``chunks`` modulo 8 bank groups, so they already differ within a period of
        8 / gcd(chunks, 8) rows; the xor separates the periods.
        """
        span = self.span
        return chunk if span == 1 else chunk ^ ((row // (8 // span)) % span)

    def index(self, stage, row, column) -> tuple:
        """Where one element lies in ``buffer``."""
        chunk, offset = column // self.per_chunk, column % self.per_chunk
        return stage, row, self.chunk_of(row, chunk) * self.per_chunk + offset

    def element(self, stage, row, column):
        """Address of one element."""
        return self.buffer.ptr_to(list(self.index(stage, row, column)))

    def fragment_address(self, pattern: str, stage, row, chunk, column=0):
        """Where this lane reads a row of its 16 x 2 chunks, which begin at ``row`` and ``chunk``.

        pattern, one of the two orders in which ldmatrix.x4 is fed: "row_major" (lanes 0-15 the rows
        of the first chunk, 16-31 of the second) or "col_major" (lanes 0-7 and 8-15 the two chunks
        of the first 8 rows, the others of the next 8). row: a multiple of 16; chunk: even; column:
        elements, a multiple of 128 bytes. The swizzle is an xor with bits of the lane alone, so the
        chunk's low bits are xored into a register kept for the pattern, and all else is an
        immediate.
        """
        low = chunk % self.span if isinstance(chunk, int) else chunk & (self.span - 1)
        offset = self._lane_offset(pattern) ^ _uint32(low * CHUNK_BYTES)
        columns = _uint32(column) * tirx.const(self.element_bytes, "uint32")
        rows = _uint32(row) * tirx.const(self.row_bytes, "uint32")
        return self.address(stage, offset + rows + columns + _uint32((chunk - low) * CHUNK_BYTES))

    def columns_of(self, group, tiles: int) -> tuple:
        """(column, pair) at which the columns of ``group`` begin, ``tiles`` tiles of 8 to a group.

        As a column where that is whole rows of banks, which makes the cheaper address.
        """
        if isinstance(group, int):
            return 0, group * tiles // 2
        whole = tiles * 8 * self.element_bytes % 128 == 0
        return (group * (tiles * 8), 0) if whole else (0, group * (tiles // 2))

    def address(self, stage, offset):
        """Address in shared memory, uint32, of the byte ``offset`` of a stage."""
        start = T.cuda.cvta_generic_to_shared(self.buffer.ptr_to([0, 0, 0]))
        if self.stages > 1:
            offset = offset + _uint32(stage) * tirx.const(self.rows * self.row_bytes, "uint32")
        return start + offset

    def offset_of(self, row, column):
        """Bytes from the start of a stage to an element, uint32."""
        chunk, element = column // self.per_chunk, column % self.per_chunk
        at = self.chunk_of(row, chunk) * CHUNK_BYTES + element * self.element_bytes
        return _uint32(row * self.row_bytes + at)

    def _lane_offset(self, pattern: str):
        """Bytes to the chunk that ``pattern`` gives this lane, of rows and chunks from 0 on.

        In a register that all tiles with rows as long share.
        """
        lane = self.kernel.lane
        if pattern == "row_major":
            row, chunk = lane % 16, lane // 16
        else:
            row, chunk = (lane // 16) * 8 + lane % 8, lane // 8 % 2
        return self.kernel.kept_offset(
            (pattern, self.row_bytes), self.offset_of(row, chunk * self.per_chunk)
        )


def shared_tile(
    kernel: CudaKernel, rows: int, columns: int, dtype: str, stages: int = 1
) -> SharedTile:
    """A new tile in the kernel's shared memory."""
    buffer = kernel.shared((stages, rows, columns), dtype)
    tile = SharedTile(kernel, buffer, stages, rows, columns, dtype)
    for pattern in ("row_major", "col_major"):
        tile._lane_offset(pattern)  # before loops, which the register then lives through
    return tile
