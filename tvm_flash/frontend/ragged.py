"""Calls on entries of any lengths: packed tensors, nested ones, and keys in pages."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .blocks import NO_BLOCKS, Blocks
from .checks import check_alibi
from .packed_rows import is_readable
from .problem import problem_of, problem_while_compiling
from .ragged_ops import ready_operator
from .spans import Lengths, Ragged


def ready_attention(
    q, k, v, ragged: Ragged, options: tuple, deterministic, alibi_slopes, mods, num_splits,
    sink=None, rng=None, own=(), blocks: Blocks = NO_BLOCKS,
) -> Callable[[], tuple]:  # fmt: skip
    """A function that gives out (total_q, H, Dv) and lse (H, total_q) of checked options.

    All that may fail has been done then, as ``ready_operator`` says.
    options: of ``functional.options_of``. mods: score_mod, mask_mod. own: tables of what comes
    before them.
    """
    features, scale, numbers = options
    is_read = ragged.extents is not None  # which a compiler does not
    look = problem_of if is_read or not torch.compiler.is_compiling() else problem_while_compiling
    (spec, default_scale), tables = look(q, k, v, (*features, ragged.kind, blocks.size), *mods)
    scale, tables = default_scale if scale is None else scale, (*own, *tables, *blocks.lists)
    if alibi_slopes is not None:
        tables = (check_alibi(alibi_slopes, q.device, ragged.entries, q.shape[-2]), *tables)
    return ready_operator(
        ragged.kind, q, k, v, ragged.spans, list(tables), spec, scale, ragged.longest_k,
        deterministic, numbers, num_splits, sink, ragged.extents, rng,
    )  # fmt: skip


def is_jagged(x) -> bool:
    """Whether ``x`` is a nested tensor of entries one behind the other (torch.jagged)."""
    return isinstance(x, torch.Tensor) and x.layout is torch.jagged


def jagged_parts(q, k, v) -> tuple[tuple, Lengths]:
    """Packed q, k, v and the lengths of jagged nested tensors (B, S*, H, D)."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not is_jagged(x) or x.ndim != 4 or x._ragged_idx != 1 or x.lengths() is not None:
            raise ValueError(
                f"{name} must be a nested tensor (B, S*, H, D) of layout torch.jagged without "
                "holes: torch.nested.nested_tensor(..., layout=torch.jagged); one (B, H, S*, D) "
                'that is a transpose goes with layout="bhsd"'
            )
    _check_one_length("k", k, "v", v)
    cu_seqlens = [x.offsets().to(torch.int32) for x in (q, k)]
    return tuple(x.values() for x in (q, k, v)), Lengths(*cu_seqlens)


def _check_one_length(name: str, x, other: str, y) -> None:
    """ValueError unless the entries of two nested tensors are equally long, where that is known."""
    offsets = x.offsets(), y.offsets()
    if x.shape[1] == y.shape[1] or not all(map(is_readable, offsets)):
        return
    if not torch.equal(*offsets):
        lengths = " and ".join(str(x.diff().tolist()[:8]) for x in offsets)
        raise ValueError(f"entries of {name} and {other} have lengths {lengths}: make them equal")


def nested_like(q, out: torch.Tensor) -> torch.Tensor:
    """Packed ``out`` (total, H, D) as a nested tensor of the sequences of ``q``."""
    return torch.nested.nested_tensor_from_jagged(out, q.offsets())
