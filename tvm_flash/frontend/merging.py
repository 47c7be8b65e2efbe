"""Attention over several sets of keys from the attention over each."""

from __future__ import annotations

from functools import reduce

import torch

from ..score.layouts import check_dense
from .packed_rows import is_readable

_LSE_DTYPES = (torch.float32, torch.float64)


def merge_states(
    out_a: torch.Tensor,
    lse_a: torch.Tensor,
    out_b: torch.Tensor,
    lse_b: torch.Tensor,
    *others: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse) over the union of disjoint sets of keys, from (out, lse) over each of them.

    out_a, out_b (B, S, H, Dv) with lse_a, lse_b (B, H, S), or packed (total, H, Dv) with
    (H, total): what ``attention(..., return_lse=True)`` gives for the same queries and a part of
    the keys. out of any floating dtype, lse float32 (natural log). others: out and lse of further
    parts, in turn; the order of parts matters to rounding only.

    Returns out in the dtype of out_a and lse float32 (float64 if given), summed in float32 or
    wider, differentiable in all. A part whose lse is -inf saw no key: its out is not read. Where
    that holds of all parts the row is 0 and its lse -inf.

    Raises TypeError, ValueError unless all parts are alike.
    """
    if len(others) % 2:
        raise TypeError(f"{len(others)} tensors of further parts must be pairs: out, lse")
    outs, lses = (out_a, out_b, *others[::2]), (lse_a, lse_b, *others[1::2])
    for number, (out, lse) in enumerate(zip(outs, lses, strict=True)):
        _check_part(number, out, lse, out_a)
    dtype = torch.promote_types(out_a.dtype, lse_a.dtype)
    weights, lse = _weights(lses, dtype)
    return _weighted_sum(outs, weights, dtype).to(out_a.dtype), lse


def _weights(lses, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The share of each part in a row, and the lse over all; shares of unseen rows are 0."""
    lses = [lse.to(dtype) for lse in lses]
    largest = reduce(torch.maximum, lses).detach()  # it cancels, so that it has no gradient
    is_unseen = largest == -torch.inf
    largest = largest.masked_fill(is_unseen, 0.0)
    shares = [torch.exp(lse - largest) for lse in lses]
    # 1 in unseen rows, for finite gradients; elsewhere at least the largest share, which is 1.
    total = reduce(torch.add, shares).masked_fill(is_unseen, 1.0)
    lse = (largest + total.log()).masked_fill(is_unseen, -torch.inf)
    return [share / total for share in shares], lse


def _weighted_sum(outs, weights, dtype: torch.dtype) -> torch.Tensor:
    """The sum of ``outs`` (..., S, H, Dv) times ``weights`` (..., H, S)."""
    total = None
    for out, weight in zip(outs, weights, strict=True):
        weight = weight.transpose(-1, -2).contiguous().unsqueeze(-1)
        out = _readable_rows(out.to(dtype), weight)
        total = out * weight if total is None else torch.addcmul(total, out, weight)
    return total


def _readable_rows(out: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``out`` with 0 in rows of weight 0: never written, they may be NaN, which 0 leaves NaN."""
    if is_readable(weight) and weight.all():
        return out
    return out.masked_fill(weight == 0, 0.0)


def _check_part(number: int, out, lse, first) -> None:
    for name, x in (("out", out), ("lse", lse)):
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} of part {number} must be a tensor, not {type(x).__name__}")
        check_dense(f"{name} of part {number}", x)
        if x.device != first.device:
            raise ValueError(f"{name} of part {number} is on {x.device}, not {first.device}")
    if not out.is_floating_point() or out.dtype != first.dtype:
        raise TypeError(
            f"out of part {number} has {out.dtype}, part 0 {first.dtype}: both must be one "
            "floating dtype"
        )
    if lse.dtype not in _LSE_DTYPES:
        raise TypeError(f"lse of part {number} has {lse.dtype}, must be torch.float32")
    if out.ndim not in (3, 4) or out.shape != first.shape:
        raise ValueError(
            f"out of part {number} has shape {tuple(out.shape)}, part 0 {tuple(first.shape)}: all "
            "must be (B, S, H, Dv), or (total, H, Dv), of the same queries"
        )
    *batch, rows, heads, _ = out.shape
    if lse.shape != (*batch, heads, rows):
        raise ValueError(
            f"lse of part {number} has shape {tuple(lse.shape)}, must be {(*batch, heads, rows)}: "
            "heads before rows"
        )
