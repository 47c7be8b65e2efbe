"""The cache of a call of flash_attn_with_kvcache, as pages; its tensors and numbers checked."""

from __future__ import annotations

import operator
from typing import NamedTuple

import numpy as np
import torch

from ..score.layouts import check_in_memory
from .checks import check_alike
from .functional import LAYOUTS
from .output import is_expanded
from .packed_rows import check_capacity, check_numbers, check_table, is_readable, read
from .ragged_checks import check_pages_exist


class CachePages(NamedTuple):
    """Pages (pages, page_size, Hk, D | Dv), the table (B, most) that finds them, what is in use.

    first: where the keys of a sequence begin, past the padding on the left (B,). past: where they
    end (B,); capacity: where they may end. paged: whether the caller gave a table.
    """

    k: torch.Tensor
    v: torch.Tensor
    table: torch.Tensor
    first: torch.Tensor
    past: torch.Tensor
    paged: bool

    @property
    def capacity(self) -> int:
        return self.table.shape[1] * self.k.shape[1]

    @property
    def is_readable(self) -> bool:
        """Whether the numbers of a call can be checked."""
        return all(map(is_readable, (self.k, self.v, self.table, self.first, self.past)))


def pages_of(q, k, v, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Caches as pages (pages, page_size, Hk, D | Dv). TypeError, ValueError for what does not fit.

    A sequence of a cache without a table has one page, as long as the cache is.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"cache_layout={layout!r} must be one of {', '.join(LAYOUTS)}")
    check_alike("k_cache", k, q, 4)
    check_alike("v_cache", v, q, 4)
    check_in_memory("k_cache", k)
    check_in_memory("v_cache", v)
    if k.shape[:3] != v.shape[:3]:
        shapes = f"k_cache has {tuple(k.shape)}, v_cache {tuple(v.shape)}"
        raise ValueError(f"{shapes}: all but the last dimension must be equal")
    return (k, v) if layout == "bshd" else (k.transpose(1, 2), v.transpose(1, 2))


def cache_pages(q, k, v, seqlens, batch_idx, leftpad, table, entries: int) -> CachePages:
    """The cache of a call on ``entries`` sequences. TypeError, ValueError for what does not fit."""
    paged = table is not None
    if paged and batch_idx is not None:
        raise ValueError("block_table finds the pages: leave cache_batch_idx out")
    if paged:
        check_table(table, entries, q.device)
    elif batch_idx is not None:
        table = number_of_each("cache_batch_idx", batch_idx, entries, q.device)[:, None]
    elif entries > k.shape[0]:
        raise ValueError(f"k_cache has {k.shape[0]} sequences, q {entries}")
    else:
        table = torch.arange(entries, dtype=torch.int32, device=q.device)[:, None]
    check_capacity(table, k)
    seqlens = table.shape[1] * k.shape[1] if seqlens is None else seqlens
    leftpad = 0 if leftpad is None else leftpad
    past = number_of_each("cache_seqlens", seqlens, entries, q.device)
    first = number_of_each("cache_leftpad", leftpad, entries, q.device)
    return CachePages(k, v, table, first, past, paged)


def number_of_each(name: str, x, entries: int, device: torch.device) -> torch.Tensor:
    """``x`` (entries,) int32 on ``device``; of an integer that all entries share."""
    if isinstance(x, torch.Tensor):
        check_numbers(name, x, entries, device)
        return x.contiguous()
    try:
        number = operator.index(x)
    except TypeError:
        kind = type(x).__name__
        raise TypeError(f"{name} must be an int or a tensor of torch.int32, not {kind}") from None
    if not 0 <= number < 2**31:
        raise ValueError(f"{name}={number} must lie in 0..{2**31 - 1}")
    return torch.full((entries,), number, dtype=torch.int32, device=device)


def check_new_rows(pages: tuple, k: torch.Tensor, v: torch.Tensor) -> None:
    """ValueError unless packed k and v are like the rows of the pages, which can be written."""
    for name, new, cache in (("k", k, pages[0]), ("v", v, pages[1])):
        if new.shape[1:] != cache.shape[2:]:
            raise ValueError(
                f"rows of {name} {tuple(new.shape[1:])} must be like the cache's, "
                f"{tuple(cache.shape[2:])}"
            )
        if is_expanded(cache):
            raise ValueError(f"{name}_cache of strides {cache.stride()} is expanded: .clone() it")
    if len(k) != len(v):
        raise ValueError(f"k has {len(k)} rows, v has {len(v)}: each key needs one value")


def check_cache_numbers(
    cache: CachePages, cu_k: torch.Tensor | None, *, is_full: bool = False
) -> None:
    """Raise unless what is in use, and new rows (cu_k, None: none), lie in pages that exist.

    is_full: nobody gave cache_seqlens.

    ValueError: negative numbers, padding past the keys, sequences that append to one place.
    RuntimeError: a full cache, a page that does not exist. Nothing where numbers are not read.
    """
    if not (cache.is_readable and (cu_k is None or is_readable(cu_k))):
        return
    numbers = (read(x).astype(np.int64) for x in (cache.past, cache.first))
    (before, first), capacity = numbers, cache.capacity
    past = before if cu_k is None else before + np.diff(read(cu_k))
    _raise_where(before < 0, "cache_seqlens", before, "0 or more", ValueError)
    _raise_where(first < 0, "cache_leftpad", first, "0 or more", ValueError)
    if (full := past > capacity).any():
        entry = int(full.argmax())
        if is_full:
            raise RuntimeError("without cache_seqlens the cache is full: say what is in use")
        raise RuntimeError(
            f"sequence {entry} needs {past[entry]} positions, cache_seqlens[{entry}]="
            f"{before[entry]} and the new ones, the cache has {capacity}: append less, say by "
            "cache_seqlens what is in use, or give more pages in block_table"
        )
    _raise_where(first > past, "cache_leftpad", first, "at most the keys there are", ValueError)
    what = ("block_table[{}, {}]", "pages") if cache.paged else ("cache_batch_idx[{}]", "sequences")
    check_pages_exist(cache.table, past, cache.k, *what)
    if cu_k is not None:
        _check_apart(cache, before, past)


def _raise_where(wrong, name: str, numbers, wanted: str, error: type[Exception]) -> None:
    if wrong.any():
        entry = int(wrong.argmax())
        raise error(f"{name}[{entry}]={numbers[entry]} must be {wanted}")


def _check_apart(cache: CachePages, before: np.ndarray, past: np.ndarray) -> None:
    """ValueError where two new rows, at the positions ``before`` .. ``past``, go to one place."""
    size = cache.k.shape[1]
    # The part of each page that an entry appends to: first row and past the last, among all pages.
    first, last = before // size, -(-past // size)
    counts = np.where(past > before, last - first, 0)
    entry = np.repeat(np.arange(len(counts)), counts)
    column = np.arange(len(entry)) - (counts.cumsum() - counts - first)[entry]
    page = read(cache.table)[entry, column].astype(np.int64)
    start, end = (np.clip(x[entry] - column * size, 0, size) + page * size for x in (before, past))
    order = np.argsort(start, kind="stable")
    again = start[order][1:] < end[order][:-1]
    if again.any():
        pair = order[int(again.argmax()) :][:2]
        one, other = sorted(int(entry[part]) for part in pair)
        name, unit = ("block_table", "page") if cache.paged else ("cache_batch_idx", "sequence")
        raise ValueError(
            f"sequences {one} and {other} append to one place, row {start[pair[1]] % size} of "
            f"{unit} {page[pair[1]]} of the cache: {name} must keep them apart"
        )
