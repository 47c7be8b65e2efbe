"""TVM's lowering of CPU functions; what argument checks may not leave behind comes after them."""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.s_tir import pipeline
from tvm.tirx import compilation_pipeline

PIPELINE = "tvm_flash_cpu"


@tvm.transform.module_pass(opt_level=0)
def _allocate_after_checks(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Workspaces of a whole function are taken when its arguments have been accepted.

    TVM hoists them to its beginning; a check that fails after that returns without freeing them,
    and their sizes may be what the check is about.
    """
    functions = {
        var: f.with_body(_allocations_last(f.body)) if isinstance(f, tirx.PrimFunc) else f
        for var, f in mod.functions.items()
    }
    return tvm.IRModule(functions, attrs=mod.attrs)


def _allocations_last(stmt: tirx.Stmt) -> tirx.Stmt:
    """Allocations move behind the last check that stands in the same sequence."""
    if isinstance(stmt, tirx.AttrStmt):
        return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, _allocations_last(stmt.body))
    if not isinstance(stmt, tirx.SeqStmt):
        return stmt
    parts = [_allocations_last(part) for part in stmt.seq]
    checks = [place for place, part in enumerate(parts) if isinstance(part, tirx.AssertStmt)]
    if not checks:
        return tirx.SeqStmt(parts)
    head, rest = parts[: checks[-1] + 1], parts[checks[-1] + 1 :]
    allocations = [part for part in head if isinstance(part, tirx.AllocBuffer)]
    return tirx.SeqStmt([p for p in head if p not in allocations] + allocations + rest)


def _pipeline():
    lower, finalize_host, finalize_device = pipeline.default_s_tir_pipeline()

    def finalize() -> tvm.transform.Pass:
        return tvm.ir.transform.Sequential([_allocate_after_checks, finalize_host()])

    return lower, finalize, finalize_device


compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)
