"""flash_attn_with_kvcache: new keys and values are appended to a cache, then attended to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from ..score.layouts import check_dense
from .flash_varlen import check_extras
from .functional import LAYOUTS, Window, attention
from .rotary import apply_rotary
from .values import NO_WINDOW, as_flag


class _Cache(NamedTuple):
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

    def places(self, entries: torch.Tensor, positions: torch.Tensor) -> tuple:
        """Index of rows in pages: page and row of each of ``positions`` of ``entries``."""
        size = self.k.shape[1]
        quotient = torch.div(positions, size, rounding_mode="floor")
        return self.table[entries, quotient].long(), positions - quotient * size


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    cache_seqlens: int | torch.Tensor | None = None,
    cache_batch_idx: torch.Tensor | None = None,
    cache_leftpad: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = NO_WINDOW,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: torch.Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
    *,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k_new: torch.Tensor | None = None,
    max_seqlen_q: int | torch.Tensor | None = None,
    rotary_seqlens: torch.Tensor | None = None,
    page_table: torch.Tensor | None = None,
    cache_layout: str = "bshd",
    out: torch.Tensor | None = None,
    **others: Any,
):
    """Attention of q to a cache of keys and values, to which k and v are appended before, in place.

    q (B, Sq, H, D), or packed (total_q, H, D) with cu_seqlens_q (B + 1,) int32. k_cache, v_cache
    (B_cache, S, Hk, D | Dv), of which sequence b uses number cache_batch_idx[b] (default b); with
    block_table (B, most) int32 (FlashAttention-3: page_table) pages (pages, page_size, Hk, D | Dv)
    of any size. ``cache_layout="bhsd"``: (.., Hk, S, D). Any strides. cache_seqlens (int or (B,)
    int32): positions in use before the call; default all. cache_leftpad (B,) int32: the first
    positions that are no keys. k, v (B, S_new, Hk, D | Dv), or packed with cu_seqlens_k_new, go to
    the positions from cache_seqlens on. rotary_cos, rotary_sin (S_ro, rotary_dim / 2): k is rotated
    by its positions and q too, its first row at cache_seqlens (rotary_seqlens (B,) instead, if
    given); without causal and window all rows of q at that one.

    Queries are aligned with the end of all keys, the new ones included. num_splits: 1 for the same
    bits in any batch, else the kernels choose. out: memory for the result. Returns out (B, Sq, H,
    Dv) or (total_q, H, Dv); with return_softmax_lse also lse (B, H, Sq) or (H, total_q), float32.
    No gradients.

    Raises as ``attention``; RuntimeError for a page that does not exist or a cache that is full. On
    CPUs that is before anything is written; on GPUs numbers in tensors are not read: what does not
    fit is left out. A call that fails leaves the cache as it was.
    """
    check_extras(others)
    block_table = block_table if block_table is not None else page_table
    packed_q, cu_q, shape = _packed("q", q, cu_seqlens_q)
    cache = _cache(
        k_cache, v_cache, cache_seqlens, cache_batch_idx, cache_leftpad, block_table,
        len(cu_q) - 1, cache_layout,
    )  # fmt: skip
    if (k is None) != (v is None):
        raise ValueError("k and v are appended together: give both or none")
    if rotary_cos is not None or rotary_sin is not None:
        if k is None:
            raise ValueError("rotary_cos and rotary_sin rotate new keys: give k and v")
        offsets = cache.past if rotary_seqlens is None else rotary_seqlens
        moves = as_flag("causal", causal) or tuple(window_size) != (-1, -1)
        packed_q = _rotated_queries(
            packed_q, cu_q, rotary_cos, rotary_sin, rotary_interleaved, offsets, moves
        )
    if k is None:
        return _attend(
            packed_q, cu_q, max_seqlen_q, cache, shape, out, return_softmax_lse,
            softmax_scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap,
            alibi_slopes=alibi_slopes, num_splits=num_splits,
        )  # fmt: skip
    k, cu_k, _ = _packed("k", k, cu_seqlens_k_new)
    v, _, _ = _packed("v", v, cu_seqlens_k_new)
    if rotary_cos is not None:
        k = apply_rotary(
            k, rotary_cos, rotary_sin, interleaved=rotary_interleaved, seqlen_offsets=offsets,
            cu_seqlens=cu_k,
        )  # fmt: skip
    with _appended(cache, k, v, cu_k) as longer:
        return _attend(
            packed_q, cu_q, max_seqlen_q, longer, shape, out, return_softmax_lse,
            softmax_scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap,
            alibi_slopes=alibi_slopes, num_splits=num_splits,
        )  # fmt: skip


def _attend(q, cu_q, max_seqlen_q, cache: _Cache, shape, out, return_lse, **options):
    result, lse = attention(
        q, cache.k, cache.v, cu_seqlens_q=cu_q, max_seqlen_q=max_seqlen_q, seqused_k=cache.past,
        leftpad_k=cache.first, block_table=cache.table, return_lse=True, **options,
    )  # fmt: skip
    if shape is not None:
        result = result.view(*shape, *result.shape[1:])
        lse = lse.view(-1, *shape).transpose(0, 1)
    if out is not None:
        if out.shape != result.shape or out.dtype != result.dtype:
            raise ValueError(
                f"out of shape {tuple(out.shape)}, {out.dtype} must be {tuple(result.shape)}, "
                f"{result.dtype}"
            )
        result = out.copy_(result)
    return (result, lse) if return_lse else result


@contextmanager
def _appended(cache: _Cache, k, v, cu_k) -> Iterator[_Cache]:
    """``cache`` with the packed rows of k and v behind its keys; as it was where the body fails."""
    counts = cu_k[1:] - cu_k[:-1]
    past = cache.past + counts
    rows = torch.arange(k.shape[0], device=k.device)
    entries = torch.searchsorted(cu_k[1:].contiguous(), rows, right=True, out_int32=True).long()
    positions = rows - cu_k[entries] + cache.past[entries]
    if k.is_cpu:
        _check_room(cache, k, v, past)
    pages, places = cache.places(entries, positions.clamp(0, max(cache.capacity - 1, 0)))
    if not k.is_cpu:  # what does not fit goes where it came from
        fits = (positions < cache.capacity) & (pages >= 0) & (pages < cache.k.shape[0])
        pages = pages.clamp(0, cache.k.shape[0] - 1)
        k = torch.where(fits[:, None, None], k, cache.k[pages, places])
        v = torch.where(fits[:, None, None], v, cache.v[pages, places])
        past = past.clamp(max=cache.capacity)
    before = cache.k[pages, places], cache.v[pages, places]
    cache.k[pages, places], cache.v[pages, places] = k, v
    try:
        yield cache._replace(past=past)
    except BaseException:
        cache.k[pages, places], cache.v[pages, places] = before
        raise


def _check_room(cache: _Cache, k, v, past: torch.Tensor) -> None:
    """Raise unless k and v are like the rows of the cache and there is room for them."""
    for name, new, pages in (("k", k, cache.k), ("v", v, cache.v)):
        if new.shape[1:] != pages.shape[2:] or new.dtype != pages.dtype:
            raise ValueError(
                f"rows of {name} {tuple(new.shape[1:])}, {new.dtype} must be like the cache's, "
                f"{tuple(pages.shape[2:])}, {pages.dtype}"
            )
    if len(past) and int(past.max()) > cache.capacity:
        entry = int(past.argmax())
        raise RuntimeError(
            f"sequence {entry} needs {int(past[entry])} positions, the cache has {cache.capacity}: "
            "append less, or give it more pages in block_table"
        )
    used = torch.arange(cache.table.shape[1]) < -(-past[:, None] // max(cache.k.shape[1], 1))
    wrong = used & ((cache.table < 0) | (cache.table >= cache.k.shape[0]))
    if bool(wrong.any()):
        entry, place = wrong.nonzero()[0].tolist()
        name = "block_table" if cache.paged else "cache_batch_idx"
        raise RuntimeError(
            f"{name}[{entry}, {place}]={int(cache.table[entry, place])} must lie in 0 .. "
            f"{cache.k.shape[0] - 1}"
        )


def _cache(k, v, seqlens, batch_idx, leftpad, table, entries: int, layout: str) -> _Cache:
    """The cache of a call, in pages: a sequence without a table has one page."""
    if layout not in LAYOUTS:
        raise ValueError(f"cache_layout={layout!r} must be one of {', '.join(LAYOUTS)}")
    for name, x in (("k_cache", k), ("v_cache", v)):
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
        check_dense(name, x)
        if x.ndim != 4:
            raise ValueError(f"{name} of shape {tuple(x.shape)} must have 4 dimensions")
    if layout == "bhsd":
        k, v = k.transpose(1, 2), v.transpose(1, 2)
    if table is not None and batch_idx is not None:
        raise ValueError("block_table finds the pages: leave cache_batch_idx out")
    paged = table is not None
    if not paged and batch_idx is None:
        if entries > k.shape[0]:
            raise ValueError(f"k_cache has {k.shape[0]} sequences, q {entries}")
        table = _counted(entries, k.device)[:, None]
    elif not paged:
        table = _vector("cache_batch_idx", batch_idx, entries)[:, None]
    capacity = table.shape[-1] * k.shape[1]
    seqlens = capacity if seqlens is None else seqlens
    past = _vector("cache_seqlens", seqlens, entries, k.device)
    first = _vector("cache_leftpad", 0 if leftpad is None else leftpad, entries, k.device)
    return _Cache(k, v, table, first, past, paged)


def _vector(name: str, x, entries: int, device: torch.device | None = None) -> torch.Tensor:
    """``x`` (B,) int32; of an int that all entries share."""
    if isinstance(x, int) and device is not None:
        return torch.full((entries,), x, dtype=torch.int32, device=device)
    if not isinstance(x, torch.Tensor) or x.dtype != torch.int32:
        kind = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a tensor of torch.int32, not {kind}")
    if tuple(x.shape) != (entries,):
        raise ValueError(f"{name} of shape {tuple(x.shape)} must be of shape ({entries},)")
    return x.contiguous()


def _packed(name: str, x, cu_seqlens) -> tuple:
    """Rows (total, H, D), cumulative lengths, and (B, S) where ``x`` was (B, S, H, D)."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    check_dense(name, x)
    if x.ndim != (3 if cu_seqlens is not None else 4):
        wanted = "(total, H, D) with cumulative lengths" if x.ndim != 4 else "(B, S, H, D)"
        raise ValueError(f"{name} of shape {tuple(x.shape)} must be {wanted}")
    if cu_seqlens is not None:
        return x, cu_seqlens, None
    batch, length = x.shape[:2]
    return x.flatten(0, 1), _equal_lengths(batch, length, x.device), (batch, length)


@lru_cache(maxsize=256)
def _equal_lengths(batch: int, length: int, device: torch.device) -> torch.Tensor:
    return (
        torch.arange(0, batch * length + 1, max(length, 1), dtype=torch.int32, device=device)[
            : batch + 1
        ]
        if length
        else torch.zeros(batch + 1, dtype=torch.int32, device=device)
    )


@lru_cache(maxsize=256)
def _counted(entries: int, device: torch.device) -> torch.Tensor:
    return torch.arange(entries, dtype=torch.int32, device=device)


def _rotated_queries(q, cu_q, cos, sin, interleaved, offsets, moves: bool) -> torch.Tensor:
    """q rotated by its positions from ``offsets`` on; all rows of a sequence by that one, unless
    it ``moves``."""
    cu_seqlens = cu_q
    if not moves:
        offsets = torch.repeat_interleave(offsets, (cu_q[1:] - cu_q[:-1]).long())
        cu_seqlens = torch.arange(q.shape[0] + 1, dtype=torch.int32, device=q.device)
    return apply_rotary(
        q, cos, sin, interleaved=interleaved, seqlen_offsets=offsets, cu_seqlens=cu_seqlens
    )
