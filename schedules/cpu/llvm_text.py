"""LLVM IR that a function brings along."""

from __future__ import annotations

from tvm import tirx
from tvm.ir import StringImm


def with_llvm(func: tirx.PrimFunc, text: str) -> tirx.PrimFunc:
    """``func`` with the LLVM functions of ``text``, which its code may call by name."""
    zero = tirx.const(0, "int32")
    return func.with_body(tirx.AttrStmt(zero, "pragma_import_llvm", StringImm(text), func.body))
