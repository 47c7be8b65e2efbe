"""flash_attn_with_kvcache: new keys and values are appended to a cache, then attended to."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.functional import pad

from .checks import check_alike, check_first
from .flash_varlen import check_extras
from .functional import Window, attention
from .kvcache_pages import (
    appended,
    cache_pages,
    check_cache_numbers,
    check_new_rows,
    number_of_each,
)
from .packed_rows import check_cu_seqlens, sequence_and_position
from .rotary import apply_rotary
from .values import NO_WINDOW, as_flag, as_window


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
    bits in any batch, on GPUs also more, of parts of the keys; 0: the kernels choose. out: memory
    for the result. Returns out (B, Sq, H, Dv) or (total_q, H, Dv); with return_softmax_lse also lse
    (B, H, Sq) or (H, total_q), float32. No gradients.

    Raises as ``attention``; RuntimeError for a page that does not exist or a cache that is full,
    ValueError for sequences that append to one place. On CPUs that is before anything is written;
    on GPUs and under torch.compile numbers in tensors are not read: what does not fit is left out.
    A call that fails leaves the cache as it was.
    """
    check_extras(others)
    return_softmax_lse = as_flag("return_softmax_lse", return_softmax_lse)
    if block_table is not None and page_table is not None:
        raise ValueError("block_table and page_table are one thing: give one")
    table = page_table if block_table is None else block_table
    rows, cu_q, shape = _packed("_q", q, q, cu_seqlens_q)
    cache = cache_pages(
        q, k_cache, v_cache, cache_seqlens, cache_batch_idx, cache_leftpad, table, len(cu_q) - 1,
        cache_layout,
    )  # fmt: skip
    if out is not None:
        _check_out(out, q, v_cache)
    if (k is None) != (v is None):
        raise ValueError("k and v are appended together: give both or none")
    rotates = rotary_cos is not None or rotary_sin is not None
    if k is None:
        _check_nothing_new(rotates, cu_seqlens_k_new)
        appending = nullcontext(cache)
        if cache.is_readable:
            check_cache_numbers(cache)
    else:
        check_alike("k", k, q, 4 if cu_seqlens_k_new is None else 3)
        check_alike("v", v, q, k.ndim)
        k, cu_k, _ = _packed("_k_new", k, q, cu_seqlens_k_new)
        v = v if v.ndim == 3 else v.flatten(0, 1)
        check_new_rows(cache, k, v, cu_k)
    if rotary_seqlens is not None and not rotates:
        raise ValueError("rotary_seqlens is of rotary_cos and rotary_sin: give them")
    if rotates:
        offsets = cache.past
        if rotary_seqlens is not None:
            offsets = number_of_each("rotary_seqlens", rotary_seqlens, len(cu_q) - 1, q.device)
        angles = {"cos": rotary_cos, "sin": rotary_sin, "interleaved": rotary_interleaved}
        moves = as_flag("causal", causal) or as_window(window_size) != NO_WINDOW
        rows = _rotated_queries(rows, cu_q, offsets, moves, angles)
        k = apply_rotary(k, **angles, seqlen_offsets=offsets, cu_seqlens=cu_k)
    if k is not None:
        appending = appended(cache, k, v, cu_k)
    with appending as longer:
        result, lse = attention(
            rows, longer.k, longer.v, cu_seqlens_q=cu_q, max_seqlen_q=max_seqlen_q,
            seqused_k=longer.past, leftpad_k=longer.first, block_table=longer.table,
            softmax_scale=softmax_scale, causal=causal, window_size=window_size, softcap=softcap,
            alibi_slopes=alibi_slopes, num_splits=num_splits, return_lse=True,
        )  # fmt: skip
        if shape is not None:
            result = result.view(*shape, *result.shape[1:])
            lse = lse.view(lse.shape[0], *shape).transpose(0, 1)
        if out is not None:
            result = out.copy_(result)
    return (result, lse) if return_softmax_lse else result


def _packed(axis: str, x: torch.Tensor, q: torch.Tensor, cu_seqlens) -> tuple:
    """Rows (total, H, D), cumulative lengths, and (B, S) where ``x`` was (B, S, H, D)."""
    if axis == "_q":
        check_first(x, 4 if cu_seqlens is None else 3)
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, x, axis=axis)
        return x, cu_seqlens, None
    batch, length = x.shape[:2]
    entries = torch.arange(batch + 1, dtype=torch.int32, device=x.device)
    return x.flatten(0, 1), entries * length, (batch, length)


def _check_nothing_new(rotates: bool, cu_seqlens_k_new) -> None:
    """ValueError for what is of new keys, where there are none."""
    if rotates:
        raise ValueError("rotary_cos and rotary_sin rotate new keys: give k and v")
    if cu_seqlens_k_new is not None:
        raise ValueError("cu_seqlens_k_new is of new keys: give k and v")


def _check_out(out, q: torch.Tensor, v_cache: torch.Tensor) -> None:
    """Raise unless ``out`` is memory for the result."""
    check_alike("out", out, q, q.ndim)
    if out.shape != (shape := (*q.shape[:-1], v_cache.shape[-1])):
        raise ValueError(f"out of shape {tuple(out.shape)} must be of shape {tuple(shape)}")


def _rotated_queries(q, cu_q, offsets, moves: bool, angles: dict) -> torch.Tensor:
    """q rotated by its positions from ``offsets`` on; all rows of a sequence by that one, unless
    it ``moves``."""
    if not moves:
        sequence, _ = sequence_and_position(cu_q, len(q))
        offsets = pad(offsets, (0, 1))[sequence]
        cu_q = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device)
    return apply_rotary(q, **angles, seqlen_offsets=offsets, cu_seqlens=cu_q)
