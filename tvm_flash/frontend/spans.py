"""Where the entries of packed and paged calls lie, of what callers say about it, checked."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from ..problem.arguments import LONGEST
from ..problem.lengths import MAX_SEQLEN
from ..problem.size_checks import MAX_COUNT
from .checks import check_tensors
from .last_call import LastCall
from .packed_rows import (
    Extent,
    check_capacity,
    check_cu_seqlens,
    check_numbers,
    check_table,
    extent_of,
    is_readable,
    read,
)
from .ragged_checks import PACKED, PAGED, check_pages
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
    seqused_q: torch.Tensor | None = None
    seqused_k: torch.Tensor | None = None
    block_table: torch.Tensor | None = None
    leftpad_k: torch.Tensor | None = None


def ragged_of(q, k, v, lengths: Lengths, max_seqlen_q=None, max_seqlen_k=None) -> Ragged:
    """The spans of a packed call, or of one with pages.

    ValueError for what is missing or too much; TypeError for cumulative lengths that are not int32.
    """
    if lengths.cu_seqlens_q is None:
        longest = {"max_seqlen_q": max_seqlen_q, "max_seqlen_k": max_seqlen_k}
        known = {**lengths._asdict(), **longest}
        given = ", ".join(name for name, x in known.items() if x is not None)
        raise ValueError(f"{given} needs cu_seqlens_q: where the sequences of q begin and end")
    check_tensors(q, k, v, 3, 3 if lengths.block_table is None else 4)
    ragged = _kept(q, k, lengths) if is_readable(q) and q.is_cpu else _ragged(q, k, lengths)
    queries, keys = ragged.extents or (None, None)
    _check_longest("max_seqlen_q", max_seqlen_q, queries)
    longest = _check_longest("max_seqlen_k", max_seqlen_k, keys)
    if keys is not None and q.is_cpu:
        return ragged
    # What a GPU holds is read to be checked alone: nothing is chosen by it.
    most = ragged.longest_k if longest is None else longest
    return Ragged(ragged.kind, ragged.spans, most)


_last = LastCall()


def _kept(q: torch.Tensor, k: torch.Tensor, lengths: Lengths) -> Ragged:
    """As ``_ragged``, for the next call of these lengths too."""
    sizes = q.shape[0], k.shape[:2]
    if (known := _last.answer(lengths, sizes)) is not None:
        return known
    ragged = _ragged(q, k, lengths)
    if ragged.extents is not None:
        spans = tuple([x.contiguous() for x in ragged.spans])
        ragged = Ragged(ragged.kind, spans, ragged.extents[1].longest, ragged.extents)
        _last.keep(lengths, sizes, ragged)
    return ragged


def _ragged(q: torch.Tensor, k: torch.Tensor, lengths: Lengths) -> Ragged:
    """The spans of tensors that were checked."""
    queries = _bounds("_q", lengths.cu_seqlens_q, q, lengths.seqused_q)
    starts_q, ends_q, of_queries = queries
    entries = starts_q.shape[0]
    if (table := lengths.block_table) is not None:
        starts_k, ends_k, of_keys = _of_pages(k, entries, lengths)
        kind, spans = PAGED, (starts_q, ends_q, starts_k, ends_k, table)
        most = table.shape[1] * k.shape[1]
    else:
        if lengths.leftpad_k is not None:
            raise ValueError("leftpad_k is of keys in pages: give block_table")
        if (cumulative := lengths.cu_seqlens_k) is None:
            raise ValueError("cu_seqlens_q needs cu_seqlens_k: where the sequences of k lie")
        is_same = cumulative is lengths.cu_seqlens_q and q.shape[0] == k.shape[0]
        if is_same and lengths.seqused_q is lengths.seqused_k is None:
            starts_k, ends_k, of_keys = queries
        else:
            starts_k, ends_k, of_keys = _bounds("_k", cumulative, k, lengths.seqused_k, entries)
        kind, spans, most = PACKED, (starts_q, ends_q, starts_k, ends_k), k.shape[0]
    is_read = of_queries is not None and of_keys is not None
    return Ragged(kind, spans, most, (of_queries, of_keys) if is_read else None)


def _bounds(axis: str, cumulative, x, used=None, entries: int | None = None) -> tuple:
    """Starts, ends and extent of the rows of ``x`` by cumulative lengths (entries + 1,).

    used (entries,): so many of the first rows of each sequence count. The extent is None where
    numbers are not read.
    """
    # In pages the lengths alone are read: what the table may hold bounds each, and nothing the sum.
    extent = check_cu_seqlens(cumulative, x, total=MAX_COUNT if x.ndim == 4 else None, axis=axis)
    if entries is not None and cumulative.shape != (entries + 1,):
        raise ValueError(
            f"cu_seqlens{axis} of shape {tuple(cumulative.shape)} must be ({entries + 1},): "
            f"cu_seqlens_q has {entries} sequences"
        )
    starts, ends = cumulative[:-1], cumulative[1:]
    if used is None:
        return starts, ends, extent
    check_numbers(name := f"seqused{axis}", used, len(starts), starts.device)
    if extent is None or not is_readable(used):
        return starts, starts + used, None
    numbers, most = read(used), np.diff(read(cumulative))
    if (wrong := (numbers < 0) | (numbers > most)).any():
        entry = int(wrong.argmax())
        raise ValueError(
            f"{name}[{entry}]={numbers[entry]} must lie in 0..{most[entry]}, the rows of "
            f"sequence {entry}"
        )
    return starts, starts + used, extent_of(numbers.astype(np.int64))


def _of_pages(k: torch.Tensor, entries: int, lengths: Lengths) -> tuple:
    """Starts and ends of the keys in the pages of each sequence, their extent."""
    check_table(table := lengths.block_table, entries, k.device)
    check_capacity(table, k)
    if lengths.seqused_k is not None:
        check_numbers("seqused_k", ends := lengths.seqused_k, entries, k.device)
    elif lengths.cu_seqlens_k is not None:
        before, after, _ = _bounds("_k", lengths.cu_seqlens_k, k, entries=entries)
        ends = after - before
    else:
        raise ValueError("block_table needs seqused_k or cu_seqlens_k: how many keys there are")
    starts = torch.zeros_like(ends)
    if lengths.leftpad_k is not None:
        check_numbers("leftpad_k", starts := lengths.leftpad_k, entries, k.device)
    readable = all(map(is_readable, (starts, ends, table)))
    extent = check_pages(starts, ends, table, k) if readable else None
    return starts, ends, extent


def _check_longest(name: str, number, extent: Extent | None) -> int | None:
    """max_seqlen as an int; None where nobody gave it, or a tensor cannot be read.

    ValueError where a sequence of ``extent`` is longer.
    """
    if number is None:
        return None
    if type(number) is int and extent is not None and extent.longest <= number <= MAX_SEQLEN:
        return number  # the most frequent case
    if isinstance(number, torch.Tensor):
        if number.numel() != 1:
            shape = tuple(number.shape)
            raise ValueError(f"{name} of shape {shape} must be one integer")
        if not is_readable(number):
            return None
        number = number.item()
    number = as_integer(name, number)
    least, limit = LONGEST.limits
    if not least <= number <= limit:
        raise ValueError(f"{name}={number} must lie in {least}..{limit}")
    if extent is not None and extent.longest > number:
        raise ValueError(f"{name}={number} is too small: a sequence has {extent.longest} rows")
    return number
