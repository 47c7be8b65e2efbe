"""FlashAttention's functions on packed sequences, and torch's varlen_attn."""

from __future__ import annotations

from typing import Any

import torch

from .attn_probs import dropout_of, shown_weights
from .checks import check_first
from .extras import shared_options
from .flash_attn import unpacked
from .functional import Window, attention
from .output import check_out
from .values import NO_WINDOW


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int | torch.Tensor,
    max_seqlen_k: int | torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = NO_WINDOW,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: torch.Tensor | None = None,
    *,
    seqused_q: torch.Tensor | None = None,
    seqused_k: torch.Tensor | None = None,
    num_splits: int = 0,
    out: torch.Tensor | None = None,
    **others: Any,
):
    """Attention of packed q (total_q, H, D), k, v (total_k, Hk, D); see ``attention``.

    cu_seqlens_q, cu_seqlens_k: (B + 1,) int32. block_table (B, most) int32: k and v are pages
    (pages, page_size, Hk, D). Returns out (total_q, H, Dv); with ``return_attn_probs`` (out, lse
    (H, total_q) float32, weights (B, H, most queries, most keys) or None, as
    ``flash_attn_func`` has them). num_splits: 1 for the same bits in any batch. out: memory for the
    result, without gradients. others:
    ``attention``'s sink as s_aux, sinks or learnable_sink; FlashAttention-3's pack_gqa and
    sm_margin, being of speed alone; what it has besides raises NotImplementedError by name.
    """
    shared = softmax_scale, causal, window_size, softcap, alibi_slopes
    options = shared_options(*shared, others)
    if out is not None:
        check_first(q, 3)
        check_out(out, q, v)
    dropout_p, rng = dropout_of(dropout_p, q, return_attn_probs)
    result = attention(
        q, k, v, deterministic=deterministic, return_lse=return_attn_probs,
        cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q,
        max_seqlen_k=max_seqlen_k, seqused_q=seqused_q, seqused_k=seqused_k,
        block_table=block_table, num_splits=num_splits, dropout_p=dropout_p, rng=rng, **options,
    )  # fmt: skip
    if out is not None:
        result = (out.copy_(result[0]), *result[1:]) if return_attn_probs else out.copy_(result)
    if not return_attn_probs:
        return result
    if dropout_p and not (seqused_q is seqused_k is block_table is None):
        raise NotImplementedError(
            "return_attn_probs with dropout is of whole packed sequences: leave out seqused_q, "
            "seqused_k and block_table"
        )
    lengths = (cu_seqlens_q, cu_seqlens_k)
    return *result, shown_weights(q, k, dropout_p, rng, lengths, **options)


def flash_attn_varlen_qkvpacked_func(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int | torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = NO_WINDOW,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
):
    """``flash_attn_varlen_func`` of qkv (total, 3, H, D), without copies."""
    q, k, v = unpacked("qkv", qkv, 3, "total")
    lengths = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    tail = (softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic)
    return flash_attn_varlen_func(q, k, v, *lengths, dropout_p, *tail, return_attn_probs)


def flash_attn_varlen_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int | torch.Tensor,
    max_seqlen_k: int | torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = NO_WINDOW,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
):
    """``flash_attn_varlen_func`` of q (total_q, H, D), kv (total_k, 2, Hk, D), without copies."""
    k, v = unpacked("kv", kv, 2, "total")
    lengths = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    tail = (softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic)
    return flash_attn_varlen_func(q, k, v, *lengths, dropout_p, *tail, return_attn_probs)


def varlen_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    return_aux: Any = None,
    scale: float | None = None,
    window_size: Window = NO_WINDOW,
    enable_gqa: bool = False,
    seqused_k: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    num_splits: int | None = None,
):
    """torch.nn.attention.varlen.varlen_attn's signature: packed (total, H, D), any window.

    return_aux: an AuxRequest; with its ``lse`` the result is (out, lse (H, total_q)). window_size
    (-1, 0) is a causal mask. Heads of key and value may be fewer with ``enable_gqa``.
    """
    heads = [x.shape[-2] for x in (query, key) if getattr(x, "ndim", 0) >= 2]
    if not enable_gqa and len(set(heads)) > 1:
        raise ValueError(f"query has {heads[0]} heads, key has {heads[1]}: set enable_gqa=True")
    return attention(
        query, key, value, softmax_scale=scale, window_size=window_size, cu_seqlens_q=cu_seq_q,
        cu_seqlens_k=cu_seq_k, max_seqlen_q=max_q, max_seqlen_k=max_k, seqused_k=seqused_k,
        block_table=block_table, return_lse=bool(getattr(return_aux, "lse", False)),
        num_splits=num_splits,
    )  # fmt: skip
