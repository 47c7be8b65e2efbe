"""Every check of arguments, made before any kernel is looked for or run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from ..problem.arguments import arguments, call_sizes, named_sizes, shape_of
from ..problem.dtype import DTYPES
from ..problem.option_checks import check_sink_shape, check_slopes_shape, check_softmax
from ..problem.size_checks import check_sizes
from ..problem.spec import AttentionSpec
from ..score.gradients import missing_gradient, wants_gradient
from ..score.layouts import check_dense
from .spec_names import spec_of

NAMES = {row.torch: name for name, row in DTYPES.items()}
DEVICES = ("cpu", "cuda", "meta")


def check_tensors(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rank_q: int = 4, rank: int = 4
) -> None:
    """Raise unless q, and k and v of ``rank``, are alike in all but their sizes.

    TypeError: not a tensor, dtype, memory layout. NotImplementedError: device. ValueError: rank.
    """
    if not _are_alike_on_cpu(q, k, v, rank_q, rank):
        check_first(q, rank_q)
        check_alike("k", k, q, rank)
        check_alike("v", v, q, rank)


def check_operator_call(q, k, v, tables) -> None:
    """Raise as check_tensors and check_sizes unless an operator's tensors fit each other.

    For callers of operators that skip ``attention``; the kernel compares the tensors with its spec.
    """
    check_tensors(q, k, v)
    check_sizes(q.shape, k.shape, v.shape)
    check_tables(tables, q, k)


def as_softmax(softmax: str, sink, q: torch.Tensor, return_lse: bool) -> tuple:
    """The kind of softmax that a call asks for by both, and its sink (H,) float32, or None.

    ValueError, TypeError for what does not go together, or a sink that is none.
    """
    check_softmax(softmax, sink is not None, return_lse)
    if sink is None:
        return softmax, None
    if not isinstance(sink, torch.Tensor):
        raise TypeError(f"sink must be a tensor, not {type(sink).__name__}")
    check_dense("sink", sink)
    if not sink.is_floating_point():
        raise TypeError(f"{sink.dtype=} must be floating point")
    check_sink_shape(sink.shape, q.shape[-2])
    if sink.device != q.device:
        raise _on_another_device("sink", sink, q)
    return "sink", sink.float()


def check_sink(spec: AttentionSpec, sink: torch.Tensor | None, q: torch.Tensor) -> None:
    """Raise unless ``sink`` (H,) float32 beside q is there where ``spec`` has one, not else."""
    if (spec.softmax == "sink") != (sink is not None):
        wanted = "needs sink" if sink is None else "takes no sink"
        raise ValueError(f"softmax={spec.softmax!r} of the spec {wanted}")
    if sink is not None:
        check_dense("sink", sink)
        check_like("sink", sink, (q.shape[-2],), torch.float32, q)


def check_rng(spec: AttentionSpec, rng: torch.Tensor | None, q: torch.Tensor) -> None:
    """Raise unless ``rng`` (2,) int64 beside q is there where ``spec`` has dropout, not else."""
    if spec.dropout != (rng is not None):
        wanted = "needs rng" if rng is None else "takes no rng"
        raise ValueError(f"dropout={spec.dropout} of the spec {wanted}")
    if rng is not None:
        check_dense("rng", rng)
        check_like("rng", rng, (2,), torch.int64, q)


def check_tables(tables, q: torch.Tensor, k: torch.Tensor) -> None:
    """Raise unless captured ``tables`` are dense, beside q and, where there is work, not empty."""
    for table in tables or ():
        check_dense("mask or captured tensor", table)
        if table.device != q.device:
            name = f"mask or captured tensor of shape {tuple(table.shape)}"
            raise _on_another_device(name, table, q)
        if table.numel() == 0 and q.numel() and k.numel():
            # A clamped index would read outside it.
            raise ValueError(f"captured tensor of shape {tuple(table.shape)} must have elements")


def check_backward_call(given: Mapping[str, Any]) -> None:
    """``check_operator_call``; ValueError, TypeError unless the rest is like the results.

    given: the backward operator's parameters by name. What is optional may be None, or, saved by a
    forward that had none of it, without elements.
    """
    q, k, v = given["q"], given["k"], given["v"]
    check_operator_call(q, k, v, given["tables"])
    sizes = (given["spec"], q.shape, v.shape)
    try:
        expected = _expected(*sizes)
    except TypeError:  # symbolic sizes have no hash
        expected = _expected.__wrapped__(*sizes)
    for name, shape, dtype, empty in expected:
        x = given.get(name)
        if x is not None:
            check_like(name, x, shape if x.shape != empty else empty, dtype, q)


def check_like(name: str, x: torch.Tensor, shape, dtype: torch.dtype, q: torch.Tensor) -> None:
    """Raise unless ``x`` has this shape and dtype, beside q."""
    if x.device != q.device:
        raise _on_another_device(name, x, q)
    if x.dtype is not dtype:
        raise TypeError(f"{name}.dtype={x.dtype} must be {dtype}: convert it")
    if x.shape != shape:
        raise ValueError(f"{name} of shape {tuple(x.shape)} must be of shape {shape}")


@lru_cache(maxsize=1024)
def _expected(text: str, query, value) -> list[tuple]:
    """Name, shape and dtype of what the backward of a spec is given beside q, k and v.

    Last, its shape where it is without elements, which only the optional may be.
    """
    values = named_sizes(call_sizes(query, value)) | {"D": query[3], "Dv": value[3]}
    return [
        (
            a.name,
            shape_of(a, values),
            getattr(torch, a.dtype),
            (query[0], 0) if a.optional else None,
        )
        for a in arguments(spec_of(text), "backward")
        if a.role in ("input", "saved") and a.name not in ("q", "k", "v") and not a.is_table
    ]


def check_captured(tables) -> None:
    """NotImplementedError for a view, made without gradients, of a tensor that wants one."""
    for number, table in enumerate(tables):
        base = table._base
        if base is not None and table.grad_fn is None and wants_gradient(base):
            raise NotImplementedError(missing_gradient(f"captured tensor {number}", table))


def check_learned(spec: AttentionSpec, learned: Sequence[int], tables) -> None:
    """ValueError unless scores have derivatives by the tables ``learned``, numbers."""
    for n in learned:
        if n not in spec.differentiable_tables:
            raise ValueError(
                f"a captured tensor of shape {tuple(tables[n].shape)} requires grad, and scores "
                "follow from it by integers, conditions or a mask, which have no derivative: pass "
                "its .detach()"
            )


def check_alibi(slopes: torch.Tensor, device: torch.device, batch: int, heads: int) -> torch.Tensor:
    """``slopes`` (H,) or (B, H) float32 on q's device, as a (B, H) view."""
    if not isinstance(slopes, torch.Tensor):
        raise TypeError(f"alibi_slopes must be a tensor, not {type(slopes).__name__}")
    check_dense("alibi_slopes", slopes)
    if slopes.dtype != torch.float32:
        raise TypeError(f"{slopes.dtype=} of alibi_slopes must be torch.float32: call .float()")
    if slopes.device != device:
        raise ValueError(f"alibi_slopes is on {slopes.device}, q on {device}: move one")
    check_slopes_shape(slopes.shape, batch, heads)
    return slopes.expand(batch, heads)


