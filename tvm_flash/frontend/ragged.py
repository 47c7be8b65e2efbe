"""Calls on entries of any lengths: packed tensors, nested ones, and keys in pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..problem.arguments import LONGEST
from ..problem.sequences import KINDS
from .checks import check_alibi
from .last_call import LastCall
from .packed_rows import check_cu_seqlens, check_numbers, check_table, is_readable
from .problem import ragged_problem_of
from .ragged_checks import Extent, check_rows, check_spans
from .ragged_ops import PACKED, PAGED, ready_operator
from .values import as_integer


class Ragged(NamedTuple):
    """Where the entries of a call lie.

    kind: a name of problem.sequences. spans: starts_q, ends_q, starts_k, ends_k (B,) int32, and of
    paged keys the page table. longest_k: keys that no entry exceeds. extents: of queries and keys,
    where their numbers were read and checked.
    """

    kind: str
    spans: tuple[torch.Tensor, ...]
    longest_k: int
    extents: tuple[Extent, Extent] | None = None

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


def ragged_of(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: Lengths) -> Ragged:
    """The spans of a packed call, or of one with pages.

    ValueError for what is missing or too much; TypeError for cumulative lengths that are not int32.
    """
    if lengths.cu_seqlens_q is None:
        given = ", ".join(name for name, x in lengths._asdict().items() if x is not None)
        raise ValueError(f"{given} needs cu_seqlens_q: where the sequences of q begin and end")
    paged = lengths.block_table is not None
    check_rows(q, k, v, 4 if paged else 3)
    if not (isinstance(lengths.cu_seqlens_q, torch.Tensor) and is_readable(lengths.cu_seqlens_q)):
        return _spans(q, k, lengths, paged)
    arguments = (*lengths, q.shape[0], tuple(k.shape[:2]))
    if (known := _last.answer(arguments)) is None:
        known = _spans(q, k, lengths, paged)
        given = {"q": q, "k": k, **dict(zip(_SPANS, known.spans, strict=False))}
        if all(map(is_readable, known.spans)):
            extents = check_spans(given, LONGEST.limits[1])
            known = known._replace(longest_k=extents[1].longest, extents=extents)
            _last.keep(arguments, known)
    return known


_SPANS = [argument.name for argument in KINDS[PAGED].shapes.own]
_last = LastCall()


def _spans(q: torch.Tensor, k: torch.Tensor, lengths: Lengths, paged: bool) -> Ragged:
    """As ``ragged_of``, of tensors that were checked."""
    bounds = _bounds("_q", lengths.cu_seqlens_q, q, lengths.max_seqlen_q)
    starts_q, ends_q = _used("_q", lengths.seqused_q, *bounds)
    if paged:
        starts_k, ends_k, bound = _of_pages(k, len(starts_q), lengths)
        kind, more = PAGED, (lengths.block_table,)
    else:
        if lengths.leftpad_k is not None:
            raise ValueError("leftpad_k is of keys in pages: give block_table")
        if lengths.cu_seqlens_k is None:
            raise ValueError("cu_seqlens_q needs cu_seqlens_k: where the sequences of k lie")
        bounds = _bounds("_k", lengths.cu_seqlens_k, k, lengths.max_seqlen_k, len(starts_q))
        starts_k, ends_k = _used("_k", lengths.seqused_k, *bounds)
        kind, more, bound = PACKED, (), k.shape[0]
    longest = _readable("max_seqlen_k", lengths.max_seqlen_k)
    longest = bound if longest is None else longest
    return Ragged(kind, (starts_q, ends_q, starts_k, ends_k, *more), longest)


def ready_attention(
    q, k, v, ragged: Ragged, features, scale, numbers, deterministic, alibi_slopes, mods, num_splits
) -> Callable[[], tuple]:
    """A function that gives out (total_q, H, Dv) and lse (H, total_q) of checked options.

    All that may fail has been done then, as ``ready_operator`` says.
    features: the fields of problem.Features up to the kind. numbers: window_left, window_right,
    softcap. mods: score_mod, mask_mod.
    """
    (spec, default_scale), tables = ragged_problem_of(q, v, (*features, ragged.kind), *mods)
    scale = default_scale if scale is None else scale
    if alibi_slopes is not None:
        tables = (check_alibi(alibi_slopes, q.device, ragged.entries, q.shape[-2]), *tables)
    return ready_operator(
        ragged.kind, q, k, v, ragged.spans, list(tables), spec, scale, ragged.longest_k,
        deterministic, numbers, num_splits, ragged.extents,
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


def _bounds(axis: str, cumulative, x, longest, entries: int | None = None) -> tuple:
    """Where sequences begin and end in the rows of ``x``, of cumulative lengths (entries + 1,).

    longest: max_seqlen as given, which is held to no sequence where ``entries`` do not fit.
    """
    longest = _readable(f"max_seqlen{axis}", longest)
    fits = entries is None or getattr(cumulative, "shape", None) == (entries + 1,)
    # In pages the lengths alone are read: what the table may hold bounds each.
    total = LONGEST.limits[1] if x.ndim == 4 else None
    check_cu_seqlens(cumulative, x, longest if fits else None, total, axis)
    if not fits:
        raise ValueError(
            f"cu_seqlens{axis} of shape {tuple(cumulative.shape)} must be ({entries + 1},): "
            f"cu_seqlens_q has {entries} sequences"
        )
    return cumulative[:-1], cumulative[1:]


def _used(axis: str, used, starts: torch.Tensor, ends: torch.Tensor) -> tuple:
    """Starts and ends of the rows that count, the first ``used`` of each sequence if that is given.

    ValueError where a sequence has fewer.
    """
    if used is None:
        return starts, ends
    check_numbers(name := f"seqused{axis}", used, len(starts), starts.device)
    if is_readable(used) and is_readable(starts):
        numbers, most = used.numpy(), ends.numpy() - starts.numpy()
        if (wrong := (numbers < 0) | (numbers > most)).any():
            entry = int(wrong.argmax())
            raise ValueError(
                f"{name}[{entry}]={numbers[entry]} must lie in 0..{most[entry]}, the rows of "
                f"sequence {entry}"
            )
    return starts, starts + used


def _of_pages(k: torch.Tensor, entries: int, lengths: Lengths) -> tuple:
    """Starts and ends of the keys in the pages of each sequence, and how many it may have."""
    check_table(lengths.block_table, entries, k.device)
    if lengths.seqused_k is not None:
        check_numbers("seqused_k", ends := lengths.seqused_k, entries, k.device)
    elif lengths.cu_seqlens_k is not None:
        before, after = _bounds("_k", lengths.cu_seqlens_k, k, lengths.max_seqlen_k, entries)
        ends = after - before
    else:
        raise ValueError("block_table needs seqused_k or cu_seqlens_k: how many keys there are")
    starts = torch.zeros_like(ends)
    if lengths.leftpad_k is not None:
        check_numbers("leftpad_k", starts := lengths.leftpad_k, entries, k.device)
    return starts, ends, lengths.block_table.shape[1] * k.shape[1]


def _readable(name: str, number) -> int | None:
    """``number`` as an int; None where nobody gave it, or a tensor cannot be read."""
    if isinstance(number, torch.Tensor):
        if number.numel() != 1:
            shape = tuple(number.shape)
            raise ValueError(f"{name} of shape {shape} must be one integer")
        if not is_readable(number):
            return None
        number = number.item()
    if number is None:
        return None
    number = as_integer(name, number)
    least, limit = LONGEST.limits
    if not least <= number <= limit:
        raise ValueError(f"{name}={number} must lie in {least}..{limit}")
    return number
