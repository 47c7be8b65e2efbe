"""torch's flex_attention, by ``attention``: with gradients on CPUs too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .checks import check_ranks
from .functional import attention

# BLOCK_SIZE of the BlockMask that torch makes of none: one block of everything.
_UNBOUNDED = 2**30
# What scores are multiplied by, so that their log-sum-exp is their maximum (``_largest_scores``).
_COLDNESS = 2.0**30


def flex_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    score_mod: Callable | None = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: Mapping[str, Any] | None = None,
    *,
    return_aux: Any = None,
):
    """torch.nn.attention.flex_attention.flex_attention's signature and conventions.

    query (B, H, Sq, D), key (B, Hk, Sk, D), value (B, Hk, Sk, Dv); Hk < H with ``enable_gqa``; key
    and value of one entry serve all. score_mod(score, b, h, q_idx, k_idx), block_mask: as
    ``attention`` takes them, torch's BlockMask or ours. kernel_options: of torch's kernels, read by
    nobody here. Returns out (B, H, Sq, Dv); with ``return_lse`` (out, lse (B, H, Sq)), with
    return_aux, an AuxRequest, (out, AuxOutput): lse, float32 and differentiable, and max_scores,
    which take a second call. Compiled or not, on every target, tensors that score_mod captured
    learn as they do by ``attention``.
    """
    check_ranks(query=query, key=key, value=value)
    if query.ndim != 4:
        raise ValueError(f"query of shape {tuple(query.shape)} must be (B, H, Sq, D)")
    if not enable_gqa and query.shape[1] != key.shape[1]:
        raise ValueError(
            f"query has {query.shape[1]} heads, key has {key.shape[1]}: set enable_gqa=True"
        )
    if return_lse and return_aux is not None:
        raise ValueError("return_lse and return_aux together: ask for AuxRequest(lse=True) alone")
    key, value = (x.expand(len(query), -1, -1, -1) if len(x) == 1 else x for x in (key, value))
    given = (query, key, value, scale, None if _lists_all(block_mask) else block_mask)
    out, lse = _flex(*given, score_mod)
    if return_aux is None:
        return (out, lse) if return_lse else out
    from torch.nn.attention.flex_attention import AuxOutput

    return out, AuxOutput(
        lse=lse if return_aux.lse else None,
        max_scores=_largest_scores(*given, score_mod) if return_aux.max_scores else None,
    )


def _flex(q, k, v, scale, block_mask, score_mod) -> tuple[torch.Tensor, torch.Tensor]:
    return attention(
        q, k, v, softmax_scale=scale, score_mod=score_mod, block_mask=block_mask, layout="bhsd",
        return_lse=True,
    )  # fmt: skip


def _lists_all(block_mask: Any) -> bool:
    """Whether this is torch's BlockMask of calls that have none."""
    return getattr(block_mask, "BLOCK_SIZE", None) == (_UNBOUNDED, _UNBOUNDED)


def _largest_scores(q, k, v, scale, block_mask, score_mod) -> torch.Tensor:
    """The largest score of each row (B, H, Sq), -inf without keys.

    log(sum(exp(t s))) / t is between max(s) and max(s) + log(keys) / t; t is ``_COLDNESS``.
    """

    def cold(score, b, h, q_idx, k_idx):
        score = score if score_mod is None else score_mod(score, b, h, q_idx, k_idx)
        return score * _COLDNESS

    with torch.no_grad():
        _, lse = _flex(q, k, v[..., : min(v.shape[-1], 8)], scale, block_mask, cold)
    return lse / _COLDNESS
