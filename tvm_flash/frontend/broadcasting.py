"""Leading dimensions and heads that torch's attention lets broadcast, as views where it can be."""

from __future__ import annotations

import torch

from ..problem.size_checks import check_heads


def broadcast_leads(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """``tensors`` (..., H, S, D) with equal leading dimensions; (S, D) gets a head.

    ValueError for dimensions that do not broadcast.
    """
    q, k, v = tensors
    if q.ndim == k.ndim == v.ndim == 4 and q.shape[0] == k.shape[0] == v.shape[0]:
        return [q, k, v]  # most frequent
    q, k, v = (x[None] if x.ndim == 2 else x for x in tensors)
    if q.shape[:-3] == k.shape[:-3] == v.shape[:-3]:
        return [q, k, v]
    shapes = [tuple(x.shape[:-3]) for x in (q, k, v)]
    try:
        lead = torch.broadcast_shapes(*shapes)
    except RuntimeError:
        raise ValueError(
            f"leading dimensions {shapes} of query, key and value must broadcast: make them equal"
        ) from None
    return [x.expand(*lead, *x.shape[-3:]) for x in (q, k, v)]


def share_heads(q, k, v, enable_gqa: bool) -> list[torch.Tensor]:
    """q, k, v (B, H, S, D) where each head of k and v serves equally many of q.

    ValueError for numbers of heads that neither broadcast nor, with ``enable_gqa``, divide.
    """
    heads, key_heads, value_heads = q.shape[1], k.shape[1], v.shape[1]
    if key_heads == value_heads and (heads == key_heads or key_heads == 1 or enable_gqa):
        return [q, k, v]
    if enable_gqa:
        return [q, _repeated(k, heads), _repeated(v, heads)]
    most = max(heads, key_heads, value_heads)
    for name, count in (("key", key_heads), ("value", value_heads)):
        if not {heads, count} <= {1, most}:
            raise ValueError(
                f"query has {heads} heads, {name} {count}: pass enable_gqa=True to share heads"
            )
    return [x.expand(-1, most, -1, -1) for x in (q, k, v)]


def _repeated(x: torch.Tensor, heads: int) -> torch.Tensor:
    check_heads(heads, x.shape[1])
    return x.repeat_interleave(heads // x.shape[1], dim=1) if heads else x
