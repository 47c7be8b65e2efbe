"""Traced functions with the tensors they captured: what score_mod and mask_mod become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..problem.block_mask import BlockMask
from ..score.layouts import check_dense
from ..score.program import ScoreProgram
from ..score.trace import trace_mask_mod, trace_score_mod, with_tables
from .given_masks import as_block_mask, is_block_mask
from .packed_rows import is_readable


@dataclass(frozen=True, eq=False)
class Captured:
    """A traced score_mod and mask_mod with the tensors they captured, from ``capture``.

    tables: those of the score_mod, then those of the mask_mod, each in the order of first use.
    """

    score_mod: ScoreProgram | None = None
    mask_mod: ScoreProgram | None = None
    tables: tuple[torch.Tensor, ...] = ()

    def with_tables(self, *tables: torch.Tensor) -> Captured:
        """The same functions of other tensors, one for each of ``self.tables`` and of its rank.

        For a tensor that is an input of, or computed in, a region under torch.compile. A tensor
        that a program reads as the same type (any floating point, any integer up to 32 bits) is
        read as it is stored; any other is converted, once.
        """
        for number, table in enumerate(tables):
            check_dense(f"captured tensor {number}", table)
        ranks, new_ranks = [t.dim() for t in self.tables], [t.dim() for t in tables]
        if ranks != new_ranks:
            raise ValueError(f"tables of ranks {new_ranks} must have the captured ranks {ranks}")
        if all(new.dtype == old.dtype for new, old in zip(tables, self.tables, strict=True)):
            return replace(self, tables=tables)
        if torch.compiler.is_compiling():  # there a conversion is a part of the graph
            cast = (new.to(old.dtype) for new, old in zip(tables, self.tables, strict=True))
            return replace(self, tables=tuple(cast))
        return self._retyped(tables)

    def _retyped(self, tables: tuple[torch.Tensor, ...]) -> Captured:
        programs, read = [], []
        for program in (self.score_mod, self.mask_mod):
            if program is not None:
                own = tables[len(read) : len(read) + len(program.tables)]
                program, own = with_tables(program, own)
                read += own
            programs.append(program)
        return Captured(*programs, tuple(read))


def capture(score_mod: Callable | None = None, mask_mod: Callable | None = None) -> Captured:
    """Trace the functions once; pass the result to ``attention`` as score_mod or mask_mod.

    Saves the tracing (about 0.2 ms a call). Captured tensors are read when a kernel runs, every
    other captured value now. One that requires grad is captured under torch.no_grad() and used
    there, or captured as .detach(). Raises as ``attention`` does.
    """
    return captured_on(None, score_mod, mask_mod)


def captured_on(
    device: torch.device | None, score_mod: Callable | None, mask_mod: Callable | BlockMask | None
) -> Captured:
    """``capture`` for a call with tensors on ``device``; a BlockMask has its own mask_mod."""
    score, score_tables = trace_score_mod(score_mod, device) if score_mod else (None, [])
    mask, mask_tables = None, []
    if is_block_mask(mask_mod):
        mask_mod = as_block_mask(mask_mod)
        mask, mask_tables = mask_mod.program, mask_mod.tables
    elif mask_mod:
        mask, mask_tables = trace_mask_mod(mask_mod, device)
    _check_mask_tables(mask_tables)
    return Captured(score, mask, (*score_tables, *mask_tables))


def _check_mask_tables(tables) -> None:
    """ValueError for NaN, which no comparison tells from a hidden pair, where it can be read."""
    for table in tables:
        if table.is_floating_point() and is_readable(table) and table.isnan().any():
            raise ValueError(
                f"a tensor of shape {tuple(table.shape)} that mask_mod captured holds NaN: say by "
                "True or False what is seen"
            )


# What a call without functions has captured.
NOTHING = Captured()


def already_captured(score_mod, mask_mod) -> Captured | None:
    """The arguments of a call as a ``Captured``, or None where a function is yet to be traced."""
    if score_mod is None and mask_mod is None:
        return NOTHING
    if not isinstance(score_mod, Captured) and not isinstance(mask_mod, Captured):
        return None
    if is_block_mask(mask_mod) and score_mod.mask_mod is None:
        mask = as_block_mask(mask_mod)
        return Captured(score_mod.score_mod, mask.program, (*score_mod.tables, *mask.tables))
    if score_mod is not None and mask_mod is not None:
        raise TypeError("a Captured holds both functions: capture them together and pass it alone")
    return score_mod if mask_mod is None else mask_mod
