"""Rotary position embedding (Su et al. 2021), with FlashAttention's conventions."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import pad

from ..errors import UnsupportedSpec
from ..problem.field_checks import HEAD_DIM_RANGE
from ..problem.lengths import MAX_SEQLEN
from ..score.layouts import check_dense, check_in_memory
from .append_ops import Angles, Places, rotated
from .checks import NAMES
from .observers import is_plain_call
from .packed_rows import (
    check_cu_seqlens,
    equal_cu_seqlens,
    is_readable,
    read,
    sequence_and_position,
)
from .values import as_flag

_INTEGERS = (torch.int32, torch.int64)


class Rotation(NamedTuple):
    """Where packed rows lie, and the position that the first of each sequence is rotated by."""

    cu_seqlens: torch.Tensor
    offsets: torch.Tensor
    places: Places


def apply_rotary(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | torch.Tensor = 0,
    cu_seqlens: torch.Tensor | None = None,
    max_seqlen: int | None = None,
) -> torch.Tensor:
    """``x`` with pairs of its first ``rotary_dim`` dimensions rotated by the angles of its rows.

    x (B, S, H, D), or packed (total, H, D) with cu_seqlens (B + 1,) int32; any floating dtype. cos,
    sin (S_ro, rotary_dim / 2), a row for each position; rotary_dim <= D, the other dimensions stay.
    A pair is (i, i + rotary_dim / 2), with ``interleaved`` (2 i, 2 i + 1). Row s of sequence b has
    position s + seqlen_offsets: an int, or (B,) int32 or int64. max_seqlen: the longest packed
    sequence, which is only checked; None if unknown.

    Returns a tensor like x, differentiable in x, cos and sin; with ``inplace`` x itself, written
    (then differentiable in x alone). Arithmetic is in float32, in float64 for float64. Rows past
    cu_seqlens[-1] stay as they are.

    Raises TypeError, ValueError for wrong arguments, among them positions that cos and sin lack.
    Positions in tensors are not read on GPUs and under torch.compile: what lies outside the table
    is then not rotated, as in FlashAttention.
    """
    interleaved, inplace = as_flag("interleaved", interleaved), as_flag("inplace", inplace)
    check_angles(x, cos, sin, packed=cu_seqlens is not None)
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, x, max_seqlen)
    elif max_seqlen is not None:
        raise ValueError(f"{max_seqlen=} is of packed sequences: give cu_seqlens too")
    _check_offsets(seqlen_offsets, x, cu_seqlens)
    check_reach(seqlen_offsets, x.shape[1] if cu_seqlens is None else cu_seqlens, len(cos))
    if _is_for_kernels(x, cos, sin, seqlen_offsets):
        with suppress(UnsupportedSpec):  # nothing can be compiled here: torch computes it
            out = _rotated_by_kernel(x, cos, sin, interleaved, seqlen_offsets, cu_seqlens)
            return x.copy_(out) if inplace else out
    cos, sin = _angles(cos, sin, x, seqlen_offsets, cu_seqlens)
    return _rotated(x, cos, sin, interleaved, x if inplace else torch.empty_like(x))


def _is_for_kernels(x, cos, sin, offsets) -> bool:
    """Whether rows of x are such as caches hold, with nobody watching and no gradient asked for."""
    low, high = HEAD_DIM_RANGE
    return (
        x.dtype in NAMES
        and low <= x.shape[-1] <= high
        and 0 < x.shape[:-2].numel() <= MAX_SEQLEN
        and not torch.compiler.is_compiling()
        and is_plain_call(x, cos, sin, [offsets] if isinstance(offsets, torch.Tensor) else ())
        and (x.is_cpu or x.is_cuda)
        and not _want_gradients(x, cos, sin)
        and (isinstance(offsets, torch.Tensor) or abs(offsets) < 2**31)
    )


def _want_gradients(*tensors: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _rotated_by_kernel(x, cos, sin, interleaved: bool, offsets, cu_seqlens) -> torch.Tensor:
    """As ``_rotated``; packed rows of no sequence stay as they are."""
    rows, out = x, None
    if cu_seqlens is None:
        cu_seqlens, rows = equal_cu_seqlens(x), x.flatten(0, 1)
    else:
        out = x.clone(memory_format=torch.contiguous_format)
    if isinstance(offsets, torch.Tensor):
        offsets = offsets.int()
    else:
        offsets = torch.full_like(cu_seqlens[1:], offsets)
    angles, places = Angles.of(cos, sin, interleaved, x.dtype), Places.one_by_one(cu_seqlens)
    return rotated(rows, places, offsets, angles, x.shape[-1], out).view(x.shape)


def rotated_queries(x, rotation: Rotation, cos, sin, interleaved: bool, head_dim_v: int):
    """As ``apply_rotary``, of checked arguments; rows of no sequence are anything.

    head_dim_v: of the cache, whose kernel does it.
    """
    cu_seqlens, offsets, places = rotation
    if not _want_gradients(x, cos, sin):
        angles = Angles.of(cos, sin, interleaved, x.dtype)
        return rotated(x, places, offsets, angles, head_dim_v)
    cos, sin = _angles(cos, sin, x, offsets, cu_seqlens)
    return _rotated(x, cos, sin, interleaved, torch.empty_like(x))


def _rotated(x, cos, sin, interleaved: bool, out: torch.Tensor) -> torch.Tensor:
    """``out``, written; it may be ``x``. cos, sin (..., 1, rotary_dim / 2)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    rotary_dim = 2 * cos.shape[-1]
    cos, sin = cos.to(wide), sin.to(wide)
    pair = _pair(rotary_dim, interleaved)
    first, second = (x[..., member].to(wide) for member in pair)
    # Both before either is written.
    values = (
        torch.addcmul(first * cos, second, sin, value=-1),
        torch.addcmul(first * sin, second, cos),
    )
    for member, value in zip(pair, values, strict=True):
        out[..., member] = value.to(x.dtype)
    if out is not x and rotary_dim < x.shape[-1]:
        out[..., rotary_dim:] = x[..., rotary_dim:]
    return out


