"""Executes PTX text on the CPU and checks it, to prove CUDA kernels without a GPU."""

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
