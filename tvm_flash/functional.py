"""The general door to attention, and torch's scaled_dot_product_attention through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

from .checks import DTYPES, check_alibi, check_attention, check_scale
from .ops import attention_operator
from .program import ScoreProgram
from .score_mod import trace_mask_mod, trace_score_mod
from .spec import AttentionSpec

LAYOUTS = ("bshd", "bhsd")
ALIGNMENTS = ("bottom_right", "top_left")


@dataclass(frozen=True, eq=False)
class Captured:
    """A traced score_mod and mask_mod with their captured tensors, from ``capture``."""

    score_mod: ScoreProgram | None
    mask_mod: ScoreProgram | None
    score_tables: tuple[torch.Tensor, ...] = ()
    mask_tables: tuple[torch.Tensor, ...] = ()


def capture(score_mod: Callable | None = None, mask_mod: Callable | None = None) -> Captured:
    """Trace the functions once; pass the result as ``score_mod`` of ``attention``.

    Needed inside torch.compile, which cannot trace a tracer; saves the tracing (about 0.2 ms) in
    eager code. Captured tensors are read when the kernel runs, other captured values now.
    """
    score, score_tables = trace_score_mod(score_mod) if score_mod else (None, [])
    mask, mask_tables = trace_mask_mod(mask_mod) if mask_mod else (None, [])
    return Captured(score, mask, tuple(score_tables), tuple(mask_tables))


_PLAIN = Captured(None, None)


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    score_mod: Callable | Captured | None = None,
    mask_mod: Callable | None = None,
    layout: str = "bshd",
    alignment: str = "bottom_right",
    deterministic: bool = False,
    return_lse: bool = False,
):
    """softmax(score_mod(q k^T * softmax_scale)) v, with any score_mod and mask_mod, differentiable.

    q (B, Sq, H, D), k (B, Sk, Hk, D), v (B, Sk, Hk, Dv), float32, bfloat16 or float16, any strides
    (a last dimension that is not contiguous is copied); with ``layout="bhsd"`` (B, H, S, D). H is a
    multiple of Hk (GQA, MQA); D and Dv from 8 to 512. softmax_scale: default 1 / sqrt(D).
    causal, window_size (left, right; -1 open, inclusive): ``alignment`` "bottom_right" puts the last
    query on the last key (FlashAttention), "top_left" the first on the first (torch). softcap:
    cap * tanh(s / cap). alibi_slopes (H,) or (B, H) float32. score_mod(score, b, h, q_idx, k_idx)
    and mask_mod(b, h, q_idx, k_idx) as in FlexAttention: torch operations, captured tensors indexed
    by symbols. Order: scale, softcap, ALiBi, score_mod, masks. The backward is always deterministic.

    Returns out (B, Sq, H, Dv) in q's dtype and layout, and with ``return_lse`` also lse (B, H, Sq),
    float32, natural log, differentiable. Rows that see no key give 0 and -inf. Raises ValueError or
    TypeError for wrong arguments, UnsupportedSpec for what kernels cannot do.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"{layout=} must be one of {', '.join(LAYOUTS)}")
    if layout == "bhsd":
        q, k, v = (_swapped(x) for x in (q, k, v))
    check_attention(q, k, v)
    mods = _captured(score_mod, mask_mod)
    slopes = ()
    if alibi_slopes is not None:
        slopes = (check_alibi(alibi_slopes, q.shape[0], q.shape[2]),)
    spec = _spec(
        DTYPES[q.dtype], q.shape[3], v.shape[3], bool(causal), tuple(window_size), softcap,
        bool(slopes), mods.score_mod, mods.mask_mod, alignment,
    )  # fmt: skip
    tables = [*slopes, *mods.score_tables, *mods.mask_tables]
    scale = check_scale(softmax_scale, q.shape[3])
    out, lse = attention_operator(q, k, v, tables, spec, scale)
    out = out.transpose(1, 2) if layout == "bhsd" else out
    return (out, lse) if return_lse else out


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """torch.nn.functional.scaled_dot_product_attention's signature and conventions.

    query (..., H, Sq, D), key and value (..., Hk, Sk, D | Dv) with any number of leading dimensions;
    is_causal is aligned top-left. attn_mask broadcasts to (..., H, Sq, Sk): bool (True takes part) or
    a float bias, without gradient. dropout_p > 0 raises NotImplementedError.
    """
    if dropout_p:
        raise NotImplementedError(f"{dropout_p=} must be 0: dropout is not there yet")
    if attn_mask is not None and is_causal:
        raise ValueError("attn_mask and is_causal exclude each other: put the causal mask into attn_mask")
    if query.dim() < 2 or query.dim() != key.dim() or query.dim() != value.dim():
        shapes = tuple(tuple(x.shape) for x in (query, key, value))
        raise ValueError(f"query, key, value of shapes {shapes} must have the same rank, 3 or more")
    lead = query.shape[:-3]
    q, k, v = (_four_dimensional(x) for x in (query, key, value))
    if not enable_gqa and q.shape[1] != k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads and {k.shape[1]} key heads need enable_gqa=True")
    mods = _mask_mods(attn_mask, lead, q, k) if attn_mask is not None else None
    out = attention(
        q, k, v, softmax_scale=scale, causal=is_causal, score_mod=mods, layout="bhsd", alignment="top_left"
    )
    return out.reshape(*query.shape[:-1], value.shape[-1])


@lru_cache(maxsize=4096)
def _spec(
    dtype, head_dim, head_dim_v, causal, window_size, softcap, alibi, score_mod, mask_mod, alignment
) -> AttentionSpec:
    return AttentionSpec(
        dtype, head_dim, head_dim_v, causal, window_size, softcap, alibi, score_mod, mask_mod, alignment
    )


def _captured(score_mod, mask_mod) -> Captured:
    if score_mod is None and mask_mod is None:
        return _PLAIN
    if isinstance(score_mod, Captured):
        if mask_mod is not None:
            raise TypeError("score_mod is a captured pair already: give mask_mod to capture() too")
        return score_mod
    return capture(score_mod, mask_mod)


def _swapped(x: torch.Tensor) -> torch.Tensor:
    if not isinstance(x, torch.Tensor) or x.dim() != 4:
        raise ValueError("layout='bhsd' takes tensors with 4 dimensions (B, H, S, D)")
    return x.transpose(1, 2)


def _four_dimensional(x: torch.Tensor) -> torch.Tensor:
    """(..., H, S, D) as (B, H, S, D); (S, D) is one head."""
    x = x.unsqueeze(0) if x.dim() == 2 else x
    return x.unsqueeze(0) if x.dim() == 3 else x.flatten(0, -4)


def _mask_mods(mask: torch.Tensor, lead, q: torch.Tensor, k: torch.Tensor) -> Captured:
    """attn_mask as a mask_mod (bool) or a score_mod (bias) that reads it as a captured table."""
    full = (*lead, q.shape[1], q.shape[2], k.shape[2])
    try:
        table = _four_dimensional(mask.expand(full))
    except RuntimeError as error:
        raise ValueError(f"attn_mask of shape {tuple(mask.shape)} must broadcast to {full}") from error
    if mask.dtype == torch.bool:
        return capture(mask_mod=lambda b, h, q_idx, k_idx: table[b, h, q_idx, k_idx])
    if not mask.dtype.is_floating_point:
        raise TypeError(f"attn_mask.dtype={mask.dtype} must be torch.bool or floating point")
    return capture(lambda score, b, h, q_idx, k_idx: score + table[b, h, q_idx, k_idx])