def _pair(rotary_dim: int, interleaved: bool) -> tuple[slice, slice]:
    """Where the first and the second members of all pairs lie in a row."""
    if interleaved:
        return slice(0, rotary_dim, 2), slice(1, rotary_dim, 2)
    return slice(0, rotary_dim // 2), slice(rotary_dim // 2, rotary_dim)


def _angles(cos, sin, x, seqlen_offsets, cu_seqlens) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of cos and sin for the rows of x, (..., 1, rotary_dim / 2): alike for all heads."""
    if cu_seqlens is None and not isinstance(seqlen_offsets, torch.Tensor):
        end = seqlen_offsets + x.shape[1]
        return cos[seqlen_offsets:end, None], sin[seqlen_offsets:end, None]
    positions = _positions(x, seqlen_offsets, cu_seqlens)
    has_angle = ((positions >= 0) & (positions < len(cos)))[..., None, None]
    positions = positions.clamp(0, max(len(cos) - 1, 0))
    return (
        torch.where(has_angle, cos[positions].unsqueeze(-2), 1.0),
        torch.where(has_angle, sin[positions].unsqueeze(-2), 0.0),
    )


def _positions(x, seqlen_offsets, cu_seqlens) -> torch.Tensor:
    """The position of each row of x, (B, S) or (total,) int64; -1 for a row of no sequence."""
    if cu_seqlens is None:
        return seqlen_offsets.long()[:, None] + torch.arange(x.shape[1], device=x.device)
    sequence, position = sequence_and_position(cu_seqlens, len(x))
    if isinstance(seqlen_offsets, torch.Tensor):
        # One more, for the rows past the last sequence.
        seqlen_offsets = pad(seqlen_offsets.long(), (0, 1))[sequence]
    return torch.where(sequence < len(cu_seqlens) - 1, position + seqlen_offsets, -1)


def check_angles(x, cos, sin, *, packed: bool, names=("x", "cos", "sin")) -> None:
    """TypeError, ValueError unless cos and sin can rotate x (B, S, H, D), or (total, H, D).

    names: what the caller calls the three.
    """
    rows = names[0]
    for name, tensor in zip(names, (x, cos, sin), strict=True):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
        check_dense(name, tensor)
        if not tensor.is_floating_point():
            raise TypeError(f"{name}.dtype={tensor.dtype} must be floating point: convert it")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, {rows} on {x.device}: move one")
    if x.ndim != (3 if packed else 4):
        wanted = "(total, H, D)" if packed else "(B, S, H, D), or (total, H, D) with cu_seqlens"
        raise ValueError(f"{rows} of shape {tuple(x.shape)} must be {wanted}")
    if cos.ndim != 2 or cos.shape != sin.shape:
        raise ValueError(
            f"cos of shape {tuple(cos.shape)} and sin of shape {tuple(sin.shape)} must both be "
            "(positions, rotary_dim / 2)"
        )
    if 2 * cos.shape[1] > x.shape[-1]:
        raise ValueError(
            f"rotary_dim={2 * cos.shape[1]}, twice the columns of cos, exceeds the head_dim="
            f"{x.shape[-1]} of {rows}: give fewer columns"
        )


def _check_offsets(offsets, x, cu_seqlens) -> None:
    if not isinstance(offsets, torch.Tensor):
        if isinstance(offsets, bool) or not isinstance(offsets, (int, torch.SymInt)):
            raise TypeError(f"seqlen_offsets={offsets!r} must be an int or an integer tensor")
        return
    batch = len(x) if cu_seqlens is None else len(cu_seqlens) - 1
    check_in_memory("seqlen_offsets", offsets)
    if offsets.dtype not in _INTEGERS:
        raise TypeError(f"{offsets.dtype=} of seqlen_offsets must be torch.int32 or torch.int64")
    if offsets.shape != (batch,):
        raise ValueError(
            f"seqlen_offsets of shape {tuple(offsets.shape)} must be (batch,) = ({batch},)"
        )
    if offsets.device != x.device:
        raise ValueError(f"seqlen_offsets is on {offsets.device}, x on {x.device}: move one")


def check_reach(offsets, lengths, rows: int, name: str = "seqlen_offsets") -> None:
    """ValueError for a position outside of the ``rows`` of cos, where positions can be read.

    offsets: an int or (B,), which the caller calls ``name``. lengths: of all sequences, or
    cumulative ones (B + 1,).
    """
    tensors = [n for n in (offsets, lengths) if isinstance(n, torch.Tensor)]
    if not all(map(is_readable, tensors)):
        return
    first, past = _reach(offsets, lengths) if tensors else (offsets, offsets + lengths)
    if first < 0:
        raise ValueError(f"a position of {first}: {name} must be >= 0")
    if past > rows:
        raise ValueError(
            f"positions up to {past - 1}, but cos and sin have {rows} rows: give longer ones, or "
            f"smaller {name}"
        )


def _reach(offsets, lengths) -> tuple[int, int]:
    """The first position of any sequence and the one past the last; (0, 0) without a row."""
    numbers = (read(x) if isinstance(x, torch.Tensor) else x for x in (offsets, lengths))
    starts, counts = (np.asarray(x, np.int64) for x in numbers)
    counts = np.diff(counts) if counts.ndim else counts
    starts, ends = np.broadcast_arrays(starts, starts + counts)
    has_rows = ends > starts
    if not has_rows.any():
        return 0, 0
    return int(starts[has_rows].min()), int(ends[has_rows].max())
