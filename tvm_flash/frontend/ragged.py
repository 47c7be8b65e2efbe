"""Calls on entries of any lengths: packed tensors, nested ones, and keys in pages."""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch

from ..problem.arguments import LONGEST
from ..score.layouts import check_dense
from .checks import check_alibi
from .problem import ragged_problem_of
from .ragged_ops import FORWARD, PACKED, PAGED


class Ragged(NamedTuple):
    """Where the entries of a call lie.

    kind: a name of problem.sequences. spans: starts_q, ends_q, starts_k, ends_k (B,) int32, and of
    paged keys the page table. longest_k: keys that no entry exceeds.
    """

    kind: str
    spans: tuple[torch.Tensor, ...]
    longest_k: int

    @property
    def entries(self) -> int:
        return self.spans[0].shape[0]


class Lengths(NamedTuple):
    """What callers give of ragged sequences, by the names of ``attention``'s keywords."""

    cu_seqlens_q: torch.Tensor | None = None
    cu_seqlens_k: torch.Tensor | None = None
    max_seqlen_q: int | torch.Tensor | None = None
    max_seqlen_k: int | torch.Tensor | None = None
    seqused_q: torch.Tensor | None = None
    seqused_k: torch.Tensor | None = None
    block_table: torch.Tensor | None = None
    leftpad_k: torch.Tensor | None = None


def ragged_of(q: torch.Tensor, k: torch.Tensor, lengths: Lengths) -> Ragged:
    """The spans of a packed call, or of one with pages.

    ValueError for what is missing or too much; TypeError for cumulative lengths that are not int32.
    """
    if lengths.cu_seqlens_q is None:
        given = ", ".join(name for name, x in lengths._asdict().items() if x is not None)
        raise ValueError(f"{given} needs cu_seqlens_q: where the sequences of q begin and end")
    starts_q, ends_q = _bounds("cu_seqlens_q", lengths.cu_seqlens_q)
    _check_longest("max_seqlen_q", lengths.max_seqlen_q, starts_q, ends_q)
    if lengths.seqused_q is not None:
        ends_q = starts_q + _numbers("seqused_q", lengths.seqused_q)
    if lengths.block_table is not None:
        starts_k, ends_k, bound = _of_pages(k, lengths)
        kind, more = PAGED, (_table(lengths.block_table),)
    else:
        if lengths.leftpad_k is not None:
            raise ValueError("leftpad_k is of keys in pages: give block_table")
        if lengths.cu_seqlens_k is None:
            raise ValueError("cu_seqlens_q needs cu_seqlens_k: where the sequences of k lie")
        starts_k, ends_k = _bounds("cu_seqlens_k", lengths.cu_seqlens_k)
        _check_longest("max_seqlen_k", lengths.max_seqlen_k, starts_k, ends_k)
        if lengths.seqused_k is not None:
            ends_k = starts_k + _numbers("seqused_k", lengths.seqused_k)
        kind, more, bound = PACKED, (), k.shape[0]
    longest = _longest(lengths.max_seqlen_k, starts_k, ends_k, bound)
    return Ragged(kind, (starts_q, ends_q, starts_k, ends_k, *more), longest)


def ragged_attention(
    q, k, v, ragged: Ragged, features, scale, numbers, deterministic, alibi_slopes, mods, num_splits
):
    """out (total_q, H, Dv) and lse (H, total_q) of checked options.

    features: the fields of problem.Features up to the kind. numbers: window_left, window_right,
    softcap. mods: score_mod, mask_mod.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
        check_dense(name, x)
        if x.ndim == 0:
            raise ValueError(f"{name} of rank 0 must have rows, heads and head_dim")
    (spec, default_scale), tables = ragged_problem_of(q, v, (*features, ragged.kind), *mods)
    scale = default_scale if scale is None else scale
    if alibi_slopes is not None:
        tables = (check_alibi(alibi_slopes, q.device, ragged.entries, q.shape[-2]), *tables)
    out, lse, _ = FORWARD[ragged.kind](
        q, k, v, *ragged.spans, list(tables), spec, scale, ragged.longest_k, deterministic,
        *numbers, num_splits,
    )  # fmt: skip
    return out, lse


def is_jagged(x) -> bool:
    """Whether ``x`` is a nested tensor of entries one behind the other (torch.jagged)."""
    return isinstance(x, torch.Tensor) and x.layout is torch.jagged


def jagged_parts(q, k, v) -> tuple[tuple, Lengths]:
    """Packed q, k, v and the lengths of jagged nested tensors (B, S*, H, D)."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not is_jagged(x) or x.ndim != 4 or x._ragged_idx != 1 or x.lengths() is not None:
            raise ValueError(
                f"{name} must be a nested tensor (B, S*, H, D) of layout torch.jagged without "
                "holes, as q is: torch.nested.nested_tensor(..., layout=torch.jagged)"
            )
    cu_seqlens = [x.offsets().to(torch.int32) for x in (q, k)]
    return tuple(x.values() for x in (q, k, v)), Lengths(*cu_seqlens)


