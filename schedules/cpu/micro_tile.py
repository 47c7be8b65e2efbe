"""Register-blocked micro-kernels as tensor intrinsics: C[rows, lanes] += A (broadcast) x B (vectors)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tvm import tirx
from tvm.ir import StringImm
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

# Without it LLVM sees a heap workspace instead of a stack array it can keep in registers.
IN_REGISTERS = {"disable_lower_builtin": True}

# acc + the dot products of one broadcast pair of bf16 with 16 pairs (VDPBF16PS). TVM legalises
# every bf16 vector away before code generation, so the instruction enters as LLVM IR.
DOT_BF16 = r"""
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)
define linkonce_odr <16 x float> @tvm_flash_dot_bf16(<16 x float> %acc, ptr %pair, ptr %pairs)
    alwaysinline nounwind {
  %word = load i32, ptr %pair, align 2
  %first = insertelement <16 x i32> poison, i32 %word, i64 0
  %words = shufflevector <16 x i32> %first, <16 x i32> poison, <16 x i32> zeroinitializer
  %a = bitcast <16 x i32> %words to <32 x bfloat>
  %b = load <32 x bfloat>, ptr %pairs, align 2
  %sum = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(
      <16 x float> %acc, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %sum
}
"""


@dataclass(frozen=True)
class MicroTile:
    """One micro-kernel: C[r, l] += sum_k sum_e A[r, k, e] * B[k, l, e], or A[k, r, e] transposed.

    ``rows * lanes / vector`` accumulators live in registers over the whole depth: choose rows and
    lanes so that these and one row of B fit the register file. A scalar (or pair) of A is broadcast
    from memory, so A needs no packing; B's lanes are contiguous. ``pack`` 1 is float32 FMA, 2 is
    the bf16 pair dot product with float32 accumulation.
    """

    rows: int
    lanes: int
    depth: int
    vector: int
    transposed: bool = False
    pack: int = 1

    @property
    def name(self) -> str:
        kind = "fma" if self.pack == 1 else "dot"
        suffix = "_t" if self.transposed else ""
        return f"tvm_flash_{kind}_{self.rows}x{self.lanes}x{self.depth}_v{self.vector}{suffix}"

    @property
    def operand(self) -> str:
        return "float32" if self.pack == 1 else "bfloat16"

    @property
    def a_shape(self) -> tuple[int, int, int]:
        edges = (self.depth, self.rows) if self.transposed else (self.rows, self.depth)
        return (*edges, self.pack)

    def a_index(self, r, k) -> tuple:
        return (k, r) if self.transposed else (r, k)


@lru_cache(maxsize=None)
def register(tile: MicroTile) -> str:
    """Register the tensor intrinsic of ``tile`` and return its name."""
    TensorIntrin.register(tile.name, _description(tile), _implementation(tile), override=True)
    return tile.name


def with_bf16_dot(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """``func`` with the LLVM function that ``pack`` 2 tiles call."""
    zero = tirx.const(0, "int32")
    return func.with_body(
        tirx.AttrStmt(zero, "pragma_import_llvm", StringImm(DOT_BF16), func.body)
    )


def _description(tile: MicroTile) -> tirx.PrimFunc:
    rows, lanes, depth, pack = tile.rows, tile.lanes, tile.depth, tile.pack

    @T.prim_func(s_tir=True)
    def description(a: T.handle, b: T.handle, c: T.handle):
        A = T.match_buffer(a, tile.a_shape, tile.operand, offset_factor=1)
        B = T.match_buffer(b, (depth, lanes, pack), tile.operand, offset_factor=1)
        C = T.match_buffer(c, (rows, lanes), "float32", offset_factor=1)
        with T.sblock("root"):
            T.reads(C[0:rows, 0:lanes], A[0 : tile.a_shape[0], 0 : tile.a_shape[1], 0:pack], B[0:depth, 0:lanes, 0:pack])
            T.writes(C[0:rows, 0:lanes])
            if pack == 1:
                for r, i, k in T.grid(rows, lanes, depth):
                    with T.sblock("update"):
                        vr, vi, vk = T.axis.remap("SSR", [r, i, k])
                        if tile.transposed:
                            C[vr, vi] = C[vr, vi] + A[vk, vr, 0] * B[vk, vi, 0]
                        else:
                            C[vr, vi] = C[vr, vi] + A[vr, vk, 0] * B[vk, vi, 0]
            else:
                for r, i, k, e in T.grid(rows, lanes, depth, pack):
                    with T.sblock("update"):
                        vr, vi, vk, ve = T.axis.remap("SSRR", [r, i, k, e])
                        if tile.transposed:
                            C[vr, vi] = C[vr, vi] + T.Cast("float32", A[vk, vr, ve]) * T.Cast("float32", B[vk, vi, ve])
                        else:
                            C[vr, vi] = C[vr, vi] + T.Cast("float32", A[vr, vk, ve]) * T.Cast("float32", B[vk, vi, ve])

    return description


def _implementation(tile: MicroTile) -> tirx.PrimFunc:
    rows, lanes, depth, pack, vector = tile.rows, tile.lanes, tile.depth, tile.pack, tile.vector
    vectors = lanes // vector

    def fma(acc, A, B, r, k, lane):
        return acc + A[(*tile.a_index(r, k), 0)] * B[k, lane, 0]

    def dot(acc, A, B, r, k, lane):
        pair, pairs = T.address_of(A[(*tile.a_index(r, k), 0)]), T.address_of(B[k, lane, 0])
        return T.call_pure_extern("float32x16", "tvm_flash_dot_bf16", acc, pair, pairs)

    @T.prim_func(s_tir=True)
    def implementation(a: T.handle, b: T.handle, c: T.handle):
        a_row = T.int32()
        b_row = T.int32()
        c_row = T.int32()
        A = T.match_buffer(a, tile.a_shape, tile.operand, offset_factor=1, strides=[a_row, pack, 1])
        B = T.match_buffer(b, (depth, lanes, pack), tile.operand, offset_factor=1, strides=[b_row, pack, 1])
        C = T.match_buffer(c, (rows, lanes), "float32", offset_factor=1, strides=[c_row, 1])
        with T.sblock("root"):
            T.reads(C[0:rows, 0:lanes], A[0 : tile.a_shape[0], 0 : tile.a_shape[1], 0:pack], B[0:depth, 0:lanes, 0:pack])
            T.writes(C[0:rows, 0:lanes])
            acc = T.alloc_buffer((rows, lanes), "float32", annotations=IN_REGISTERS)
            for r in T.unroll(rows):
                for v in T.unroll(vectors):
                    acc[r, T.ramp(v * vector, 1, vector)] = C[r, T.ramp(v * vector, 1, vector)]
            for k in T.serial(depth):
                for r in T.unroll(rows):
                    for v in T.unroll(vectors):
                        if pack == 1:
                            for x in T.vectorized(vector):
                                acc[r, v * vector + x] = fma(acc[r, v * vector + x], A, B, r, k, v * vector + x)
                        else:
                            acc[r, T.ramp(v * vector, 1, vector)] = dot(
                                acc[r, T.ramp(v * vector, 1, vector)], A, B, r, k, v * vector
                            )
            for r in T.unroll(rows):
                for v in T.unroll(vectors):
                    C[r, T.ramp(v * vector, 1, vector)] = acc[r, T.ramp(v * vector, 1, vector)]

    return implementation
