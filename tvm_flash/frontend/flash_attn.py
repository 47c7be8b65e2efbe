"""FlashAttention-2's functions by their names, parameters, defaults and layouts."""

from __future__ import annotations

from typing import Any

import torch

from ..score.layouts import check_dense
from .attn_probs import dropout_of, shown_weights
from .extras import shared_options
from .functional import Window, attention
from .values import NO_WINDOW


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = NO_WINDOW,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    num_splits: int = 0,
    **others: Any,
):
    """Attention of q (B, Sq, H, D), k (B, Sk, Hk, D), v (B, Sk, Hk, Dv); see ``attention``.

    Returns out (B, Sq, H, Dv); with ``return_attn_probs`` (out, lse (B, H, Sq) float32, weights):
    with dropout these are all normalised weights (B, H, Sq, Sk), negative where dropped, else None.
    num_splits: 0, the kernels choose; others raise ValueError. others: as
    ``flash_attn_varlen_func`` has it.
    """
    shared = softmax_scale, causal, window_size, softcap, alibi_slopes
    options = shared_options(*shared, others)
    dropout_p, rng = dropout_of(dropout_p, q, return_attn_probs)
    result = attention(
        q, k, v, deterministic=deterministic, return_lse=return_attn_probs, num_splits=num_splits,
        dropout_p=dropout_p, rng=rng, **options,
    )  # fmt: skip
    if not return_attn_probs:
        return result
    return *result, shown_weights(q, k, dropout_p, rng, **options)


def flash_attn_qkvpacked_func(
    qkv: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = NO_WINDOW,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
):
    """``flash_attn_func`` of qkv (B, S, 3, H, D), without copies."""
    q, k, v = unpacked("qkv", qkv, 3)
    tail = (softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic)
    return flash_attn_func(q, k, v, dropout_p, *tail, return_attn_probs)


def flash_attn_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: Window = NO_WINDOW,
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
):
    """``flash_attn_func`` of q (B, Sq, H, D) and kv (B, Sk, 2, Hk, D), without copies."""
    k, v = unpacked("kv", kv, 2)
    tail = (softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic)
    return flash_attn_func(q, k, v, dropout_p, *tail, return_attn_probs)


def unpacked(name: str, packed: torch.Tensor, count: int, *rows: str) -> tuple[torch.Tensor, ...]:
    """The ``count`` tensors that lie side by side in ``packed`` (rows..., count, H, D), as views.

    rows: what errors call its first dimensions, by default B, S.
    """
    axes = rows or ("B", "S")
    if isinstance(packed, torch.Tensor):
        check_dense(name, packed)
        if packed.dim() == len(axes) + 3 and packed.shape[-3] == count:
            return packed.unbind(dim=-3)
    shape = tuple(getattr(packed, "shape", ()))
    raise ValueError(f"{name} of shape {shape} must be ({', '.join(axes)}, {count}, H, D)")
