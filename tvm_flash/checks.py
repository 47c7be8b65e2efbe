"""Every check of arguments, made before any kernel is looked for or run."""

from __future__ import annotations

import math

import torch

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}

# Positions are int32 in kernels, with room for a window on either side.
MAX_SEQLEN = 2**30
MAX_BYTES = 2**63


def check_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """TypeError or ValueError unless q (B, Sq, H, D), k (B, Sk, Hk, D), v (B, Sk, Hk, Dv) fit."""
    for name, x in (("q", q), ("k", k), ("v", v)):
        _check_tensor(name, x)
    for name, x in (("k", k), ("v", v)):
        if x.dtype != q.dtype:
            raise TypeError(f"{name}.dtype={x.dtype} differs from q.dtype={q.dtype}: cast one")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}, q on {q.device}: move one")
        if x.shape[0] != q.shape[0]:
            raise ValueError(f"batch of {name} is {x.shape[0]}, of q {q.shape[0]}: they must be equal")
    if k.shape[1] != v.shape[1]:
        raise ValueError(f"k has {k.shape[1]} keys, v {v.shape[1]}: they must be equal")
    if k.shape[3] != q.shape[3]:
        raise ValueError(f"head_dim of k is {k.shape[3]}, of q {q.shape[3]}: they must be equal")
    if k.shape[2] != v.shape[2]:
        raise ValueError(f"k has {k.shape[2]} heads, v {v.shape[2]}: they must be equal")
    _check_heads(q.shape[2], k.shape[2])
    _check_sizes(q, k, v)


def check_scale(softmax_scale: float | None, head_dim: int) -> float:
    """The scale as a float; None is 1 / sqrt(head_dim)."""
    if softmax_scale is None:
        return head_dim**-0.5
    scale = float(softmax_scale)
    if not math.isfinite(scale):
        raise ValueError(f"softmax_scale={softmax_scale} must be finite")
    return scale


def check_alibi(slopes: torch.Tensor, batch: int, heads: int) -> torch.Tensor:
    """``slopes`` (H,) or (B, H) as a float32 (B, H) view."""
    if not isinstance(slopes, torch.Tensor):
        raise TypeError(f"alibi_slopes must be a tensor, not {type(slopes).__name__}")
    if slopes.dtype != torch.float32:
        raise TypeError(f"alibi_slopes.dtype={slopes.dtype} must be torch.float32")
    if tuple(slopes.shape) not in ((heads,), (batch, heads)):
        raise ValueError(
            f"alibi_slopes has shape {tuple(slopes.shape)}, must be ({heads},) or ({batch}, {heads})"
        )
    if slopes.requires_grad:
        raise NotImplementedError("alibi_slopes requires grad: its gradient is not computed, detach it")
    return slopes.expand(batch, heads)


def _check_tensor(name: str, x: torch.Tensor) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    if x.dim() != 4:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, must have 4 dimensions (B, S, H, D)")
    if x.dtype not in DTYPES:
        known = ", ".join(map(str, DTYPES))
        raise TypeError(f"{name}.dtype={x.dtype} must be one of {known}")
    if x.layout != torch.strided:
        raise TypeError(f"{name}.layout={x.layout} must be torch.strided: call .to_dense()")
    if x.device.type not in ("cpu", "meta"):
        raise ValueError(
            f"{name} is on {x.device}, kernels are built for the CPU: call {name}.cpu()"
        )


def _check_heads(heads: int, kv_heads: int) -> None:
    if kv_heads == 0 and heads == 0:
        return
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(
            f"num_heads={heads} of q must be a multiple of num_kv_heads={kv_heads} of k and v"
        )


def _check_sizes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    for name, length in (("q", q.shape[1]), ("k", k.shape[1])):
        if length > MAX_SEQLEN:
            raise ValueError(f"{name} has {length} rows, limit {MAX_SEQLEN} (2**30)")
    for name, x in (("q", q), ("k", k), ("v", v)):
        reach = sum(max(int(n) - 1, 0) * abs(int(s)) for n, s in zip(x.shape, x.stride(), strict=True))
        if max(reach, math.prod(map(int, x.shape))) * x.element_size() >= MAX_BYTES:
            raise ValueError(
                f"{name} of shape {tuple(x.shape)} reaches over {reach} elements: "
                "offsets must stay below 2**63 bytes"
            )
