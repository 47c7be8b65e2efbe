"""The score pipeline as one TIR expression: scale, softcap, ALiBi, score_mod, then the masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, reduce
from typing import Any, NamedTuple

import torch
from tvm import tirx

from ..problem.spec import AttentionSpec, has_sum
from ..score import variants
from ..score.loads import Load
from ..score.program import ScoreProgram
from ..score.trace import trace_mask_mod, trace_score_mod
from .derivative import contains_let, differentiate, rewrite_calls
from .emit import Expr, emit


@dataclass(frozen=True)
class Site:
    """Where a score stands: indices and lengths int32, the call's numbers, captured tables.

    numbers: by name, and inverse_cap, which is 1 / softcap.
    """

    b: Expr
    h: Expr
    q_idx: Expr
    k_idx: Expr
    seqlen_q: Expr
    seqlen_k: Expr
    numbers: Mapping[str, Expr]
    tables: tuple[tirx.Buffer, ...] = ()

    def aligned(self, spec: AttentionSpec) -> Expr:
        """The row that causal, window and ALiBi see."""
        return self.q_idx + variants.alignment_offset(spec.alignment, self.seqlen_q, self.seqlen_k)


def score_expr(spec: AttentionSpec, raw: Expr, site: Site) -> Expr:
    """Score of the dot product ``raw`` in natural units, before any mask; float32."""
    score = raw * site.numbers["softmax_scale"]
    row, tables = site.aligned(spec), list(site.tables)
    if spec.softcap:
        cap = site.numbers["inverse_cap"], site.numbers["softcap"]
        score = emit(_softcap(), (score, site.b, site.h, row, site.k_idx), cap)
    if spec.alibi:
        slopes = tables.pop(0)
        score = emit(_alibi(), (score, site.b, site.h, row, site.k_idx), (slopes,))
    if spec.score_mod:
        symbols = (score, site.b, site.h, site.q_idx, site.k_idx)
        score = emit(spec.score_mod, symbols, tables, from_zero=True)
    return score


def is_scale_only(spec: AttentionSpec) -> bool:
    """Whether the score is the dot product times softmax_scale, with nothing in between."""
    return not (spec.softcap or spec.alibi or spec.score_mod)


def has_linear_exponent(spec: AttentionSpec) -> bool:
    """Whether a weight is exp of the dot product times a number less one of its row."""
    return is_scale_only(spec) and has_sum(spec.softmax)


def window_expr(spec: AttentionSpec, site: Site) -> Expr | None:
    """Whether causal and window show the key to the query (bool), or None without them."""
    if not spec.is_bounded:
        return None
    ends = [site.numbers[name] for name in _ENDS if name in site.numbers]
    symbols = (site.b, site.h, site.aligned(spec), site.k_idx)
    return emit(_window(spec), symbols, ends)


def mask_mod_expr(spec: AttentionSpec, site: Site) -> Expr | None:
    """Whether mask_mod shows the key to the query (bool), or None without one."""
    if not spec.mask_mod:
        return None
    before = spec.alibi + (len(spec.score_mod.tables) if spec.score_mod else 0)
    own = site.tables[before : before + len(spec.mask_mod.tables)]
    symbols = (site.b, site.h, site.q_idx, site.k_idx)
    return emit(spec.mask_mod, symbols, own, from_zero=True)


def mask_expr(spec: AttentionSpec, site: Site) -> Expr | None:
    """Whether the query sees the key (bool), or None when nothing hides any."""
    masks = [m for m in (window_expr(spec, site), mask_mod_expr(spec, site)) if m is not None]
    return reduce(tirx.And, masks) if masks else None


def score_grad_expr(spec: AttentionSpec, raw: Expr, site: Site) -> Expr:
    """d score_expr / d raw, float32, derived from the expression."""
    return differentiate(score_expr(spec, raw, site), raw)


class TableGradient(NamedTuple):
    """The derivative of a score by one element of a captured table.

    load: which read it is. index: of the element, int32 or int64. kept: whether it lies inside the
    table. A symbol that is an index may lie past the end, and adds nothing then.
    """

    load: Load
    index: tuple[Expr, ...]
    slope: Expr
    kept: Expr


def table_gradient_exprs(spec: AttentionSpec, raw: Expr, site: Site) -> list[TableGradient]:
    """The derivative of ``score_expr`` by each element that it reads of a learned table."""
    reads: list[tuple] = []
    tables = tuple(
        _Watched(n, table, reads) if n in spec.learned else table
        for n, table in enumerate(site.tables)
    )
    score = score_expr(spec, raw, replace(site, tables=tables))
    symbols = {"b": site.b, "h": site.h, "q_idx": site.q_idx, "k_idx": site.k_idx}
    loads = [load for load in spec.table_loads if load.table in spec.learned]
    found = []
    for load, (number, index, element) in zip(loads, reads, strict=True):
        sizes = site.tables[number].shape
        inside = [symbols[x] < n for x, n in zip(load.axes, sizes, strict=True) if x in symbols]
        index = tuple(symbols.get(x, own) for x, own in zip(load.axes, index, strict=True))
        kept = reduce(tirx.And, inside) if inside else tirx.const(True, "bool")
        found.append(TableGradient(load, index, differentiate(score, element), kept))
    return found


class _Watched:
    """A captured table that keeps number, index and value of each read in ``reads``."""

    def __init__(self, number: int, table: tirx.Buffer, reads: list[tuple]):
        self.shape, self.dtype = table.shape, "float32"
        self._number, self._table, self._reads = number, table, reads

    def __getitem__(self, index: tuple) -> Expr:
        element = self._table[index]
        if self._table.dtype != "float32":
            element = tirx.Cast("float32", element)
        self._reads.append((self._number, index, element))
        return element


def legalise(expr: Expr, math: Any) -> Expr:
    """``expr`` with intrinsics replaced by the methods of ``math`` that have their name.

    The innermost ones only: TVM's simplifier takes time exponential in the depth of bound names, so
    a tanh of a tanh keeps its outer one as a library call (right, and slower).
    """

    def replace(name, args):
        short = name.split(".")[-1]
        if short not in _REPLACED or any(map(contains_let, args)):
            return None
        # exp2 of ``math`` itself serves the softmax, whose argument is never large.
        return getattr(math, "exp2_full" if short == "exp2" else short)(*args)

    return rewrite_calls(expr, replace)


_REPLACED = ("exp", "exp2", "tanh", "sigmoid")
_ENDS = ("window_left", "window_right")


# The numbers of variants are traced as captured tensors without dimensions, that is as tables, in
# whose place ``emit`` puts the numbers of a call.
@cache
def _softcap() -> ScoreProgram:
    """Softcap as a program with two tables: 1 / cap and cap."""
    return trace_score_mod(variants.softcap(torch.ones(())))[0]


@cache
def _alibi() -> ScoreProgram:
    return trace_score_mod(variants.alibi(torch.zeros(1, 1)))[0]


@cache
def _window(spec: AttentionSpec) -> ScoreProgram:
    """The window as a program with a table for each end that is a number, the left one first."""
    ends = spec.window({name: torch.zeros((), dtype=torch.int32) for name in _ENDS})
    return trace_mask_mod(variants.window(*ends))[0]
