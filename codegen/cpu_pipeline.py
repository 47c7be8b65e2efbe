"""TVM's lowering of CPU functions, memory being taken where its size is known and accepted."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import s_tir, tirx
from tvm.s_tir import pipeline
from tvm.tirx import compilation_pipeline

PIPELINE = "tvm_flash_cpu"


@tvm.transform.module_pass(opt_level=0)
def _allocate_at_first_use(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """Workspaces of a whole function are taken when something is about to use them.

    TVM hoists them to its beginning. A check of arguments that fails after that returns without
    freeing them, their sizes may be what it is about, and some are counted by the function.
    """
    functions = {
        var: f.with_body(_allocations_late(f.body)) if isinstance(f, tirx.PrimFunc) else f
        for var, f in mod.functions.items()
    }
    return tvm.IRModule(functions, attrs=mod.attrs)


def _allocations_late(stmt: tirx.Stmt, waiting: Sequence[tirx.AllocBuffer] = ()) -> tirx.Stmt:
    """``stmt`` with its allocations, and those ``waiting``, before the first that uses them."""
    if isinstance(stmt, tirx.AttrStmt):
        body = _allocations_late(stmt.body, waiting)
        return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, body)
    if not isinstance(stmt, tirx.SeqStmt):
        return tirx.SeqStmt([*waiting, stmt]) if waiting else stmt
    waiting, placed = list(waiting), []
    for part in stmt.seq:
        if isinstance(part, tirx.AllocBuffer):
            waiting.append(part)
            continue
        used = [one for one in waiting if _uses(part, one)]
        waiting = [one for one in waiting if one not in used]
        placed.append(_allocations_late(part, used))
    return tirx.SeqStmt(placed)


def _uses(stmt: tirx.Stmt, allocation: tirx.AllocBuffer) -> bool:
    return any(map(allocation.buffer.same_as, tirx.analysis.undefined_vars(stmt)))


@tvm.transform.module_pass(opt_level=0)
def _lower(mod: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
    """The passes of TVM's default pipeline in its order, without those of other devices.

    CommonSubexprElim is left out: LLVM does it, and TVM's moves some out of the branch that
    computes them (LLVM then refuses the module) and takes minutes on long score functions.
    """
    passes, scheduled = tirx.transform, s_tir.transform
    return tvm.ir.transform.Sequential(
        [
            scheduled.CanonicalizeLoop(),
            scheduled.LowerInitBlock(),
            scheduled.PlanAndUpdateBufferAllocationLocation(),
            scheduled.ConvertBlocksToOpaque(),
            scheduled.CompactBufferAllocation(),
            scheduled.LowerMatchBuffer(),
            scheduled.StmtSimplify(),
            scheduled.LowerOpaqueBlock(),
            passes.FlattenBuffer(),
            passes.BF16ComputeLegalize(),
            passes.NarrowDataType(32),
            scheduled.LoopPartition(),
            passes.VectorizeLoop(True),
            passes.StorageRewrite(),
            _allocate_at_first_use,
            scheduled.HoistIfThenElse(),
            passes.UnrollLoop(),
            scheduled.RenormalizeSplitPattern(),
            passes.StmtSimplify(),
            passes.RemoveNoOp(),
            scheduled.RewriteUnsafeSelect(),
            passes.FP8ComputeLegalize(),
            passes.VerifyMemory(),
            passes.AnnotateEntryFunc(),
            passes.SplitHostDevice(),
            passes.MakePackedAPI(),
            passes.FP8StorageLegalize(),
            passes.BF16StorageLegalize(),
        ]
    )(mod)


def _pipeline():
    _, finalize_host, finalize_device = pipeline.default_s_tir_pipeline()
    return _lower, finalize_host, finalize_device


compilation_pipeline.register_tir_pipeline(PIPELINE, _pipeline)
