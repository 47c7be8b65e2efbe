"""The cache of a call of flash_attn_with_kvcache, as pages: checked, appended to, put back."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import pad

from .checks import check_alike
from .functional import LAYOUTS
from .packed_rows import check_numbers, check_table, is_readable, read, sequence_and_position
from .ragged_checks import missing_page


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

    def places(self, entries: torch.Tensor, positions: torch.Tensor) -> tuple:
        """Index of rows in pages: page and row of each of ``positions`` of ``entries``."""
        size = max(self.k.shape[1], 1)
        quotient = torch.div(positions, size, rounding_mode="floor")
        return self.table[entries, quotient].long(), positions - quotient * size


def cache_pages(q, k, v, seqlens, batch_idx, leftpad, table, entries: int, layout) -> CachePages:
    """The cache of a call on ``entries`` sequences: one without a table has one page for each.

    TypeError, ValueError for tensors that do not fit ``q`` and each other.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"cache_layout={layout!r} must be one of {', '.join(LAYOUTS)}")
    check_alike("k_cache", k, q)
    check_alike("v_cache", v, q)
    if k.shape[:3] != v.shape[:3]:
        shapes = f"k_cache has {tuple(k.shape)}, v_cache {tuple(v.shape)}"
        raise ValueError(f"{shapes}: all but the last dimension must be equal")
    if layout == "bhsd":
        k, v = k.transpose(1, 2), v.transpose(1, 2)
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


@contextmanager
def appended(cache: CachePages, k, v, cu_k) -> Iterator[CachePages]:
    """``cache`` with the packed rows of k and v behind its keys; as it was where the body fails.

    k, v: checked by ``check_new_rows``. Rows past ``cu_k[-1]`` belong to no sequence. What there is
    no room for raises where numbers can be read, and is left out elsewhere.
    """
    if can_be_checked := cache.is_readable and is_readable(cu_k):
        check_cache_numbers(cache, read(cu_k[1:] - cu_k[:-1]))
        k, v = k[: int(cu_k[-1])], v[: int(cu_k[-1])]
    k, v, past = k.detach(), v.detach(), cache.past + (cu_k[1:] - cu_k[:-1])
    if not (len(past) and k.numel() and cache.k.numel()):
        yield cache._replace(past=past.clamp(max=cache.capacity))
        return
    entries, offsets = sequence_and_position(cu_k, len(k))
    positions = pad(cache.past, (0, 1))[entries] + offsets
    fits = (entries < len(past)) & (positions >= 0) & (positions < cache.capacity)
    inside = positions.clamp(0, cache.capacity - 1)
    pages, places = cache.places(entries.clamp(max=len(past) - 1), inside)
    fits &= (pages >= 0) & (pages < len(cache.k))
    if can_be_checked:
        _check_apart(cache, entries, pages, places)
    else:
        k, v, pages, places = _fitting(cache, fits, k, v, pages, places)
    with torch.no_grad():
        before = cache.k[pages, places], cache.v[pages, places]
        cache.k[pages, places], cache.v[pages, places] = k, v
    try:
        yield cache._replace(past=past.clamp(max=cache.capacity))
    except BaseException:
        with torch.no_grad():
            cache.k[pages, places], cache.v[pages, places] = before
        raise


def check_new_rows(cache: CachePages, k: torch.Tensor, v: torch.Tensor, cu_k) -> None:
    """ValueError unless packed k and v are like the rows of the cache, for as many sequences."""
    for name, new, pages in (("k", k, cache.k), ("v", v, cache.v)):
        if new.shape[1:] != pages.shape[2:]:
            raise ValueError(
                f"rows of {name} {tuple(new.shape[1:])} must be like the cache's, "
                f"{tuple(pages.shape[2:])}"
            )
        if any(n > 1 and step == 0 for n, step in zip(pages.shape, pages.stride(), strict=True)):
            raise ValueError(f"{name}_cache of strides {pages.stride()} is expanded: .clone() it")
    if len(k) != len(v):
        raise ValueError(f"k has {len(k)} rows, v has {len(v)}: each key needs one value")
    if len(cu_k) - 1 != len(cache.past):
        raise ValueError(f"k has {len(cu_k) - 1} sequences, q has {len(cache.past)}")


def check_cache_numbers(cache: CachePages, counts=0) -> None:
    """Raise unless what is in use, with ``counts`` more, lies in pages that exist.

    ValueError: negative numbers, padding past the keys. RuntimeError: a full cache, a page that
    does not exist.
    """
    numbers = (read(x).astype(np.int64) for x in (cache.past, cache.first))
    (before, first), capacity = numbers, cache.capacity
    past = before + counts
    _raise_where(before < 0, "cache_seqlens", before, "0 or more", ValueError)
    _raise_where(first < 0, "cache_leftpad", first, "0 or more", ValueError)
    if (full := past > capacity).any():
        entry = int(full.argmax())
        raise RuntimeError(
            f"sequence {entry} needs {past[entry]} positions, cache_seqlens[{entry}]="
            f"{before[entry]} and the new ones, the cache has {capacity}: append less, say by "
            "cache_seqlens what is in use, or give more pages in block_table"
        )
    _raise_where(first > past, "cache_leftpad", first, "at most the keys there are", ValueError)
    pages, page_size = cache.k.shape[:2]
    if (missing := missing_page(cache.table, past, pages, page_size)) is not None:
        entry, place, number = missing
        name = f"block_table[{entry}, {place}]" if cache.paged else f"cache_batch_idx[{entry}]"
        raise RuntimeError(f"{name}={number} must lie in 0 .. {pages - 1}: the cache has {pages}")


def _raise_where(wrong, name: str, numbers, wanted: str, error: type[Exception]) -> None:
    if wrong.any():
        entry = int(wrong.argmax())
        raise error(f"{name}[{entry}]={numbers[entry]} must be {wanted}")


def _check_apart(cache: CachePages, entries, pages, places) -> None:
    """ValueError where two new rows go to one place."""
    slots = read(pages * cache.k.shape[1] + places)
    order = np.argsort(slots, kind="stable")
    again = slots[order][1:] == slots[order][:-1]
    if again.any():
        pair = order[int(again.argmax()) :][:2]
        one, other = (int(entries[row]) for row in pair)
        name = "block_table" if cache.paged else "cache_batch_idx"
        raise ValueError(
            f"sequences {one} and {other} append to one place, row {int(places[pair[0]])} of page "
            f"{int(pages[pair[0]])}: {name} must keep them apart"
        )


def _fitting(cache: CachePages, fits, k, v, pages, places) -> tuple:
    """k, v and where they go, with a row that fits in place of each that does not.

    To write a row again changes nothing. If none fits, what one place holds goes there again.
    """
    rows = torch.arange(len(k), device=k.device)
    source = torch.where(fits, rows, fits.int().argmax())
    pages, places = pages.clamp(0, len(cache.k) - 1)[source], places[source]
    is_new = fits[source][:, None, None]
    k = torch.where(is_new, k[source], cache.k[pages, places])
    v = torch.where(is_new, v[source], cache.v[pages, places])
    return k, v, pages, places
