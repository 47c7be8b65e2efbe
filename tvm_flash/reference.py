"""Attention by plain torch operations in any precision: the numeric oracle and the baseline."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .problem import dropout
from .problem.block_mask import FULL, HIDDEN, PARTIAL, BlockMask
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
    bias: torch.Tensor | None = None,
    block_mask: BlockMask | None = None,
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
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    if score_mod is not None:
        scores = score_mod(scores, b, h, q_idx, k_idx).to(scores.dtype)
    ends = [None if end == -1 else end for end in window_size]
    left, right = ends[0], 0 if causal else ends[1]
    if (left, right) != (None, None):
        scores = _masked(scores, variants.window(left, right)(b, h, row, k_idx))
    if mask_mod is not None:
        scores = _masked(scores, mask_mod(b, h, q_idx, k_idx))
    if block_mask is not None:
        scores = _masked(scores, _in_blocks(block_mask, b, h, q_idx, k_idx))
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


def _in_blocks(mask: BlockMask, b, h, q_idx, k_idx) -> torch.Tensor:
    """Which pairs are in visited blocks, and not hidden there."""
    entries, heads = mask.shape[:2]
    states = torch.stack([mask.states(n, m) for n in range(entries) for m in range(heads)])
    states = states.to(q_idx.device).unflatten(0, (entries, heads))
    own = b.clamp(max=entries - 1), h.clamp(max=heads - 1)
    state = states[(*own, q_idx // mask.block[0], k_idx // mask.block[1])]
    if mask.mask_mod is None:
        return state != HIDDEN
    return (state == FULL) | ((state == PARTIAL) & mask.mask_mod(b, h, q_idx, k_idx))


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


def linear_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    causal: bool = False,
    decay: torch.Tensor | None = None,
    normalize: bool = True,
    scale: float = 1.0,
    initial_state: torch.Tensor | None = None,
    upcast: torch.dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out (B, Sq, H, Dv) and the state (B, H, D, Dv + 1) of ``linear_attention``, of features.

    By every product of a query and a key, as ``attention_reference`` does it.
    """
    dtype = upcast or q.dtype
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q, k, v))
    v = torch.nn.functional.pad(v, (0, 1), value=1.0)
    rates = q.new_ones(q.shape[1]) if decay is None else decay.to(dtype)
    rows, keys = (torch.arange(x.shape[2], device=q.device) for x in (q, k))
    steps = (rows[:, None] - keys) * causal
    powers = torch.where(steps >= 0, rates[:, None, None] ** steps.clamp(min=0), 0.0)
    sums = (q @ k.transpose(2, 3) * scale * powers) @ v
    past = (keys.numel() - 1 - keys) * causal
    state = (k * scale * (rates[:, None] ** past)[..., None]).transpose(2, 3) @ v
    if initial_state is not None:
        before = initial_state.to(dtype)
        sums = sums + (q * (rates[:, None] ** ((rows + 1) * causal))[..., None]) @ before
        state = state + (rates ** (keys.numel() * causal))[:, None, None] * before
    out, normalizer = sums[..., :-1], sums[..., -1:]
    if normalize:
        out = torch.where(normalizer == 0, 0.0, out / normalizer)
    return out.transpose(1, 2), state
