"""torch's scaled_dot_product_attention, by ``attention``."""

from __future__ import annotations

import torch
from torch._C import _is_any_autocast_enabled

from .broadcasting import broadcast_leads, share_heads
from .captured import Captured, capture
from .checks import check_all_dense, check_attn_mask, check_ranks
from .functional import attention
from .score_inputs import learns
from .values import as_flag, as_scale, autocast


def _reads(dtype: torch.dtype) -> Captured:
    """What attn_mask of ``dtype`` becomes: a read of one captured (B, H, Sq, Sk) table."""
    table = torch.zeros(1, 1, 1, 1, dtype=dtype)
    if dtype == torch.bool:
        return capture(mask_mod=lambda b, h, q_idx, k_idx: table[b, h, q_idx, k_idx])
    return capture(lambda score, b, h, q_idx, k_idx: score + table[b, h, q_idx, k_idx])


_OF_MASK = {
    dtype: _reads(dtype)
    for dtype in (torch.bool, torch.float32, torch.bfloat16, torch.float16, torch.float64)
}


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """torch.nn.functional.scaled_dot_product_attention's signature and conventions.

    query (..., H, Sq, D), key and value (..., Hk, Sk, D | Dv) with leading dimensions that
    broadcast; is_causal is aligned top-left. attn_mask broadcasts to (..., H, Sq, Sk): bool (True
    takes part) or a float bias, differentiable; with is_causal both hold. Returns (..., H, Sq,
    Dv); 0 for rows that see no key. dropout_p, errors: as of ``attention``.
    """
    check_ranks(query=query, key=key, value=value)
    is_causal = as_flag("is_causal", is_causal)
    if _is_any_autocast_enabled():
        attn_mask = autocast(attn_mask)
    try:
        q, k, v = broadcast_leads(query, key, value)
        lead = q.shape[:-3]
        q, k, v = share_heads(*map(_four_dimensional, (q, k, v)), as_flag("enable_gqa", enable_gqa))
        mods = bias = None
        if attn_mask is not None and learns(attn_mask):
            bias = _as_bias(attn_mask, (*lead, *q.shape[1:3], k.shape[2]))
        elif attn_mask is not None:
            mods = as_mods(attn_mask, (*lead, *q.shape[1:3], k.shape[2]))
        out = attention(
            q, k, v, softmax_scale=_as_scale(scale), causal=is_causal, score_mod=mods, bias=bias,
            layout="bhsd",
            alignment="top_left" if is_causal else "bottom_right", dropout_p=dropout_p,
        )  # fmt: skip
    except (TypeError, ValueError, RuntimeError):
        check_all_dense(query=query, key=key, value=value)
        raise
    if len(lead) == 1:
        return out
    is_one_head = query.ndim == key.ndim == value.ndim == 2
    return out[0, 0] if is_one_head else out.reshape(*lead, *out.shape[1:])


def _four_dimensional(x: torch.Tensor) -> torch.Tensor:
    """(..., H, S, D) as (B, H, S, D); (S, D) is one head."""
    return x.flatten(0, -4) if x.ndim > 4 else x[(None,) * (4 - x.ndim)] if x.ndim < 4 else x


def _as_scale(scale):
    return scale if scale is None or learns(scale) else as_scale("scale", scale)


def as_mods(mask: torch.Tensor, shape: tuple[int, ...]) -> Captured:
    """attn_mask as a mask_mod (bool) or a score_mod (bias) that reads it as a captured table."""
    table = check_attn_mask(mask, shape)
    if len(shape) > 4:
        table = _with_one_lead(mask, shape).expand(-1, *shape[-3:])
    mods = _OF_MASK.get(mask.dtype) or _OF_MASK[torch.float32]
    return mods.with_tables(_four_dimensional(table))


def _as_bias(mask: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """attn_mask that wants a gradient as a bias of four dimensions."""
    check_attn_mask(mask, shape)
    return _with_one_lead(mask, shape) if len(shape) > 4 else mask


def _with_one_lead(mask: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """``mask`` with one leading dimension for those of ``shape``.

    Only what is stored of broadcast heads, rows and keys is brought together.
    """
    stored = mask[(None,) * (len(shape) - mask.ndim)]
    return stored.expand(*shape[:-3], *stored.shape[-3:]).flatten(0, -4)
