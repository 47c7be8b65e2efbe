"""Tiles that TMA brings: boxes of 128-byte rows side by side, as wgmma reads them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tvm import DataType, tirx

from ..builder import CudaKernel
from .ring import Landing
from .tensor_maps import BOX_BYTES, load_box, store_box

# The swizzle repeats after 8 rows of 128 bytes, and looks at bits of the address.
SWIZZLE_BYTES = 1024
_CHUNK_BYTES, _SWIZZLED_ROWS = 16, 8


@dataclass(frozen=True)
class BoxTile:
    """``stages`` tiles of rows x columns as boxes of 64 columns, one after the other.

    Columns past the last one of the tensor are zeros. As a tile it can be written by fragments
    (``Product.store_pair``, ``Accumulator.to_shared``): chunks of 16 bytes are xored with the row.
    """

    kernel: CudaKernel
    buffer: tirx.Buffer
    stages: int
    boxes: int
    rows: int
    dtype: str

    @property
    def element_bytes(self) -> int:
        """Bytes of an element."""
        return DataType(self.dtype).bits // 8

    @property
    def box_columns(self) -> int:
        """Columns of a box."""
        return BOX_BYTES // self.element_bytes

    @property
    def box_bytes(self) -> int:
        """Bytes of a box."""
        return self.rows * BOX_BYTES

    @property
    def stage_bytes(self) -> int:
        """Bytes of a tile: what the barrier of a whole one counts."""
        return self.boxes * self.box_bytes

    def element(self, stage, row, column):
        """Address of one element."""
        per_chunk = _CHUNK_BYTES // self.element_bytes
        box, within = column // self.box_columns, column % self.box_columns
        chunk = (within // per_chunk) ^ (row % _SWIZZLED_ROWS)
        return self.buffer.ptr_to([stage, box, row, chunk * per_chunk + within % per_chunk])

    def pieces(self, thread, threads: int, rows: int) -> Iterator[tuple]:
        """(row, box, column in it, address's column) of each 16-byte piece that ``thread`` of
        ``threads`` has in the first ``rows`` rows: eight threads a row, one box after the other.
        """
        per_chunk, chunks = _CHUNK_BYTES // self.element_bytes, BOX_BYTES // _CHUNK_BYTES
        for box in range(self.boxes):
            for first in range(0, rows, threads // chunks):
                row, place = first + thread // chunks, thread % chunks
                column = (place ^ (row % _SWIZZLED_ROWS)) * per_chunk
                yield row, box, column, place * per_chunk

    def load(self, tensor_map, place: Sequence, landing: Landing, use=0) -> None:
        """Ask for the rows from ``place`` (head, row, entry) on, by one thread.

        They land as a use of ``landing``, which expects ``stage_bytes``: rows and columns that the
        tensor lacks are zeros.
        """
        stage, barrier = landing.stage(use), landing.full(use)
        for box in range(self.boxes):
            target = self.buffer.ptr_to([stage, box, 0, 0])
            load_box(tensor_map, target, (box * self.box_columns, *place), barrier)

    def store(self, tensor_map, row, place: Sequence) -> None:
        """Store rows from ``row`` on to ``place`` on, as many as the map's box has; one thread."""
        for box in range(self.boxes):
            source = self.buffer.ptr_to([0, box, row, 0])
            store_box(tensor_map, source, (box * self.box_columns, *place))


def box_tile(kernel: CudaKernel, rows: int, columns: int, dtype: str, stages: int = 1) -> BoxTile:
    """A new tile in the kernel's shared memory, for ``columns`` or more of them."""
    width = BOX_BYTES * 8 // DataType(dtype).bits
    boxes = -(-columns // width)
    buffer = kernel.shared((stages, boxes, rows, width), dtype, align=SWIZZLE_BYTES)
    return BoxTile(kernel, buffer, stages, boxes, rows, dtype)


def box_bytes(rows: int, columns: int, element_bytes: int, stages: int = 1) -> int:
    """Shared memory of such a tile."""
    return stages * -(-columns * element_bytes // BOX_BYTES) * BOX_BYTES * rows
