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
                assign(word, self.rounded(tirx.reinterpret("float32", word)))

    def reduction_rows(self, lane, depth) -> list:
        return [depth + half * 8 + lane % 4 * 2 + odd for half in range(2) for odd in range(2)]

    def set_b_column(self, b: list, lane, values: Sequence) -> None:
        for n, value in enumerate(values):
            assign(b[n], self.rounded(tirx.Select(lane < 4, value, T.float32(0))))
        for n in range(4, 8):
            assign(b[n], T.uint32(0))

    def pack(self, a: list, values: Sequence) -> None:
        for half in range(2):
            for n, r in enumerate((0, 2, 1, 3)):
                assign(a[4 * half + n], self.rounded(values[4 * half + r]))

    def multiply(self, acc: list, a: list, b: list) -> None:
        for half in range(2):
            self.multiply_half(acc, a[4 * half : 4 * half + 4], b[2 * half : 2 * half + 2])

    def rounded(self, value):
        """The bits of a float32 number as fragments hold it."""
        return rounded_tf32(value)

    def multiply_half(self, acc: list, a: list, b: list) -> None:
        """One m16n8k8."""
        emit(T.ptx["mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"](*acc, *a, *b, *acc))

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
                    bits = self.rounded(value * factors[2 * half + odd])
                assign(a[4 * half + 2 * odd + lower], bits)


# The lanes of a quad hold columns k, k + 4 of A's rows; lane 4 n + k holds B's element (k, n).
_FMA = """__device__ __forceinline__ void tvm_flash_fma_m16n8k8(float& d0, float& d1, float& d2,
    float& d3, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  int lane = threadIdx.x & 31, quad = lane & 28, column = (lane & 3) << 3;
  #pragma unroll 1
  for (int k = 0; k < 4; ++k) {
    #pragma unroll
    for (int half = 0; half < 2; ++half) {
      float upper = __uint_as_float(__shfl_sync(~0u, half ? a2 : a0, quad + k));
      float lower = __uint_as_float(__shfl_sync(~0u, half ? a3 : a1, quad + k));
      float left = __uint_as_float(__shfl_sync(~0u, half ? b1 : b0, column + k));
      float right = __uint_as_float(__shfl_sync(~0u, half ? b1 : b0, column + 4 + k));
      d0 = fmaf(upper, left, d0); d1 = fmaf(upper, right, d1);
      d2 = fmaf(lower, left, d2); d3 = fmaf(lower, right, d3);
    }
  }
}"""


@dataclass(frozen=True)
class FmaRows(MmaTf32Rows):
    """The same fragments where tensor cores have no tf32: float32 FMA, operands by shuffles.

    Nothing is rounded. An m16n8k8 is 32 FMA of a warp and 32 shuffles, of which an SM of sm_75 does
    one a clock and of FMA two (CUDA C++ Programming Guide, "arithmetic instructions"): half of
    float32's peak. The loop is not unrolled, which would make 100 instructions of each.
    """

    def rounded(self, value):
        return tirx.reinterpret("uint32", value)

    def multiply_half(self, acc: list, a: list, b: list) -> None:
        emit(T.cuda.func_call("tvm_flash_fma_m16n8k8", *acc, *a, *b, source_code=_FMA))


def _words(tile: SharedTile) -> list:
    words = tile.kernel.registers((4,), "uint32")
    return [words[n] for n in range(4)]


def state_product_for(dtype: str, turing: bool = False) -> MmaTf32:
    """How rows of ``dtype`` are multiplied with float32 sums."""
    if dtype == "float32":
        return product_for(dtype)
    return FmaRows(dtype) if turing else MmaTf32Rows(dtype)
