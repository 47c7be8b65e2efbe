"""Small CUDA programs that show how kernels are compiled and launched, not what attention is."""

from __future__ import annotations

from tvm.script import tirx as T

from tvm_flash.artifact.library import symbol_name
from tvm_flash.codegen.cuda_build import CudaJob
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.program import CudaProgram, Launch

D = 64
PARAMETERS = ("q", "k", "v", "out", "lse", "softmax_scale")
RESULTS = ("out", "lse")

# A spec stands in as the name of the toy.
TOY = AttentionSpec(dtype="float16", head_dim=D)


def scale_rows(name: str, threads: int):
    """out[b, s, h, :] = q[b, s, h, :] * softmax_scale."""

    @T.prim_func
    def func(qh: T.handle, oh: T.handle, softmax_scale: T.float32):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        B, Sq, H = T.int64(), T.int64(), T.int64()
        q0, q1, q2 = T.int64(), T.int64(), T.int64()
        o0, o1, o2 = T.int64(), T.int64(), T.int64()
        q = T.match_buffer(
            qh,
            (B, Sq, H, D),
            "float16",
            strides=(q0, q1, q2, 1),
            layout=T.TileLayout(T.S[(B, Sq, H, D) : (q0, q1, q2, 1)]),
        )
        out = T.match_buffer(
            oh,
            (B, Sq, H, D),
            "float16",
            strides=(o0, o1, o2, 1),
            layout=T.TileLayout(T.S[(B, Sq, H, D) : (o0, o1, o2, 1)]),
        )
        T.device_entry()
        bx, by, bz = T.cta_id([T.cast(Sq, "int32"), T.cast(H, "int32"), T.cast(B, "int32")])
        tx = T.thread_id([threads])
        for i in T.unroll(D // threads):
            out[bz, bx, by, i * threads + tx] = T.cast(
                T.cast(q[bz, bx, by, i * threads + tx], "float32") * softmax_scale, "float16"
            )

    return func


def first_of_rows(name: str):
    """lse[b, h, s] = out[b, s, h, 0]: right only after ``scale_rows``."""

    @T.prim_func
    def func(oh: T.handle, lh: T.handle):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        B, Sq, H = T.int64(), T.int64(), T.int64()
        o0, o1, o2 = T.int64(), T.int64(), T.int64()
        out = T.match_buffer(
            oh,
            (B, Sq, H, D),
            "float16",
            strides=(o0, o1, o2, 1),
            layout=T.TileLayout(T.S[(B, Sq, H, D) : (o0, o1, o2, 1)]),
        )
        lse = T.match_buffer(lh, (B, H, Sq), "float32")
        T.device_entry()
        bx, by, bz = T.cta_id([T.cast(Sq, "int32"), T.cast(H, "int32"), T.cast(B, "int32")])
        tx = T.thread_id([32])
        if tx == 0:
            lse[bz, by, bx] = T.cast(out[bz, bx, by, 0], "float32")

    return func


def spill(name: str):
    """``scale_rows`` that keeps 96 values alive in a kernel which may have 32 registers."""

    @T.prim_func
    def func(qh: T.handle, oh: T.handle, softmax_scale: T.float32):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        B, Sq, H = T.int64(), T.int64(), T.int64()
        q = T.match_buffer(qh, (B, Sq, H, D), "float16")
        out = T.match_buffer(oh, (B, Sq, H, D), "float16")
        T.device_entry()
        T.attr({"tirx.launch_bounds_min_blocks_per_sm": 2})
        bx, by, bz = T.cta_id([T.cast(Sq, "int32"), T.cast(H, "int32"), T.cast(B, "int32")])
        tx = T.thread_id([1024])
        held = T.alloc_local((96,), "float32")
        for i in T.unroll(96):
            held[i] = T.cast(q[bz, bx, by, (tx + i) % D], "float32")
        T.cuda.cta_sync()
        for i in T.unroll(96):
            held[95 - i] = held[95 - i] * held[i] + softmax_scale
        T.cuda.cta_sync()
        for i in T.unroll(96):
            out[bz, bx, by, (tx + i) % D] = T.cast(held[i], "float16")

    return func


def rows(sizes):
    """The grid of all toys."""
    return sizes["Sq"], sizes["H"], sizes["B"]


def program(symbol: str, variant: str, threads: int) -> CudaProgram:
    """Two launches, the second of which reads what the first wrote."""
    first = scale_rows(f"{symbol}_{variant}_scale", threads)
    second = first_of_rows(f"{symbol}_{variant}_first")
    launches = (
        Launch(first, ("q", "out", "softmax_scale"), rows, threads, 0),
        Launch(second, ("out", "lse"), rows, 32, 0),
    )
    numbers = {"threads": threads}, {"block_q": 1}
    return CudaProgram(symbol, PARAMETERS, launches, *numbers, written=RESULTS)


def spilling_program(symbol: str) -> CudaProgram:
    """One launch that cannot keep its values in registers."""
    launch = Launch(spill(f"{symbol}_spill"), ("q", "out", "softmax_scale"), rows, 1024, 0)
    return CudaProgram(symbol, PARAMETERS, (launch,), {}, {"block_q": 1}, written=RESULTS)


def toy_job() -> CudaJob:
    """The toy for sm_80 and, as another variant, sm_90."""
    symbol = symbol_name(TOY, "forward")

    def programs(archs, choice):
        variants = {"sm_80": ("a", 64), "sm_90": ("b", 32)}
        return [((arch,), program(symbol, *variants[arch.name])) for arch in archs]

    return CudaJob(symbol, TOY, "forward", (ARCHS["sm_80"], ARCHS["sm_90"]), programs)


def spilling_job(better: bool = False) -> CudaJob:
    """A job that the spill gate refuses; ``better``: it has a second choice that does not spill."""
    symbol = symbol_name(TOY, "forward")

    def programs(archs, choice):
        spills = choice == 0 or not better
        return [(archs, spilling_program(symbol) if spills else program(symbol, "a", 64))]

    return CudaJob(symbol, TOY, "forward", (ARCHS["sm_80"],), programs)
