"""Attention by plain torch operations in any precision: the numeric oracle and the baseline."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .problem import dropout
from .score import variants


def attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    dropout_p: float = 0.0,
    rng: torch.Tensor | None = None,
    upcast: torch.dtype | None = None,
    **options,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """out (B, Sq, H, Dv), lse (B, H, Sq) of q (B, Sq, H, D), k (B, Sk, Hk, D), v (B, Sk, Hk, Dv).

    Computed in ``upcast`` (torch.float64: the oracle) or in the inputs' own dtype (None: what
    PyTorch gives without a fused kernel). Stores every Sq x Sk array; differentiable by autograd,
    without NaN for rows that see no key (out 0, lse -inf). options: those of
    ``weights_reference``. softmax="sigmoid" has no lse: None. Weights are dropped with the
    probability dropout_p, by the seed and offset in ``rng`` (2,) int64 (``problem.dropout``).
    """
    if upcast is not None:
        q, k, v = q.to(upcast), k.to(upcast), v.to(upcast)
    weights, lse = weights_reference(q, k, **options)
    if dropout_p:
        kept = kept_weights(weights, dropout_p, rng)
        weights = weights * kept.to(weights.dtype) * dropout.factor_of(dropout_p)
    v = v.repeat_interleave(q.shape[2] // v.shape[2], dim=2).transpose(1, 2)
    return (weights @ v).transpose(1, 2), lse


def kept_weights(weights: torch.Tensor, dropout_p: float, rng: torch.Tensor) -> torch.Tensor:
    """Which of ``weights`` (B, H, Sq, Sk) dropout keeps, bool."""
    kept = dropout.kept(dropout_p, rng.tolist(), tuple(weights.shape))
    return torch.from_numpy(kept).to(weights.device)


def weights_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    score_mod: Callable | None = None,
    mask_mod: Callable | None = None,
    alignment: str = "bottom_right",
    softmax: str = "softmax",
    sink: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Normalised weights (B, H, Sq, Sk) and lse (B, H, Sq) of q (B, Sq, H, D), k (B, Sk, Hk, D).

    User functions are the originals, called on index tensors that broadcast: b (B,1,1,1),
    h (1,H,1,1), q_idx (1,1,Sq,1), k_idx (1,1,1,Sk).
    """
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    group = q.shape[2] // k.shape[2]
    keys = k.repeat_interleave(group, dim=2).transpose(1, 2)
    scores = (q.transpose(1, 2) @ keys.transpose(-1, -2)) * scale
    b, h, q_idx, k_idx = index_tensors(scores.shape, scores.device)
    row = q_idx + variants.alignment_offset(alignment, q.shape[1], k.shape[1])
    if softcap:
        scores = variants.softcap(softcap)(scores, b, h, row, k_idx)
    if alibi_slopes is not None:
        slopes = alibi_slopes.to(scores.dtype).expand(scores.shape[:2])
        scores = variants.alibi(slopes)(scores, b, h, row, k_idx)
    if score_mod is not None:
        scores = score_mod(scores, b, h, q_idx, k_idx).to(scores.dtype)
    left, right = (window_size[0], 0) if causal else window_size
    if (left, right) != (-1, -1):
        scores = _masked(scores, variants.window(left, right)(b, h, row, k_idx))
    if mask_mod is not None:
        scores = _masked(scores, mask_mod(b, h, q_idx, k_idx))
    if softmax == "sigmoid":
        return scores.sigmoid(), None
    if sink is None and softmax == "softmax":
        return _softmax(scores)
    weights, lse = _softmax(_with_sink(scores, sink))
    return weights[..., :-1], lse


def index_tensors(
    shape, device=None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """b, h, q_idx, k_idx of scores (B, H, Sq, Sk), one dimension each."""
    sizes = [[1] * n + [-1] + [1] * (3 - n) for n in range(4)]
    return tuple(
        torch.arange(n, device=device).view(size) for n, size in zip(shape, sizes, strict=True)
    )


def _masked(scores: torch.Tensor, visible) -> torch.Tensor:
    return torch.where(visible, scores, float("-inf"))


def _with_sink(scores: torch.Tensor, sink: torch.Tensor | None) -> torch.Tensor:
    """A key more, which has no value, and whose score is the head's ``sink`` (None: 0)."""
    logits = scores.new_zeros(scores.shape[1]) if sink is None else sink.to(scores.dtype)
    logits = logits[:, None, None].expand(*scores.shape[:3], 1)
    return torch.cat([scores, logits], -1)


def _softmax(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if scores.shape[-1] == 0:  # amax of nothing is an error; sums of nothing are zeros with a graph
        return scores, scores.sum(dim=-1) - float("inf")
    empty = (scores == float("-inf")).all(dim=-1, keepdim=True)
    # Rows without a key go through the softmax as zeros and are cut out after it: autograd then
    # meets no inf - inf.
    finite = torch.where(empty, torch.zeros_like(scores), scores)
    # The gradient of torch.logsumexp reads the result, which holds no logarithm beside 1e30.
    peak = finite.detach().amax(dim=-1, keepdim=True)
    lse = (finite - peak).exp().sum(dim=-1).log() + peak.squeeze(-1)
    weights = torch.where(empty, 0.0, torch.softmax(finite, dim=-1))
    return weights, torch.where(empty.squeeze(-1), float("-inf"), lse)
