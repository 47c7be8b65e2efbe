"""flash_attn_with_kvcache: new keys and values are appended to a cache, then attended to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C import _is_any_autocast_enabled

from .append_ops import Angles, append
from .checks import as_softmax, check_alike, check_first
from .extras import sink_of
from .functional import Window, options_of
from .kvcache_pages import check_new_rows, pages_of
from .kvcache_step import InUse, step_of
from .output import check_out
from .placement import has_readable_rows
from .ragged import ready_attention
from .ragged_checks import check_rows
from .rotary import check_angles, rotated_queries
from .values import NO_WINDOW, as_flag, as_splits, autocast

# What is rotated by what, by the names of the parameters.
_ROTARY = ("q", "rotary_cos", "rotary_sin")


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
    sink = sink_of(others)
    return_softmax_lse = as_flag("return_softmax_lse", return_softmax_lse)
    if block_table is not None and page_table is not None:
        raise ValueError("block_table and page_table are one thing: give one")
    check_first(q, 4 if cu_seqlens_q is None else 3)
    pages = pages_of(q, k_cache, v_cache, cache_layout)
    rows, shape = _packed(q)
    check_rows(rows, *pages, 4)
    if out is not None:
        check_out(out, q, v_cache)
    if (k is None) != (v is None):
        raise ValueError("k and v are appended together: give both or none")
    rotates = rotary_cos is not None or rotary_sin is not None
    if k is None:
        _check_nothing_new(rotates, cu_seqlens_k_new)
        new = None
    else:
        check_alike("k", k, q, 4 if cu_seqlens_k_new is None else 3)
        check_alike("v", v, q, k.ndim)
        new = tuple(_packed(x)[0] for x in (k, v))
        check_new_rows(pages, *new)
    if rotary_seqlens is not None and not rotates:
        raise ValueError("rotary_seqlens is of rotary_cos and rotary_sin: give them")
    softmax = "softmax"
    if sink is not None:
        softmax, sink = as_softmax(softmax, sink, q, return_softmax_lse)
    options = options_of(causal, window_size, softcap, softmax_scale, alibi_slopes, softmax=softmax)
    if rotates:
        check_angles(rows, rotary_cos, rotary_sin, packed=True, names=_ROTARY)
        interleaved = as_flag("interleaved", rotary_interleaved)
    step = step_of(
        q, pages, k,
        InUse(
            cache_seqlens, cache_batch_idx, cache_leftpad,
            page_table if block_table is None else block_table, cu_seqlens_q, max_seqlen_q,
            cu_seqlens_k_new, rotary_seqlens, len(rotary_cos) if rotates else None,
            any(options[0][:3]),
        ),
    )  # fmt: skip
    if rotates:
        angles = rotary_cos, rotary_sin, interleaved
        rows = rotated_queries(rows, step.rotation, *angles, v_cache.shape[-1])

    def attend(rows: torch.Tensor) -> Callable[[], tuple]:
        q, k, v = map(autocast, (rows, *pages)) if _is_any_autocast_enabled() else (rows, *pages)
        return ready_attention(
            q, k, v, step.ragged, options, False, alibi_slopes, (None, None),
            as_splits(num_splits), sink,
        )  # fmt: skip

    run = attend(rows.detach())
    if new is not None:
        angles = Angles.of(*angles, new[0].dtype) if rotates else Angles()
        append(*new, *pages, step.places, step.offsets, angles)
        if _is_any_autocast_enabled() or not all(map(has_readable_rows, pages)):
            run = attend(rows.detach())  # pages were copied before rows were appended
    if rows.requires_grad:
        run = attend(rows)
    result, lse = run()
    if shape is not None:
        result = result.view(*shape, *result.shape[1:])
        lse = lse.view(lse.shape[0], *shape).transpose(0, 1)
    if out is not None:
        result = out.copy_(result)
    return (result, lse) if return_softmax_lse else result


def _packed(x: torch.Tensor) -> tuple:
    """Rows (total, H, D), and (B, S) where ``x`` was (B, S, H, D)."""
    return (x, None) if x.ndim == 3 else (x.flatten(0, 1), x.shape[:2])


def _check_nothing_new(rotates: bool, cu_seqlens_k_new) -> None:
    """ValueError for what is of new keys, where there are none."""
    if rotates:
        raise ValueError("rotary_cos and rotary_sin rotate new keys: give k and v")
    if cu_seqlens_k_new is not None:
        raise ValueError("cu_seqlens_k_new is of new keys: give k and v")
