"""Small functions in TensorIR that show how a kernel is launched, not what attention is."""

from __future__ import annotations

import tvm
from tvm.script import tirx as T

COLUMNS = 64


@T.prim_func(s_tir=True)
def reverse_scaled(A: T.handle, B: T.handle, scale: T.float32):
    """B[i, j] = A[i, 63 - j] * scale, through a workspace of the parallel body."""
    n = T.int64()
    a = T.match_buffer(A, (n, 64), "float32")
    b = T.match_buffer(B, (n, 64), "float32")
    for i in T.parallel(n):
        with T.sblock("row"):
            row = T.axis.spatial(n, i)
            T.reads(a[row, 0:64])
            T.writes(b[row, 0:64])
            scaled = T.sblock_alloc_buffer((64,), "float32")
            for j in T.serial(64):
                scaled[j] = a[row, j] * scale
            for j in T.serial(64):
                b[row, j] = scaled[63 - j]


@T.prim_func(s_tir=True)
def thread_ids(A: T.handle):
    """A[i] = the operating system's number of the thread that ran iteration i, slowly."""
    n = T.int64()
    a = T.match_buffer(A, (n,), "int32")
    for i in T.parallel(n):
        with T.sblock("row"):
            row = T.axis.spatial(n, i)
            T.reads()
            T.writes(a[row])
            T.evaluate(T.call_extern("int32", "usleep", 300))
            a[row] = T.call_extern("int32", "gettid")


@T.prim_func(s_tir=True)
def ask_for_memory(A: T.handle, count: T.int64):
    """A[i] = i, with a workspace of ``count`` float32 in each iteration."""
    n = T.int64()
    a = T.match_buffer(A, (n,), "float32")
    for i in T.parallel(n):
        with T.sblock("row"):
            row = T.axis.spatial(n, i)
            T.reads()
            T.writes(a[row])
            scratch = T.sblock_alloc_buffer((count,), "float32")
            for j in T.serial(count):
                scratch[j] = T.cast(row, "float32")
            a[row] = T.float32(0)
            for j in T.serial(count):
                a[row] = T.max(a[row], scratch[j])


@T.prim_func(s_tir=True)
def on_gpu_threads(A: T.handle):
    """A[i] = 1 by the threads of a GPU block, which no CPU target can compile."""
    a = T.match_buffer(A, (8,), "float32")
    for i in T.thread_binding(8, thread="threadIdx.x"):
        with T.sblock("row"):
            row = T.axis.spatial(8, i)
            a[row] = T.float32(1)


def module(func, symbol: str) -> tvm.IRModule:
    """``func`` alone in a module, exported as ``symbol``."""
    return tvm.IRModule({symbol: func.with_attr("global_symbol", symbol)})
