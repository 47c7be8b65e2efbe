"""Matrix products of a warp on tensor cores: fragments, how they load, how they multiply.

All have the accumulator of m16n8: lane l holds rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the
next one (PTX ISA, "Matrix fragments for mma.m16n8k16").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from ...problem.dtype import DTYPES
from .builder import assign, emit, store
from .product import Product
from .shared_tile import SharedTile

_LOAD = "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
_LOAD_TRANSPOSED = "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"


@dataclass(frozen=True)
class MmaF16:
    """float16 or bfloat16 operands, float32 sums: mma.m16n8k16.

    step: reduction length of one product; words_a: registers of an A fragment; words_b: of two
    neighbouring B fragments; tiles_per_step: accumulator tiles that make an A fragment.
    """

    dtype: str
    step = 16
    words_a = 4
    words_b = 4
    tiles_per_step = 2

    @property
    def suffix(self) -> str:
        """PTX name of the operand type."""
        return DTYPES[self.dtype].operand

    def load_a(self, a: list, tile: SharedTile, stage, row, step: int) -> None:
        """A rows row .. row + 15, reduction chunk pair ``step``, of a tile stored by rows."""
        emit(T.ptx[_LOAD](*a, tile.fragment_address("row_major", stage, row, step * 2)))

    def load_a_paired(self, a: list, tile: SharedTile, stage, row, step: int) -> None:
        """As ``load_a``, the reduction index in the order that ``load_b_rows`` has it."""
        self.load_a(a, tile, stage, row, step)

    def load_a_transposed(self, a: list, tile: SharedTile, stage, depth, column_pair) -> None:
        """A of rows 16 column_pair .., reduction rows depth .. depth + 15, stored transposed."""
        at = tile.fragment_address("col_major", stage, depth, column_pair * 2)
        emit(T.ptx[_LOAD_TRANSPOSED](*a, at))

    def load_b(self, b: list, tile: SharedTile, stage, row, step: int) -> None:
        """B of columns row .. row + 15 (two tiles), stored with a column of B in a row."""
        emit(T.ptx[_LOAD](*b, tile.fragment_address("col_major", stage, row, step * 2)))

    def load_b_rows(self, b: list, tile: SharedTile, stage, depth, pair, column=0) -> None:
        """B of reduction rows depth .. depth + 15, two tiles of columns, stored by rows.

        The columns are those from ``column`` (a multiple of 128 bytes) + 16 pair on.
        """
        at = tile.fragment_address("row_major", stage, depth, pair * 2, column)
        emit(T.ptx[_LOAD_TRANSPOSED](*b, at))

    def pack(self, a: list, values: Sequence) -> None:
        """The A fragment of the 8 numbers this lane holds of two neighbouring accumulator tiles."""
        for n in range(4):
            self.convert(a[n], values[2 * n], values[2 * n + 1])

    def convert(self, word, low, high) -> None:
        """Two float32 rounded into one word, ``low`` first in memory."""
        emit(T.ptx[f"cvt.rn.{self.suffix}x2.f32"](word, high, low))

    def store_pair(self, tile: SharedTile, row, column, low, high) -> None:
        """Two neighbouring columns of a row into the tile, rounded."""
        word = tile.kernel.registers((1,), "uint32")
        self.convert(word[0], low, high)
        emit(T.ptx["st.shared.b32"](tile.element(0, row, column), word[0]))

    def store_fragment(self, tile: SharedTile, row, column, a: list) -> None:
        """What ``pack`` made of two accumulator tiles to rows row, row + 8 and columns column, ..

        row and column are those of the lane's first element.
        """
        for n in range(4):
            at = tile.element(0, row + n % 2 * 8, column + n // 2 * 8)
            emit(T.ptx["st.shared.b32"](at, a[n]))

    def multiply(self, acc: list, a: list, b: list) -> None:
        """acc (4) += A B for one accumulator tile; ``b`` is its half of the words."""
        name = f"mma.sync.aligned.m16n8k16.row.col.f32.{self.suffix}.{self.suffix}.f32"
        emit(T.ptx[name](*acc, *a, *b, *acc))


@dataclass(frozen=True)
class MmaF16Turing(MmaF16):
    """float16 on sm_75: each m16n8k16 as two m16n8k8, whose fragments are its halves."""

    def convert(self, word, low, high) -> None:
        # cvt of two floats into a pair begins with sm_80.
        halves = [tirx.reinterpret("uint16", tirx.Cast("float16", x)) for x in (low, high)]
        low, high = (tirx.Cast("uint32", x) for x in halves)
        assign(word, low | (high << tirx.const(16, "uint32")))

    def multiply(self, acc: list, a: list, b: list) -> None:
        for half in range(2):
            name = "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32"
            emit(T.ptx[name](*acc, *a[2 * half : 2 * half + 2], b[half], *acc))


@dataclass(frozen=True)
class MmaTf32:
    """float32 operands as sums of two tf32 numbers: three m16n8k8 products, float32 accuracy.

    x = hi + lo with hi = tf32(x); lo lo is left out (2^-22 of the product). Fragments hold the his,
    then the los. The accumulator has columns 2 t and 2 t + 1 in one lane where the A operand wants
    t and t + 4: the reduction index is permuted to match, in A (``pack``) and in B alike.
    """

    dtype: str = "float32"
    step = 8
    words_a = 8
    words_b = 8
    tiles_per_step = 1

    def load_a(self, a: list, tile: SharedTile, stage, row, step: int) -> None:
        emit(T.ptx[_LOAD](*a[:4], tile.fragment_address("row_major", stage, row, step * 2)))
        for n in range(4):
            _split(a[n], a[n + 4], tirx.reinterpret("float32", a[n]))

    def load_a_paired(self, a: list, tile: SharedTile, stage, row, step: int) -> None:
        lane = tile.kernel.lane
        for half in range(2):
            at = tile.element(stage, row + half * 8 + lane // 4, step * 8 + lane % 4 * 2)
            emit(T.ptx["ld.shared.v2.b32"](a[half], a[half + 2], at))
        for n in range(4):
            _split(a[n], a[n + 4], tirx.reinterpret("float32", a[n]))

    def load_a_transposed(
        self, a: list, tile: SharedTile, stage, depth, column_pair, factors: Sequence = ()
    ) -> None:
        """factors: of the reduction rows that this lane holds (``reduction_rows``)."""
        lane = tile.kernel.lane
        for n in range(4):
            row = depth + lane % 4 * 2 + n // 2
            column = column_pair * 16 + n % 2 * 8 + lane // 4
            emit(T.ptx["ld.shared.b32"](a[n], tile.element(stage, row, column)))
            value = tirx.reinterpret("float32", a[n])
            _split(a[n], a[n + 4], value * factors[n // 2] if factors else value)

    def load_b(self, b: list, tile: SharedTile, stage, row, step: int) -> None:
        at = tile.fragment_address("col_major", stage, row, step * 2)
        emit(T.ptx[_LOAD](b[0], b[1], b[4], b[5], at))
        for n in (0, 1, 4, 5):
            _split(b[n], b[n + 2], tirx.reinterpret("float32", b[n]))

    def load_b_rows(self, b: list, tile: SharedTile, stage, depth, pair, column=0) -> None:
        lane = tile.kernel.lane
        for n in (0, 1, 4, 5):
            row = depth + lane % 4 * 2 + n % 4
            place = column + pair * 16 + n // 4 * 8 + lane // 4
            emit(T.ptx["ld.shared.b32"](b[n], tile.element(stage, row, place)))
            _split(b[n], b[n + 2], tirx.reinterpret("float32", b[n]))

    def reduction_rows(self, lane, depth) -> list:
        """Those that ``load_a_transposed`` and ``load_b_rows`` give a lane, in their order."""
        return [depth + lane % 4 * 2 + odd for odd in range(2)]

    def set_b_column(self, b: list, lane, values: Sequence) -> None:
        """B of two tiles of columns that are zeros but for the first, of ``reduction_rows``."""
        for n in range(2):
            own = tirx.Select(lane < 4, values[n], T.float32(0))
            _split(b[n], b[n + 2], own)
        for n in range(4, 8):
            assign(b[n], T.uint32(0))

    def pack(self, a: list, values: Sequence) -> None:
        # Accumulator (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1) as A (g, t), (g, t+4), ...
        for n, value in zip((0, 2, 1, 3), values, strict=True):
            _split(a[n], a[n + 4], value)

    def store_pair(self, tile: SharedTile, row, column, low, high) -> None:
        words = [tirx.reinterpret("uint32", low), tirx.reinterpret("uint32", high)]
        emit(T.ptx["st.shared.v2.b32"](tile.element(0, row, column), *words))

    def store_fragment(self, tile: SharedTile, row, column, a: list) -> None:
        for half in range(2):
            whole = [_whole(a[half + 2 * odd], a[half + 2 * odd + 4]) for odd in range(2)]
            at = tile.element(0, row + half * 8, column)
            emit(T.ptx["st.shared.v2.b32"](at, *whole))

    def multiply(self, acc: list, a: list, b: list) -> None:
        name = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
        for left, right in ((a[4:], b[:2]), (a[:4], b[2:]), (a[:4], b[:2])):
            emit(T.ptx[name](*acc, *left, *right, *acc))


def _split(high, low, value) -> None:
    """high = tf32(value), low = tf32(value - high)."""
    rest = value - tirx.reinterpret("float32", rounded_tf32(value))
    store(low.source, low.indices, rounded_tf32(rest))
    store(high.source, high.indices, rounded_tf32(value))


def _whole(high, low):
    """The float32 bits that were split."""
    total = tirx.reinterpret("float32", high) + tirx.reinterpret("float32", low)
    return tirx.reinterpret("uint32", total)


def rounded_tf32(value):
    """The bits of float32 ``value``, rounded to tf32."""
    source = (
        "__device__ __forceinline__ unsigned tvm_flash_tf32(float x) { unsigned y;"
        ' asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x)); return y; }'
    )
    return T.cuda.func_call("tvm_flash_tf32", value, source_code=source, return_type="uint32")


def product_for(dtype: str, turing: bool = False) -> Product:
    """How operands of ``dtype`` are multiplied."""
    if DTYPES[dtype].operand == "tf32":
        return MmaTf32()
    return MmaF16Turing(dtype) if turing else MmaF16(dtype)
