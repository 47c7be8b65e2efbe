"""Tiles in shared memory, swizzled so that rows read together fall into different banks."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

from tvm import DataType, tirx

from .builder import CudaKernel

CHUNK_BYTES = 16


@dataclass(frozen=True)
class SharedTile:
    """``stages`` tiles of rows x columns; a row is a whole number of 16-byte chunks.

    ldmatrix reads 8 rows of one chunk at once and 8 chunks fill the 32 banks, so the chunk number is
    xored with the row's: any 8 consecutive rows then hold a column in 8 different bank groups.
    """

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
    def per_chunk(self) -> int:
        """Elements of a 16-byte chunk."""
        return CHUNK_BYTES // self.element_bytes

    @property
    def chunks(self) -> int:
        """Chunks of a row."""
        return self.columns // self.per_chunk

    def chunk_of(self, row, chunk):
        """Where chunk number ``chunk`` of ``row`` lies.

        Rows advance by ``chunks`` modulo 8 bank groups, so they already differ within a period of
        8 / gcd(chunks, 8) rows; the xor separates the periods.
        """
        span = gcd(self.chunks, 8)
        return chunk if span == 1 else chunk ^ ((row // (8 // span)) % span)

    def pointer(self, stage, row, chunk, offset=0):
        """Address of element ``offset`` of a chunk."""
        column = self.chunk_of(row, chunk) * self.per_chunk + offset
        return self.buffer.ptr_to([stage, row, column])

    def element(self, stage, row, column):
        """Address of one element."""
        return self.pointer(stage, row, column // self.per_chunk, column % self.per_chunk)


def shared_tile(
    kernel: CudaKernel, rows: int, columns: int, dtype: str, stages: int = 1
) -> SharedTile:
    """A new tile in the kernel's shared memory."""
    buffer = kernel.shared((stages, rows, columns), dtype)
    return SharedTile(buffer, stages, rows, columns, dtype)