def nested_like(q, out: torch.Tensor) -> torch.Tensor:
    """Packed ``out`` (total, H, D) as a nested tensor of the sequences of ``q``."""
    return torch.nested.nested_tensor_from_jagged(out, q.offsets())


def _bounds(name: str, cumulative: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where sequences begin and end, of cumulative lengths (B + 1,)."""
    _numbers(name, cumulative)
    if cumulative.shape[0] == 0:
        raise ValueError(f"{name} of shape (0,) must have a number more than there are sequences")
    return cumulative[:-1], cumulative[1:]


def _numbers(name: str, x: torch.Tensor) -> torch.Tensor:
    """``x`` if it is a vector of int32."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    check_dense(name, x)
    if x.dtype != torch.int32:
        raise TypeError(f"{name}.dtype={x.dtype} must be torch.int32: call .int()")
    if x.ndim != 1:
        raise ValueError(f"{name} of shape {tuple(x.shape)} must have 1 dimension")
    return x


def _table(table: torch.Tensor) -> torch.Tensor:
    if not isinstance(table, torch.Tensor):
        raise TypeError(f"block_table must be a tensor, not {type(table).__name__}")
    return table


def _of_pages(k: torch.Tensor, lengths: Lengths) -> tuple:
    """Starts and ends of the keys in the pages of each sequence, and how many it may have."""
    if lengths.seqused_k is not None:
        ends = _numbers("seqused_k", lengths.seqused_k)
    elif lengths.cu_seqlens_k is not None:
        before, after = _bounds("cu_seqlens_k", lengths.cu_seqlens_k)
        ends = after - before
    else:
        raise ValueError("block_table needs seqused_k or cu_seqlens_k: how many keys there are")
    if not isinstance(k, torch.Tensor) or k.ndim != 4:
        shape = tuple(getattr(k, "shape", ()))
        raise ValueError(f"k of shape {shape} must be (pages, page_size, Hk, D) with a block_table")
    starts = torch.zeros_like(ends)
    if lengths.leftpad_k is not None:
        starts = _numbers("leftpad_k", lengths.leftpad_k)
    return starts, ends, lengths.block_table.shape[-1] * k.shape[1]


def _check_longest(name: str, given, starts: torch.Tensor, ends: torch.Tensor) -> None:
    """ValueError where a sequence is longer than was ``given``, if that can be read."""
    most = _readable(name, given)
    if most is None or not _is_data(starts) or not len(starts):
        return
    lengths = ends.numpy() - starts.numpy()
    if (longest := int(lengths.max())) > most:
        raise ValueError(f"{name}={most} is too small: a sequence has {longest} rows")


def _longest(given, starts: torch.Tensor, ends: torch.Tensor, bound: int) -> int:
    """Keys that no sequence exceeds: counted on a CPU, else as ``given``, else ``bound``."""
    if _is_data(starts):
        lengths = ends.numpy() - starts.numpy() if len(starts) else ()
        return max(int(lengths.max()), 0) if len(lengths) else 0
    most = _readable("max_seqlen_k", given)
    return bound if most is None else most


def _is_data(x: torch.Tensor) -> bool:
    """Whether the numbers of ``x`` can be read now, at no cost."""
    return not torch.compiler.is_compiling() and type(x) is torch.Tensor and x.is_cpu


def _readable(name: str, number) -> int | None:
    """``number`` as an int; None where it is on a GPU, or nobody gave it."""
    if number is None or (isinstance(number, torch.Tensor) and number.is_cuda):
        return None
    if isinstance(number, torch.Tensor):
        number = number.item()
    try:
        most = operator.index(number)
    except TypeError:
        raise TypeError(f"{name}={number!r} must be an integer") from None
    least, limit = LONGEST.limits
    if not least <= most <= limit:
        raise ValueError(f"{name}={most} must lie in {least}..{limit}")
    return most
