"""Parallel loops tell the runtime how many iterations they have (runtime/parallel.c)."""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

_COUNT = "tvm_flash_iterations"


def with_iteration_counts(mod: tvm.IRModule) -> tvm.IRModule:
    """``mod`` with a call of the runtime before each parallel loop at the top of its functions.

    TVM launches a parallel loop without saying how long it is. A loop of one iteration would start
    a team of threads of which one has work.
    """
    counted = {var: f.with_body(_announced(f.body)) for var, f in mod.functions.items()}
    return tvm.IRModule(counted, attrs=mod.attrs)


def _announced(stmt: tirx.Stmt) -> tirx.Stmt:
    if isinstance(stmt, tirx.SeqStmt):
        return tirx.SeqStmt([_announced(part) for part in stmt.seq])
    if isinstance(stmt, tirx.AttrStmt):
        return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, _announced(stmt.body))
    if isinstance(stmt, s_tir.SBlockRealize):
        block = _with_body(stmt.block, _announced(stmt.block.body))
        return s_tir.SBlockRealize(stmt.iter_values, stmt.predicate, block)
    if isinstance(stmt, tirx.For) and stmt.kind == tirx.ForKind.PARALLEL:
        count = tirx.Cast("int64", stmt.extent)
        return tirx.SeqStmt([tirx.Evaluate(tirx.call_extern("int32", _COUNT, count)), stmt])
    return stmt


def _with_body(block: s_tir.SBlock, body: tirx.Stmt) -> s_tir.SBlock:
    return s_tir.SBlock(
        block.iter_vars, block.reads, block.writes, block.name_hint, body, block.init,
        block.alloc_buffers, block.match_buffers, block.annotations,
    )  # fmt: skip
