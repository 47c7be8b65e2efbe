"""A square of 32-bit words transposed in registers, as a tensor intrinsic."""

from __future__ import annotations

from functools import cache

from tvm import tirx
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from .llvm_text import with_llvm


@cache
def register_transpose(size: int, dtype: str) -> str:
    """Register B[i, j] = A[j, i] of ``size`` x ``size`` words (``dtype`` float32 or int32).

    ``size``: words of a vector register, a power of two. Returns the intrinsic's name; a function
    that uses it needs ``with_transpose``.
    """
    name = f"tvm_flash_transpose_{size}_{dtype}"
    implementation = _implementation(size, dtype)
    TensorIntrin.register(name, _description(size, dtype), implementation, override=True)
    return name


def with_transpose(func: tirx.PrimFunc, size: int) -> tirx.PrimFunc:
    """``func`` with the LLVM function that the intrinsic of ``size`` calls."""
    return with_llvm(func, _llvm(size))


def _description(size: int, dtype: str) -> tirx.PrimFunc:
    @T.prim_func(s_tir=True)
    def description(a: T.handle, b: T.handle):
        A = T.match_buffer(a, (size, size), dtype, offset_factor=1)
        B = T.match_buffer(b, (size, size), dtype, offset_factor=1)
        with T.sblock("root"):
            T.reads(A[0:size, 0:size])
            T.writes(B[0:size, 0:size])
            for i, j in T.grid(size, size):
                with T.sblock("move"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    B[vi, vj] = A[vj, vi]

    return description


def _implementation(size: int, dtype: str) -> tirx.PrimFunc:
    function = _symbol(size)

    @T.prim_func(s_tir=True)
    def implementation(a: T.handle, b: T.handle):
        a_row = T.int32()
        b_row = T.int32()
        A = T.match_buffer(a, (size, size), dtype, offset_factor=1, strides=[a_row, 1])
        B = T.match_buffer(b, (size, size), dtype, offset_factor=1, strides=[b_row, 1])
        with T.sblock("root"):
            T.reads(A[0:size, 0:size])
            T.writes(B[0:size, 0:size])
            T.evaluate(
                T.call_extern(
                    "int32", function, T.address_of(A[0, 0]), a_row, T.address_of(B[0, 0]), b_row
                )
            )

    return implementation


def _symbol(size: int) -> str:
    return f"tvm_flash_transpose_{size}"


def _llvm(size: int) -> str:
    """Loads of rows, log2(size) stages of pairwise exchanges (Eklundh, 1972), stores of rows."""
    vector = f"<{size} x i32>"
    lines = []
    for row in range(size):
        lines.append(f"%o{row} = mul i32 %a_row, {row}")
        lines.append(f"%p{row} = getelementptr i32, ptr %a, i32 %o{row}")
        lines.append(f"%r0_{row} = load {vector}, ptr %p{row}, align 4")
    stages = size.bit_length() - 1
    for stage in range(stages):
        lines += [_exchange(size, stage, row) for row in range(size)]
    for row in range(size):
        lines.append(f"%s{row} = mul i32 %b_row, {row}")
        lines.append(f"%q{row} = getelementptr i32, ptr %b, i32 %s{row}")
        lines.append(f"store {vector} %r{stages}_{row}, ptr %q{row}, align 4")
    head = f"define linkonce_odr i32 @{_symbol(size)}(ptr %a, i32 %a_row, ptr %b, i32 %b_row)"
    return "\n".join([head, "alwaysinline nounwind {", *lines, "ret i32 0", "}"])


def _exchange(size: int, stage: int, row: int) -> str:
    """Row ``row`` after blocks of ``distance`` x ``distance`` off the diagonal changed places."""
    distance = size >> (stage + 1)
    low, high = row & ~distance, row | distance
    upper = row == high
    lanes = [
        (lane + distance if upper else lane)
        if not lane & distance
        else (size + lane if upper else size + lane - distance)
        for lane in range(size)
    ]
    mask = ", ".join(f"i32 {lane}" for lane in lanes)
    vector = f"<{size} x i32>"
    return (
        f"%r{stage + 1}_{row} = shufflevector {vector} %r{stage}_{low}, {vector} %r{stage}_{high}, "
        f"<{size} x i32> <{mask}>"
    )
