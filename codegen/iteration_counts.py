"""Parallel loops tell the runtime how long they are and what all is to do (runtime/parallel.c)."""

from __future__ import annotations

from functools import reduce
from operator import mul

import tvm
from tvm import s_tir, tirx

_COUNT = "tvm_flash_iterations"

# The count of a function that is no attention: more than any threshold.
_UNKNOWN = 2**62

# An element of a row that goes into a page takes as long as so many multiplications.
_MOVED = 4

# An element of a softmax, read twice and with an exponential each time, likewise.
_EXPONENTIAL = 16

# Products of 16-bit numbers take so many times as long where the CPU has none of its own for them.
_SLOWER = 4


def with_iteration_counts(mod: tvm.IRModule, tile: tuple[int, int]) -> tvm.IRModule:
    """``mod`` with a call of the runtime before each parallel loop at the top of its functions.

    TVM launches a parallel loop without saying how long it is. A loop of one iteration would start
    a team of threads of which one has work, and a small problem is done before a team has woken up.
    tile: queries and keys that are computed together, even where few of them exist.
    """
    counted = {
        var: f.with_body(_announced(f.body, _work(f, tile))) for var, f in mod.functions.items()
    }
    return tvm.IRModule(counted, attrs=mod.attrs)


def _work(func: tirx.PrimFunc, tile: tuple[int, int]) -> tirx.Expr:
    """Multiplications of all products, were every key visible, or what takes as long (int64)."""
    names = [param.name for param in func.params]
    if names[:2] == ["k_new", "v_new"]:
        elements = [reduce(mul, param.shape) for param in func.params[:2]]
        return (elements[0] + elements[1]) * _MOVED
    if names[:2] == ["x", "shares"]:
        return reduce(mul, func.params[0].shape) * _EXPONENTIAL
    if names[:3] != ["Q", "K", "V"]:
        return tirx.const(_UNKNOWN, "int64")
    queries, _, values = func.params[:3]
    *entries, heads, head_dim = queries.shape
    depth = int(head_dim) + int(values.shape[-1])
    if "state_out" in names:  # four products of a row with a chunk, or with the state
        rows = entries[0] * (entries[1] + values.shape[1])
        return rows * heads * (tile[1] * depth + 2 * int(head_dim) * int(values.shape[-1]))
    depth = depth * 5 // 2 if "dO" in names else depth  # five products, not two
    if queries.dtype != "float32":
        depth *= _SLOWER
    if "starts_q" in names:  # each entry has a tile at least
        count = func.params[names.index("starts_q")].shape[0]
        longest = tirx.Cast("int64", func.params[names.index("max_seqlen_k")])
        rows = tirx.max(_padded(entries[0], tile[0]), count * tile[0])
        columns = _padded(longest, tile[1])
        return heads * rows * columns * depth
    batch, seqlen_q = entries
    rows, columns = _padded(seqlen_q, tile[0]), _padded(values.shape[1], tile[1])
    return batch * heads * rows * columns * depth


def _padded(length: tirx.Expr, block: int) -> tirx.Expr:
    return tirx.truncdiv(length + (block - 1), block) * block


def _announced(stmt: tirx.Stmt, work: tirx.Expr) -> tirx.Stmt:
    if isinstance(stmt, tirx.SeqStmt):
        return tirx.SeqStmt([_announced(part, work) for part in stmt.seq])
    if isinstance(stmt, tirx.AttrStmt):
        return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, _announced(stmt.body, work))
    if isinstance(stmt, s_tir.SBlockRealize):
        block = _with_body(stmt.block, _announced(stmt.block.body, work))
        return s_tir.SBlockRealize(stmt.iter_values, stmt.predicate, block)
    if isinstance(stmt, tirx.For) and stmt.kind == tirx.ForKind.PARALLEL:
        count = tirx.Cast("int64", stmt.extent)
        return tirx.SeqStmt([tirx.Evaluate(tirx.call_extern("int32", _COUNT, count, work)), stmt])
    return stmt


def _with_body(block: s_tir.SBlock, body: tirx.Stmt) -> s_tir.SBlock:
    return s_tir.SBlock(
        block.iter_vars, block.reads, block.writes, block.name_hint, body, block.init,
        block.alloc_buffers, block.match_buffers, block.annotations,
    )  # fmt: skip
