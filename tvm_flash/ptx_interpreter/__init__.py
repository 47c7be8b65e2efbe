"""Executes PTX text on the CPU and checks it, to prove CUDA kernels without a GPU.

    memory = DeviceMemory()
    x, out = memory.array("x", x_host), memory.empty("out", (128,), "float32")
    kernel = parse(ptx_text).kernels["scale"]
    report = launch(kernel, grid=4, block=32, args=[x, out, 2.0], memory=memory)
    out.expect_written()
    out.numpy()

Semantics are those of the PTX ISA 9.0 manual, for sm_80 to sm_90a. Asynchronous copies and wgmma
land as late as their waits allow. Approximate functions are exact here, clusters have one block,
time stands still, and ptxas is not modelled. Needs numpy only."""

from . import (
    arithmetic,
    atomics,
    barriers,
    bits,
    control,
    convert,
    functions,
    matrix,
    mbarrier,
    moves,
    setmaxnreg,
    tma,
    warp,
    wgmma,
)  # fmt: skip
from .checks import Checks
from .counts import Report
from .errors import (
    AsyncHazard,
    Deadlock,
    GlobalRace,
    InterpreterError,
    LaunchError,
    Misaligned,
    OutOfBounds,
    SharedRace,
    Uninitialised,
    UnsupportedInstruction,
)
from .execute import launch
from .kernel import Kernel, Module
from .memory import Buffer, DeviceMemory
from .parse import parse
from .tensor_map import TensorMap

INSTRUCTION_MODULES = (
    arithmetic, atomics, barriers, bits, control, convert, functions, matrix, mbarrier, moves,
    setmaxnreg, tma, warp, wgmma,
)  # fmt: skip

__all__ = [
    "AsyncHazard",
    "Buffer",
    "Checks",
    "Deadlock",
    "DeviceMemory",
    "GlobalRace",
    "InterpreterError",
    "Kernel",
    "LaunchError",
    "Misaligned",
    "Module",
    "OutOfBounds",
    "Report",
    "SharedRace",
    "TensorMap",
    "Uninitialised",
    "UnsupportedInstruction",
    "launch",
    "parse",
]
