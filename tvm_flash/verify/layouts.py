"""A problem's tensors as a kind of sequences has them: packed, or with keys in pages, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..problem.arguments import TABLE

# Rows of a page: no power of two, so that a tile of keys takes parts of pages.
PAGE_SIZE = 13

Call = dict[str, Any]
# By name, the first two sizes of dense arguments: these tell rows of entries from others.
_LEADING = {a.name: a.shape[:2] for table in TABLE.values() for a in table}
_ROWS, _STATISTIC = (("B", "Sq"), ("B", "Sk")), ("B", "H")


def as_sequences(kind: str, given: Call, sizes: tuple[int, ...]) -> Call:
    """What a kernel of ``kind`` is called with, of dense arguments by name.

    sizes: B, H, Hk, Sq, Sk. The entries lie one behind the other; keys in pages lie in no order,
    and the rest of these is NaN.
    """
    if kind == "dense":
        return given
    batch, _, _, rows, keys = sizes
    laid = {name: _laid(name, x) if isinstance(x, torch.Tensor) else x for name, x in given.items()}
    laid |= {"max_seqlen_k": keys, **_spans("q", batch, rows), **_spans("k", batch, keys)}
    return laid if kind == "packed" else {**laid, **_in_pages(given, batch, keys)}


def as_dense(kind: str, results: Call, sizes: tuple[int, ...]) -> Call:
    """``results`` of such a call as those of a dense one."""
    if kind == "dense":
        return results
    batch = sizes[0]
    return {
        name: x.unflatten(1, (batch, -1)).transpose(0, 1)
        if _LEADING.get(name) == _STATISTIC
        else x.unflatten(0, (batch, -1))
        if _LEADING.get(name) in _ROWS
        else x
        for name, x in results.items()
    }


def _laid(name: str, x: torch.Tensor) -> torch.Tensor:
    """(B, S, H, D) as (B * S, H, D), a statistic (B, H, S) as (H, B * S); others as they are."""
    if _LEADING.get(name) == _STATISTIC:
        return x.transpose(0, 1).flatten(1).contiguous()
    return x.flatten(0, 1) if _LEADING.get(name) in _ROWS else x


def _spans(axis: str, batch: int, length: int) -> Call:
    starts = torch.arange(batch, dtype=torch.int32) * length
    return {f"starts_{axis}": starts, f"ends_{axis}": starts + length}


def in_pages(
    x: torch.Tensor,
    lengths: Sequence[int],
    table: torch.Tensor,
    pages: int,
    page_size: int,
    first: Sequence[int] | None = None,
) -> torch.Tensor:
    """Packed rows x (total, ...) in pages (pages, page_size, ...), NaN where no row lies.

    Entry b has ``lengths[b]`` rows at the positions from first[b] (default 0) on, position p in
    page table[b, p // page_size].
    """
    counts = torch.tensor(lengths, dtype=torch.int64)
    entries = torch.repeat_interleave(counts)
    shift = counts - counts.cumsum(0)
    if first is not None:
        shift = shift + torch.tensor(first, dtype=torch.int64)
    positions = torch.arange(len(x)) + shift[entries]
    laid = x.new_full((pages, page_size, *x.shape[1:]), torch.nan)
    laid[table[entries, positions // page_size].long(), positions % page_size] = x
    return laid


def _in_pages(given: Call, batch: int, keys: int) -> Call:
    """k, v (pages, PAGE_SIZE, Hk, columns), the table that finds them, spans of positions."""
    most = -(-keys // PAGE_SIZE)
    order = torch.randperm(batch * most + 1, generator=torch.Generator().manual_seed(0))
    table = order[: batch * most].view(batch, most).int()
    pages = {
        name: in_pages(given[name].flatten(0, 1), [keys] * batch, table, len(order), PAGE_SIZE)
        for name in ("k", "v")
    }
    starts = torch.zeros(batch, dtype=torch.int32)
    return {**pages, "page_table": table, "starts_k": starts, "ends_k": starts + keys}
