"""Register-blocked micro-kernels as tensor intrinsics: C[rows, lanes] += A x B, A broadcast."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from .forms.tiles import FLOAT32, Bf16PairOperand, Float32Operand
from .llvm_text import with_llvm

# Most products in one accumulator, of float32: rounding grows with the square of a running sum's
# length. A sum of so many, begun at zero, is then added to the total. A multiple of every unroll,
# and no less than most head dimensions: further parts load and store the total.
PART = 128

# Without it LLVM sees a heap workspace instead of a stack array it can keep in registers.
IN_REGISTERS = {"disable_lower_builtin": True}

# acc + the dot products of one broadcast pair of bf16 with 16 pairs (VDPBF16PS). TVM legalises
# every bf16 vector away before code generation, so the instruction enters as LLVM IR.
DOT_BF16 = r"""
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define linkonce_odr <16 x float> @tvm_flash_dot_bf16(
    <16 x float> %acc, i32 %pair, <16 x i32> %pairs) alwaysinline nounwind {
  %first = insertelement <16 x i32> poison, i32 %pair, i64 0
  %words = shufflevector <16 x i32> %first, <16 x i32> poison, <16 x i32> zeroinitializer
  %a = bitcast <16 x i32> %words to <32 x bfloat>
  %b = bitcast <16 x i32> %pairs to <32 x bfloat>
  %sum = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
      <16 x float> %acc, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %sum
}
"""


@dataclass(frozen=True)
class MicroTile:
    """One micro-kernel: C[r, l] (+)= sum_k A[r, k] . B[k, l], or A[k, r] . B[k, l] when transposed.

    ``rows * lanes / vector`` accumulators live in registers over a part of the depth, from zero on:
    choose rows and lanes so that these and one row of B fit the register file. A word of A is
    broadcast from memory, so A needs no packing; B's lanes are contiguous. The operand says what a
    word is: float32 (FMA) or a pair of bf16 (dot product, float32 accumulation; depth counts
    words). fresh: the sum starts at zero, not at what C holds. unroll: steps of the depth in one
    iteration.
    """

    rows: int
    lanes: int
    depth: int
    vector: int
    transposed: bool = False
    fresh: bool = False
    unroll: int = 1
    operand: Float32Operand | Bf16PairOperand = FLOAT32

    @property
    def name(self) -> str:
        kind = "fma" if self.operand.pack == 1 else "dot"
        flags = ("_t" if self.transposed else "") + ("_fresh" if self.fresh else "")
        size = f"{self.rows}x{self.lanes}x{self.depth}"
        return f"tvm_flash_{kind}_{size}_v{self.vector}_u{self.unroll}{flags}"

    @property
    def a_shape(self) -> tuple[int, int]:
        return (self.depth, self.rows) if self.transposed else (self.rows, self.depth)

    @property
    def part(self) -> int:
        """Products of one running sum: the depth in equal parts, none above PART."""
        parts = -(-self.depth // PART)
        return -(-self.depth // (parts * 8)) * 8

    def a_index(self, r, k) -> tuple:
        """Where the word of A lies that row ``r`` multiplies at depth ``k``."""
        return (k, r) if self.transposed else (r, k)

    def reads(self, a, b, c) -> list:
        """What the product reads of its three buffers."""
        regions = [a[0 : self.a_shape[0], 0 : self.a_shape[1]], b[0 : self.depth, 0 : self.lanes]]
        return regions if self.fresh else [c[0 : self.rows, 0 : self.lanes], *regions]


@cache
def register(tile: MicroTile) -> str:
    """Register the tensor intrinsic of ``tile`` and return its name."""
    both = description(tile), _implementation(tile)
    TensorIntrin.register(tile.name, *both, override=True)
    return tile.name


def with_bf16_dot(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """``func`` with the LLVM function that ``pack`` 2 tiles call."""
    return with_llvm(func, DOT_BF16)


def description(tile: MicroTile) -> tirx.PrimFunc:
    """What the intrinsic computes, for Tensorize to match."""
    rows, lanes, depth, dtype = tile.rows, tile.lanes, tile.depth, tile.operand.dtype

    @T.prim_func(s_tir=True)
    def description(a: T.handle, b: T.handle, c: T.handle):
        A = T.match_buffer(a, tile.a_shape, dtype, offset_factor=1)
        B = T.match_buffer(b, (depth, lanes), dtype, offset_factor=1)
        C = T.match_buffer(c, (rows, lanes), "float32", offset_factor=1)
        with T.sblock("root"):
            T.reads(tile.reads(A, B, C))
            T.writes(C[0:rows, 0:lanes])
            for r, i, k in T.grid(rows, lanes, depth):
                with T.sblock("update"):
                    vr, vi, vk = T.axis.remap("SSR", [r, i, k])
                    words = T.meta_var((A[tile.a_index(vr, vk)], B[vk, vi]))
                    T.reads([C[vr, vi], *words])
                    T.writes(C[vr, vi])
                    if tile.fresh:
                        with T.init():
                            C[vr, vi] = T.float32(0)
                    C[vr, vi] = C[vr, vi] + tile.operand.dot(*words)

    return description


def _implementation(tile: MicroTile) -> tirx.PrimFunc:
    rows, lanes, depth, vector = tile.rows, tile.lanes, tile.depth, tile.vector
    vectors, dtype = lanes // vector, tile.operand.dtype
    part = tile.part
    unroll = tile.unroll if depth % tile.unroll == 0 else 1
    multiply_add = _fma if tile.operand.pack == 1 else _dot
    zero = tirx.Broadcast(tirx.const(0, "float32"), vector)

    def total(before, sums, first):
        return T.if_then_else(first, sums, before + sums) if tile.fresh else before + sums

    @T.prim_func(s_tir=True)
    def implementation(a: T.handle, b: T.handle, c: T.handle):
        a_row = T.int32()
        b_row = T.int32()
        c_row = T.int32()
        A = T.match_buffer(a, tile.a_shape, dtype, offset_factor=1, strides=[a_row, 1])
        B = T.match_buffer(b, (depth, lanes), dtype, offset_factor=1, strides=[b_row, 1])
        C = T.match_buffer(c, (rows, lanes), "float32", offset_factor=1, strides=[c_row, 1])
        with T.sblock("root"):
            T.reads(tile.reads(A, B, C))
            T.writes(C[0:rows, 0:lanes])
            acc = T.alloc_buffer((rows, lanes), "float32", annotations=IN_REGISTERS)
            for p in T.unroll(-(-depth // part)):
                for r in T.unroll(rows):
                    for v in T.unroll(vectors):
                        acc[r, T.ramp(v * vector, 1, vector)] = zero
                for k in T.serial(T.min(part, depth - p * part) // unroll):
                    for u in T.unroll(unroll):
                        for r in T.unroll(rows):
                            for v in T.unroll(vectors):
                                acc[r, T.ramp(v * vector, 1, vector)] = multiply_add(
                                    acc[r, T.ramp(v * vector, 1, vector)],
                                    A[tile.a_index(r, p * part + k * unroll + u)],
                                    B[p * part + k * unroll + u, T.ramp(v * vector, 1, vector)],
                                    vector,
                                )
                for r in T.unroll(rows):
                    for v in T.unroll(vectors):
                        C[r, T.ramp(v * vector, 1, vector)] = total(
                            C[r, T.ramp(v * vector, 1, vector)],
                            acc[r, T.ramp(v * vector, 1, vector)],
                            p == 0,
                        )

    return implementation


def _fma(acc, word, words, vector: int):
    return acc + tirx.Broadcast(word, vector) * words


def _dot(acc, word, words, vector: int):
    return tirx.call_extern("float32x16", "tvm_flash_dot_bf16", acc, word, words)
