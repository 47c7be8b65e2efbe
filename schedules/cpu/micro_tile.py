"""Register-blocked micro-kernels as tensor intrinsics: C[rows, lanes] += A x B, A broadcast."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from tvm import tirx
from tvm.ir import StringImm
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from ...definition.tiles import FLOAT32, Bf16PairOperand, Float32Operand

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
    """One micro-kernel: C[r, l] += sum_k A[r, k] . B[k, l], or A[k, r] . B[k, l] when transposed.

    ``rows * lanes / vector`` accumulators live in registers over the whole depth: choose rows and
    lanes so that these and one row of B fit the register file. A word of A is broadcast from
    memory, so A needs no packing; B's lanes are contiguous. The operand says what a word is:
    float32 (FMA) or a pair of bf16 (dot product, float32 accumulation; depth counts words).
    """

    rows: int
    lanes: int
    depth: int
    vector: int
    transposed: bool = False
    operand: Float32Operand | Bf16PairOperand = FLOAT32

    @property
    def name(self) -> str:
        kind = "fma" if self.operand.pack == 1 else "dot"
        suffix = "_t" if self.transposed else ""
        return f"tvm_flash_{kind}_{self.rows}x{self.lanes}x{self.depth}_v{self.vector}{suffix}"

    @property
    def a_shape(self) -> tuple[int, int]:
        return (self.depth, self.rows) if self.transposed else (self.rows, self.depth)

    def a_word(self, a, r, k):
        """Word of A that row ``r`` multiplies at depth ``k``."""
        return a[k, r] if self.transposed else a[r, k]


@cache
def register(tile: MicroTile) -> str:
    """Register the tensor intrinsic of ``tile`` and return its name."""
    TensorIntrin.register(tile.name, description(tile), _implementation(tile), override=True)
    return tile.name


def with_bf16_dot(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """``func`` with the LLVM function that ``pack`` 2 tiles call."""
    zero = tirx.const(0, "int32")
    return func.with_body(tirx.AttrStmt(zero, "pragma_import_llvm", StringImm(DOT_BF16), func.body))


def description(tile: MicroTile) -> tirx.PrimFunc:
    """What the intrinsic computes, for Tensorize to match."""
    rows, lanes, depth, dtype = tile.rows, tile.lanes, tile.depth, tile.operand.dtype

    @T.prim_func(s_tir=True)
    def description(a: T.handle, b: T.handle, c: T.handle):
        A = T.match_buffer(a, tile.a_shape, dtype, offset_factor=1)
        B = T.match_buffer(b, (depth, lanes), dtype, offset_factor=1)
        C = T.match_buffer(c, (rows, lanes), "float32", offset_factor=1)
        with T.sblock("root"):
            T.reads(
                C[0:rows, 0:lanes], A[0 : tile.a_shape[0], 0 : tile.a_shape[1]], B[0:depth, 0:lanes]
            )
            T.writes(C[0:rows, 0:lanes])
            for r, i, k in T.grid(rows, lanes, depth):
                with T.sblock("update"):
                    vr, vi, vk = T.axis.remap("SSR", [r, i, k])
                    C[vr, vi] = C[vr, vi] + tile.operand.dot(tile.a_word(A, vr, vk), B[vk, vi])

    return description


def _implementation(tile: MicroTile) -> tirx.PrimFunc:
    rows, lanes, depth, vector = tile.rows, tile.lanes, tile.depth, tile.vector
    vectors, dtype = lanes // vector, tile.operand.dtype
    multiply_add = _fma if tile.operand.pack == 1 else _dot

    @T.prim_func(s_tir=True)
    def implementation(a: T.handle, b: T.handle, c: T.handle):
        a_row = T.int32()
        b_row = T.int32()
        c_row = T.int32()
        A = T.match_buffer(a, tile.a_shape, dtype, offset_factor=1, strides=[a_row, 1])
        B = T.match_buffer(b, (depth, lanes), dtype, offset_factor=1, strides=[b_row, 1])
        C = T.match_buffer(c, (rows, lanes), "float32", offset_factor=1, strides=[c_row, 1])
        with T.sblock("root"):
            T.reads(
                C[0:rows, 0:lanes], A[0 : tile.a_shape[0], 0 : tile.a_shape[1]], B[0:depth, 0:lanes]
            )
            T.writes(C[0:rows, 0:lanes])
            acc = T.alloc_buffer((rows, lanes), "float32", annotations=IN_REGISTERS)
            for r in T.unroll(rows):
                for v in T.unroll(vectors):
                    acc[r, T.ramp(v * vector, 1, vector)] = C[r, T.ramp(v * vector, 1, vector)]
            for k in T.serial(depth):
                for r in T.unroll(rows):
                    for v in T.unroll(vectors):
                        acc[r, T.ramp(v * vector, 1, vector)] = multiply_add(
                            acc[r, T.ramp(v * vector, 1, vector)],
                            tile.a_word(A, r, k),
                            B[k, T.ramp(v * vector, 1, vector)],
                            vector,
                        )
            for r in T.unroll(rows):
                for v in T.unroll(vectors):
                    C[r, T.ramp(v * vector, 1, vector)] = acc[r, T.ramp(v * vector, 1, vector)]

    return implementation


def _fma(acc, word, words, vector: int):
    return acc + tirx.Broadcast(word, vector) * words


def _dot(acc, word, words, vector: int):
    return tirx.call_extern("float32x16", "tvm_flash_dot_bf16", acc, word, words)
