"""The score pipeline as one TIR expression: scale, softcap, ALiBi, score_mod, then the masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from tvm import tirx

from .. import variants
from ..program import MASK_SYMBOLS, SCORE_SYMBOLS, ScoreProgram
from ..score_mod import trace_mask_mod, trace_score_mod
from ..spec import AttentionSpec
from .derivative import Expr, differentiate, rewrite_calls


@dataclass(frozen=True)
class Site:
    """Where a score stands: indices and lengths int32, softmax_scale float32, captured tables."""

    b: Expr
    h: Expr
    q_idx: Expr
    k_idx: Expr
    seqlen_q: Expr
    seqlen_k: Expr
    softmax_scale: Expr
    tables: tuple[tirx.Buffer, ...] = ()

    def aligned(self, spec: AttentionSpec) -> Expr:
        """The row that causal, window and ALiBi see."""
        return self.q_idx + variants.alignment_offset(spec.alignment, self.seqlen_q, self.seqlen_k)


def score_expr(spec: AttentionSpec, raw: Expr, site: Site) -> Expr:
    """Score of the dot product ``raw`` in natural units, before any mask; float32."""
    score = raw * site.softmax_scale
    row, tables = site.aligned(spec), list(site.tables)
    if spec.softcap:
        score = lower(_softcap(spec.softcap), (score, site.b, site.h, row, site.k_idx), ())
    if spec.alibi:
        slopes = tables.pop(0)
        score = lower(_alibi(), (score, site.b, site.h, row, site.k_idx), (slopes,))
    if spec.score_mod:
        symbols = (score, site.b, site.h, site.q_idx, site.k_idx)
        score = lower(spec.score_mod, symbols, tables)
    return score


def mask_expr(spec: AttentionSpec, site: Site) -> Expr | None:
    """Whether the query sees the key (bool), or None when nothing hides any."""
    masks = []
    if spec.window_size != (-1, -1):
        row = site.aligned(spec)
        masks.append(lower(_window(*spec.window_size), (site.b, site.h, row, site.k_idx), ()))
    if spec.mask_mod:
        own = site.tables[len(spec.table_types) - len(spec.mask_mod.tables) :]
        symbols = (site.b, site.h, site.q_idx, site.k_idx)
        masks.append(lower(spec.mask_mod, symbols, own))
    if not masks:
        return None
    return masks[0] if len(masks) == 1 else tirx.And(*masks)


def score_grad_expr(spec: AttentionSpec, raw: Expr, site: Site) -> Expr:
    """d score_expr / d raw, float32, derived from the expression."""
    symbol = tirx.Var("raw", "float32")
    slope = differentiate(score_expr(spec, symbol, site), symbol)
    return tirx.Let(symbol, raw, slope)


def key_range(spec: AttentionSpec, q_first, q_last, seqlen_q, seqlen_k) -> tuple[Expr, ...]:
    """(lo, hi, full_lo, full_hi) of the keys that rows q_first..q_last see, see variants.key_range.

    A user's mask_mod may hide any key, so nothing counts as fully visible then.
    """
    shifted = variants.alignment_offset(spec.alignment, seqlen_q, seqlen_k)
    bounds = variants.key_range(
        spec.window_size, q_first, q_last, shifted, seqlen_k, tirx.min, tirx.max
    )
    return _bounds(spec, bounds)


def query_range(spec: AttentionSpec, k_first, k_last, seqlen_q, seqlen_k) -> tuple[Expr, ...]:
    """(lo, hi, full_lo, full_hi) of the rows that see keys k_first..k_last."""
    shifted = variants.alignment_offset(spec.alignment, seqlen_q, seqlen_k)
    bounds = variants.query_range(
        spec.window_size, k_first, k_last, shifted, seqlen_q, tirx.min, tirx.max
    )
    return _bounds(spec, bounds)


def legalise(expr: Expr, math: Any) -> Expr:
    """``expr`` with intrinsics replaced by the methods of ``math`` that have their name."""

    def replace(name, args):
        short = name.split(".")[-1]
        # exp2 of ``math`` itself serves the softmax, whose argument is never large.
        method = getattr(math, "exp2_full" if short == "exp2" else short, None)
        return method(*args) if method and short in ("exp", "exp2", "tanh", "sigmoid") else None

    return rewrite_calls(expr, replace)


def lower(program: ScoreProgram, symbols: Sequence[Expr], tables: Sequence[tirx.Buffer]) -> Expr:
    """TIR expression of ``program`` for these values of its symbols and tables."""
    names = SCORE_SYMBOLS if program.is_score else MASK_SYMBOLS
    given = dict(zip(names, symbols, strict=True))
    values: list[Expr] = []
    for (op, *rest), dtype in zip(program.instructions, program.dtypes, strict=True):
        if op in given and not rest:
            value = given[op]
        elif op == "const":
            value = tirx.const(rest[1], dtype)
        elif op == "cast":
            value = tirx.Cast(dtype, values[rest[1]])
        elif op == "load":
            value = _load(tables[rest[0]], [values[ref] for ref in rest[1:]])
        else:
            value = _apply(op, dtype, [values[ref] for ref in rest])
        values.append(value)
    return values[-1]


def _load(table: tirx.Buffer, indices: list[Expr]) -> Expr:
    """Element of a captured tensor; indices are clamped, because tiles reach past the last row."""
    clamped = []
    for index, size in zip(indices, table.shape, strict=True):
        last = tirx.Cast(index.ty.dtype, size) - tirx.const(1, index.ty.dtype)
        clamped.append(tirx.max(tirx.min(index, last), tirx.const(0, index.ty.dtype)))
    value = table[tuple(clamped)] if clamped else table[()]
    return tirx.NE(value, tirx.const(0, "uint8")) if table.dtype == "uint8" else value


def _apply(op: str, dtype: str, args: list[Expr]) -> Expr:
    if op in ("and", "or", "xor", "not"):
        return (_LOGICAL if dtype == "bool" else _BITWISE)[op](*args)
    if op == "mod" and dtype == "float32":
        a, b = args
        return a - tirx.floor(a / b) * b
    if op == "abs" and dtype != "float32":
        return tirx.Select(args[0] < 0, tirx.const(0, dtype) - args[0], args[0])
    return _FUNCTIONS[op](*args) if op in _FUNCTIONS else getattr(tirx, op)(*args)


_LOGICAL = {"and": tirx.And, "or": tirx.Or, "xor": tirx.NE, "not": tirx.Not}
_BITWISE = {
    "and": tirx.bitwise_and, "or": tirx.bitwise_or, "xor": tirx.bitwise_xor, "not": tirx.bitwise_not,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable] = {
    "add": tirx.Add, "sub": tirx.Sub, "mul": tirx.Mul, "div": tirx.Div,
    "neg": lambda x: tirx.const(0, x.ty.dtype) - x,
    "abs": lambda x: tirx.call_intrin("float32", "tirx.fabs", x),
    "maximum": tirx.max, "minimum": tirx.min, "where": tirx.Select,
    "mod": tirx.floormod, "floordiv": tirx.floordiv, "pow": tirx.power,
    "eq": tirx.EQ, "ne": tirx.NE, "lt": tirx.LT, "le": tirx.LE, "gt": tirx.GT, "ge": tirx.GE,
    # torch rounds halves to even; tirx.round takes them away from zero.
    "round": tirx.nearbyint,
}  # fmt: skip


def _bounds(spec: AttentionSpec, bounds: tuple) -> tuple[Expr, ...]:
    lo, hi, full_lo, full_hi = (tirx.const(x, "int32") if isinstance(x, int) else x for x in bounds)
    return (lo, hi, lo, lo) if spec.mask_mod else (lo, hi, full_lo, full_hi)


@lru_cache(maxsize=None)
def _softcap(cap: float) -> ScoreProgram:
    return trace_score_mod(variants.softcap(cap))[0]


@lru_cache(maxsize=None)
def _alibi() -> ScoreProgram:
    return trace_score_mod(variants.alibi(torch.zeros(1, 1)))[0]


@lru_cache(maxsize=None)
def _window(left: int, right: int) -> ScoreProgram:
    return trace_mask_mod(variants.window(left, right))[0]
