"""What FlashAttention's functions return as S_dmask: the weights, with the pattern of dropout."""

from __future__ import annotations

from typing import Any

import torch

from ..reference import kept_weights, weights_reference
from .values import as_dropout, as_window


def dropout_of(dropout_p, q: torch.Tensor, is_shown: bool) -> tuple:
    """dropout_p and rng of a call: seed and offset are drawn here where the weights are shown."""
    is_shown = is_shown and isinstance(q, torch.Tensor)  # what is none is refused later
    return as_dropout(dropout_p, None, q) if is_shown else (dropout_p, None)


def shown_weights(q, k, dropout_p: float, rng, lengths: tuple | None = None, **options: Any):
    """Normalised weights (B, H, Sq, Sk), negative where dropped; None without dropout.

    For tests, of every array in memory: q (B, Sq, H, D), k (B, Sk, Hk, D), or packed with
    ``lengths`` = cu_seqlens_q, cu_seqlens_k, whose longest are Sq and Sk; 0 outside. options: of
    ``attention``.
    """
    if not dropout_p:
        return None
    options["window_size"] = as_window(options["window_size"])
    with torch.no_grad():
        if lengths is None:
            weights = weights_reference(q, k, **options)[0]
        else:
            weights = _padded(q, k, *(x.tolist() for x in lengths), options)
        return torch.where(kept_weights(weights, dropout_p, rng), weights, -weights)


def _padded(q, k, starts_q: list[int], starts_k: list[int], options) -> torch.Tensor:
    """The weights of packed sequences, each alone, in one array."""
    slopes = options.pop("alibi_slopes")
    found = [
        weights_reference(
            q[None, first_q:past_q], k[None, first_k:past_k],
            alibi_slopes=slopes[b] if slopes is not None and slopes.ndim == 2 else slopes,
            **options,
        )[0]
        for b, (first_q, past_q, first_k, past_k) in enumerate(
            zip(starts_q, starts_q[1:], starts_k, starts_k[1:], strict=False)
        )
    ]  # fmt: skip
    longest = [max((x.shape[axis] for x in found), default=0) for axis in (2, 3)]
    weights = q.new_zeros(len(found), q.shape[1], *longest)
    for b, own in enumerate(found):
        weights[b, :, : own.shape[2], : own.shape[3]] = own[0]
    return weights
