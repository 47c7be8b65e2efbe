"""Products of sums that float16 cannot hold: rows of 16 bits with float32 numbers, in tf32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.script import tirx as T

from .builder import assign, emit
from .pieces import half_of
from .shared_tile import SharedTile
from .tensor_core import MmaF16, MmaTf32, product_for, rounded_tf32


@dataclass(frozen=True)
class MmaTf32Rows(MmaTf32):
    """float16 or bfloat16 rows, which tf32 holds as they are, and float32 numbers, rounded to it.

    The rounding is float16's (2^-12), the range float32's. ldmatrix gives a lane pairs of rows of
    the reduction, 16 to a step: two m16n8k8 take them, each in the order of ``MmaTf32``. Words of
    fragments are those of the first, then of the second.
    """

    dtype: str
    step = 16
    tiles_per_step = 2

    def load_a_paired(self, a: list, tile: SharedTile, stage, row, step: int) -> None:
        words = _words(tile)
        self._rows.load_a(words, tile, stage, row, step)
        self._set_a(a, words)

    def load_a_transposed(
        self, a: list, tile: SharedTile, stage, depth, column_pair, factors: Sequence = ()
    ) -> None:
        words = _words(tile)
        self._rows.load_a_transposed(words, tile, stage, depth, column_pair)
        self._set_a(a, words, factors)

    def load_b_rows(self, b: list, tile: SharedTile, stage, depth, pair, column=0) -> None:
        if tile.dtype == self.dtype:
            words = _words(tile)
            self._rows.load_b_rows(words, tile, stage, depth, pair, column)
            for n, word in enumerate(words):
                for odd in range(2):
                    value = half_of(word, odd, self.dtype)
                    assign(b[2 * n + odd], tirx.reinterpret("uint32", value))
            return
        for side in range(2):
            place = column + pair * 16 + side * 8 + tile.kernel.lane // 4
            for n, row in enumerate(self.reduction_rows(tile.kernel.lane, depth)):
                word = b[4 * side + n]
                emit(T.ptx["ld.shared.b32"](word, tile.element(stage, row, place)))
                assign(word, rounded_tf32(tirx.reinterpret("float32", word)))

    def reduction_rows(self, lane, depth) -> list:
        return [depth + half * 8 + lane % 4 * 2 + odd for half in range(2) for odd in range(2)]

    def set_b_column(self, b: list, lane, values: Sequence) -> None:
        for n, value in enumerate(values):
            assign(b[n], rounded_tf32(tirx.Select(lane < 4, value, T.float32(0))))
        for n in range(4, 8):
            assign(b[n], T.uint32(0))

    def pack(self, a: list, values: Sequence) -> None:
        for half in range(2):
            for n, r in enumerate((0, 2, 1, 3)):
                assign(a[4 * half + n], rounded_tf32(values[4 * half + r]))

    def multiply(self, acc: list, a: list, b: list) -> None:
        name = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
        for half in range(2):
            own = (a[4 * half : 4 * half + 4], b[2 * half : 2 * half + 2])
            emit(T.ptx[name](*acc, *own[0], *own[1], *acc))

    @property
    def _rows(self) -> MmaF16:
        """Whose fragments ldmatrix gives."""
        return MmaF16(self.dtype)

    def _set_a(self, a: list, words: list, factors: Sequence = ()) -> None:
        """a of the fragment that ldmatrix gave, rows times ``factors``."""
        for n, word in enumerate(words):  # rows 0 and 8 of the first eight of a step, the second
            half, lower = divmod(n, 2)
            for odd in range(2):
                value = half_of(word, odd, self.dtype)
                bits = tirx.reinterpret("uint32", value)
                if factors:
                    bits = rounded_tf32(value * factors[2 * half + odd])
                assign(a[4 * half + 2 * odd + lower], bits)


def _words(tile: SharedTile) -> list:
    words = tile.kernel.registers((4,), "uint32")
    return [words[n] for n in range(4)]


def state_product_for(dtype: str) -> MmaTf32:
    """How rows of ``dtype`` are multiplied with float32 sums."""
    return product_for(dtype) if dtype == "float32" else MmaTf32Rows(dtype)