def check_attn_mask(mask: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """``mask``, bool or floating point, as a view of ``shape`` (..., H, Sq, Sk)."""
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"attn_mask must be a tensor, not {type(mask).__name__}")
    check_dense("attn_mask", mask)
    if mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        raise TypeError(f"{mask.dtype=} of attn_mask must be torch.bool or floating point")
    sizes = (1,) * (len(shape) - mask.ndim) + tuple(mask.shape)
    if mask.ndim > len(shape) or any(n != 1 and n != m for n, m in zip(sizes, shape, strict=True)):
        raise ValueError(
            f"attn_mask of shape {tuple(mask.shape)} must broadcast to (..., H, Sq, Sk) = {shape}"
        )
    return mask.expand(shape)


def check_ranks(**tensors: torch.Tensor) -> None:
    """TypeError or ValueError unless all are tensors of rank 2 (one head) or more."""
    for name, x in tensors.items():
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
        if x.ndim < 2:
            raise ValueError(f"{name} of rank {x.ndim} must have 2 or more dimensions: (..., S, D)")


def check_all_dense(**tensors: torch.Tensor) -> None:
    """TypeError names a nested or sparse tensor; for calls that have failed, being slow."""
    for name, x in tensors.items():
        if isinstance(x, torch.Tensor):
            check_dense(name, x)


def _are_alike_on_cpu(q, k, v, rank_q: int, rank: int) -> bool:
    """All of ``check_tensors`` for the frequent case, in a third of the time of one by one.

    It passes nested tensors of strided layout, whose shapes cannot be read: to ask for them takes
    4 % of a small call, so that ``check_all_dense`` does when reading has failed.
    """
    return (
        isinstance(q, torch.Tensor)
        and isinstance(k, torch.Tensor)
        and isinstance(v, torch.Tensor)
        and q.ndim == rank_q
        and k.ndim == v.ndim == rank
        and q.dtype in NAMES
        and q.dtype is k.dtype is v.dtype
        and q.is_cpu
        and k.is_cpu
        and v.is_cpu
        and q.layout is k.layout is v.layout is torch.strided
    )


def check_first(q: torch.Tensor, rank: int = 4) -> None:
    """Raise unless q is a dense tensor of this rank, a dtype and a device that kernels have."""
    _check_tensor("q", q, rank)
    if q.dtype not in NAMES:
        known = ", ".join(map(str, NAMES))
        raise TypeError(f"q.dtype={q.dtype} must be one of {known}: convert with q.to()")
    if q.device.type not in DEVICES:
        raise NotImplementedError(
            f"q.device={q.device}: there are kernels for cpu and cuda; call q.cpu() or q.cuda()"
        )


def check_alike(name: str, x: torch.Tensor, q: torch.Tensor, rank: int = 4) -> None:
    """Raise unless ``x`` is a dense tensor of this rank, of q's dtype and device."""
    _check_tensor(name, x, rank)
    if x.dtype != q.dtype:
        raise TypeError(f"{name}.dtype={x.dtype} differs from q.dtype={q.dtype}: convert one")
    if x.device != q.device:
        raise ValueError(f"{name}.device={x.device} differs from q.device={q.device}: move one")


# What the last dimensions of a tensor are.
_AXES = {
    3: "rows of all sequences, heads, head_dim",
    4: "batch, sequence, heads, head_dim",
}


def _check_tensor(name: str, x: torch.Tensor, rank: int) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    check_dense(name, x)
    if x.ndim != rank:
        hint = " (packed rows go with cu_seqlens_q and cu_seqlens_k)" if x.ndim == 3 else ""
        raise ValueError(
            f"{name} of shape {tuple(x.shape)} has {x.ndim} dimensions, must have {rank}: "
            f"{_AXES[rank]}{hint}"
        )


def _on_another_device(name: str, x: torch.Tensor, q: torch.Tensor) -> ValueError:
    return ValueError(f"{name} is on {x.device}, q on {q.device}: move one")
