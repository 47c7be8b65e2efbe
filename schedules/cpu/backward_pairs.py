"""Vectors of float32 rounded to pairs of bf16, as tensor intrinsics over LLVM functions."""

from __future__ import annotations

from functools import cache

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from .forms.tiles import Bf16PairOperand
from .llvm_text import with_llvm

# Words of a vector of bf16 pairs.
WORDS = 16
VECTOR = f"int32x{WORDS}"
LANES, NEXT = tirx.Ramp(0, 1, WORDS), tirx.Ramp(WORDS, 1, WORDS)

# Two vectors of float32, rounded to nearest even, as one vector of bf16 pairs. ``rows``: lane i of
# both makes word i. ``keys``: neighbours make words, the second vector follows the first. The
# truncation becomes VCVTNEPS2BF16; a target without it would need a library function.
PAIRS = """
define linkonce_odr <16 x i32> @tvm_flash_pair_rows(
    <16 x float> %low, <16 x float> %high) alwaysinline nounwind {
  %both = shufflevector <16 x float> %low, <16 x float> %high, <32 x i32> <ROWS>
  %rounded = fptrunc <32 x float> %both to <32 x bfloat>
  %words = bitcast <32 x bfloat> %rounded to <16 x i32>
  ret <16 x i32> %words
}
define linkonce_odr <16 x i32> @tvm_flash_pair_keys(
    <16 x float> %low, <16 x float> %high) alwaysinline nounwind {
  %both = shufflevector <16 x float> %low, <16 x float> %high, <32 x i32> <KEYS>
  %rounded = fptrunc <32 x float> %both to <32 x bfloat>
  %words = bitcast <32 x bfloat> %rounded to <16 x i32>
  ret <16 x i32> %words
}
""".replace("<ROWS>", f"<{', '.join(f'i32 {i % 2 * 16 + i // 2}' for i in range(32))}>").replace(
    "<KEYS>", f"<{', '.join(f'i32 {i}' for i in range(32))}>"
)


def with_pairs(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """``func`` with the LLVM functions that the intrinsics call."""
    return with_llvm(func, PAIRS)


@cache
def register_pairs(kind: str) -> str:
    """The intrinsic of one vector of pairs: ``rows`` or ``keys``, see ``PAIRS``."""
    name = f"tvm_flash_pair_{kind}"
    TensorIntrin.register(name, *(_pair_rows() if kind == "rows" else _pair_keys()), override=True)
    return name


def _pair_rows() -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    encode = Bf16PairOperand().encode

    @T.prim_func(s_tir=True)
    def description(a: T.handle, b: T.handle):
        A = T.match_buffer(a, (2, WORDS), "float32", offset_factor=1)
        B = T.match_buffer(b, (1, WORDS), "int32", offset_factor=1)
        with T.sblock("root"):
            T.reads(A[0:2, 0:WORDS])
            T.writes(B[0, 0:WORDS])
            for i in T.serial(WORDS):
                with T.sblock("pair"):
                    vi = T.axis.spatial(WORDS, i)
                    B[0, vi] = encode(A[0, vi], A[1, vi])

    @T.prim_func(s_tir=True)
    def implementation(a: T.handle, b: T.handle):
        a_row = T.int32()
        A = T.match_buffer(a, (2, WORDS), "float32", offset_factor=1, strides=[a_row, 1])
        B = T.match_buffer(b, (1, WORDS), "int32", offset_factor=1)
        with T.sblock("root"):
            T.reads(A[0:2, 0:WORDS])
            T.writes(B[0, 0:WORDS])
            B[0, LANES] = T.call_extern(VECTOR, "tvm_flash_pair_rows", A[0, LANES], A[1, LANES])

    return description, implementation


def _pair_keys() -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    encode = Bf16PairOperand().encode

    @T.prim_func(s_tir=True)
    def description(a: T.handle, b: T.handle):
        A = T.match_buffer(a, (1, 2 * WORDS), "float32", offset_factor=1)
        B = T.match_buffer(b, (1, WORDS), "int32", offset_factor=1)
        with T.sblock("root"):
            T.reads(A[0, 0 : 2 * WORDS])
            T.writes(B[0, 0:WORDS])
            for i in T.serial(WORDS):
                with T.sblock("pair"):
                    vi = T.axis.spatial(WORDS, i)
                    B[0, vi] = encode(A[0, vi * 2], A[0, vi * 2 + 1])

    @T.prim_func(s_tir=True)
    def implementation(a: T.handle, b: T.handle):
        A = T.match_buffer(a, (1, 2 * WORDS), "float32", offset_factor=1)
        B = T.match_buffer(b, (1, WORDS), "int32", offset_factor=1)
        with T.sblock("root"):
            T.reads(A[0, 0 : 2 * WORDS])
            T.writes(B[0, 0:WORDS])
            B[0, LANES] = T.call_extern(VECTOR, "tvm_flash_pair_keys", A[0, LANES], A[0, NEXT])

    return description, implementation
