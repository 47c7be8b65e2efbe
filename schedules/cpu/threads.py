"""The number of threads a kernel will run on, as an expression."""

from __future__ import annotations

from tvm import tirx

from .llvm_text import with_llvm

# The library's own shim (codegen/runtime/parallel.c) has the strong definition.
_ALONE = """
define weak i32 @tvm_flash_usable_threads() nounwind { ret i32 1 }
"""


def usable_threads() -> tirx.PrimExpr:
    """Threads of the parallel loop that comes next (int64); ask before it, not inside.

    A function that asks needs ``with_threads``. Outside a linked library the answer is 1.
    """
    return tirx.Cast("int64", tirx.call_extern("int32", "tvm_flash_usable_threads"))


def with_threads(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """``func`` with the definition that holds where no shim is linked."""
    return with_llvm(func, _ALONE)
