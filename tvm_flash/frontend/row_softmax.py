"""softmax and logsumexp over the last axis, by the recurrence that attention is derived from."""

from __future__ import annotations

from functools import lru_cache

import torch

from ..problem.arguments import TABLE, names
from ..problem.field_checks import HEAD_DIM_RANGE
from ..problem.spec import AttentionSpec
from ..runtime.kernels import resolve
from ..score.layouts import check_dense
from .autograd import below_autograd, differentiable
from .checks import NAMES
from .library import define, register_composed
from .placement import place_of
from .schemas import schema

_softmax = define(schema("softmax", TABLE["softmax"], (), ("bool lse_alone=False",)))
_softmax_backward = define(schema("softmax_backward", TABLE["softmax_backward"], ()))
_GIVEN = names(TABLE["softmax_backward"], "saved", "input")


def softmax(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """exp(x) / sum(exp(x)) along the last axis, in the dtype of x; differentiable.

    Maximum and sum of a row are found in one pass (Milakov, Gimelshein, "Online normalizer
    calculation for softmax", 2018), in float32. x: float32, bfloat16 or float16 of any shape. dim:
    the last axis. A row of -inf is 0, as attention's rows without a key are (torch: NaN); one with
    +inf or NaN is NaN. Raises ValueError or TypeError for other tensors.
    """
    _check(x, dim)
    return _softmax(x.reshape(-1, x.shape[-1]))[0].view(x.shape)


def logsumexp(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """log(sum(exp(x))) along the last axis, as ``softmax``; float32 whatever the dtype of x.

    -inf for a row of -inf, of which the gradient is 0; +inf for one with +inf, unless it has NaN.
    """
    _check(x, dim)
    return _softmax(x.reshape(-1, x.shape[-1]), True)[1].view(x.shape[:-1])


def _check(x: torch.Tensor, dim: int) -> None:
    if not isinstance(x, torch.Tensor) or x.dtype not in NAMES:
        given = x.dtype if isinstance(x, torch.Tensor) else type(x).__name__
        raise TypeError(f"x is {given}, must be a tensor of {', '.join(NAMES.values())}")
    check_dense("x", x)
    if x.dim() == 0 or dim not in (-1, x.dim() - 1):
        raise ValueError(f"{dim=} of {x.dim()} must be the last: move it there (x.movedim)")
    if x.shape[-1] == 0:
        raise ValueError(f"x {tuple(x.shape)} must have columns")


def _run(x: torch.Tensor, lse_alone: bool = False):
    """The operator: x (lines, columns)."""
    out, lse = _results(x, lse_alone)
    if x.shape[0]:
        kernel = resolve(_spec(x.dtype), "softmax", *place_of(x))
        kernel.function(_with_unit_stride(x), out, lse)
    return out, lse


def _with_unit_stride(x: torch.Tensor) -> torch.Tensor:
    # A single column counts as contiguous whatever its stride is.
    return x if x.stride(1) == 1 else x.clone(memory_format=torch.contiguous_format)


def _results(x: torch.Tensor, lse_alone: bool = False):
    lines = 0 if lse_alone else x.shape[0]
    return (
        x.new_empty((lines, x.shape[1])),
        x.new_empty((x.shape[0],), dtype=torch.float32),
    )


@lru_cache(maxsize=8)
def _spec(dtype: torch.dtype) -> AttentionSpec:
    """Rows have no head dimension: the least there is."""
    return AttentionSpec(dtype=NAMES[dtype], head_dim=HEAD_DIM_RANGE[0], computes="softmax")


def _save(ctx, inputs, outputs) -> None:
    out, lse = outputs
    ctx.lse_alone, ctx.count = len(inputs) > 1 and inputs[1], len(inputs)
    ctx.save_for_backward(*((inputs[0], lse) if ctx.lse_alone else (out,)))
    ctx.mark_non_differentiable(out if ctx.lse_alone else lse)


def _gradients(ctx, dout, dlse):
    if ctx.lse_alone:
        given = {"x": ctx.saved_tensors[0], "line_lse": ctx.saved_tensors[1], "dline_lse": dlse}
    else:
        given = {"shares": ctx.saved_tensors[0], "dshares": dout}
    dx = _softmax_backward(*(given.get(name) for name in _GIVEN))
    return (dx, *[None] * (ctx.count - 1))


def _run_backward(shares=None, dshares=None, x=None, line_lse=None, dline_lse=None):
    """The operator: dx of the lines of shares, or of those of x."""
    if shares is not None and _is_torchs(shares):
        return torch._softmax_backward_data(dshares, shares, -1, shares.dtype)
    dx = _gradient_result(shares, dshares, x)
    if dx.numel():
        none = dx.new_empty((0, dx.shape[1]))
        rows = (none if y is None else _with_unit_stride(y) for y in (shares, dshares, x))
        statistics = (
            none.new_empty((0,), dtype=torch.float32) if y is None else y.contiguous()
            for y in (line_lse, dline_lse)
        )  # fmt: skip
        kernel = resolve(_spec(dx.dtype), "softmax_backward", *place_of(dx))
        kernel.function(*rows, *statistics, dx)
    return dx


def _is_torchs(shares: torch.Tensor) -> bool:
    """Whether torch computes the gradient through ``shares``: on CPUs, where it is quicker."""
    return shares.device.type == "cpu"


def _gradient_result(shares=None, dshares=None, x=None, line_lse=None, dline_lse=None):
    like = x if shares is None else shares
    return like.new_empty(like.shape)


def _save_backward(ctx, inputs, dx) -> None:
    ctx.through_lse = inputs[0] is None
    ctx.save_for_backward(*(inputs[2:] if ctx.through_lse else inputs[:2]))


def _second_gradients(ctx, grad):
    """Gradients of dx by what it is made of, as torch computes them: sums over rows in float32."""
    if ctx.through_lse:
        x, lse, dlse = ctx.saved_tensors
        # exp(-inf - 0) is 0 where no element has a share.
        shares = (x.float() - lse.masked_fill(lse == -torch.inf, 0.0)[:, None]).exp()
        by_dlse = grad * shares
        by_x = by_dlse * dlse[:, None]
        return None, None, by_x.to(x.dtype), -by_x.sum(-1), by_dlse.sum(-1)
    shares, upstream = ctx.saved_tensors
    p, dp, g = (y.float() for y in (shares, upstream, grad))
    mean, mean_dp = ((p * y).sum(-1, keepdim=True) for y in (g, dp))
    by_shares = (g * (dp - mean_dp) - dp * mean).to(shares.dtype)
    return by_shares, (p * (g - mean)).to(upstream.dtype), None, None, None


register_composed(
    _softmax, _run, _results, differentiable("softmax", below_autograd(_softmax), _save, _gradients)
)
register_composed(
    _softmax_backward,
    _run_backward,
    _gradient_result,
    differentiable(
        "softmax_backward", below_autograd(_softmax_backward), _save_backward, _second_gradients
    ),
)
