"""Packed tensors (total, ...): checks of cu_seqlens, and where a row stands in its sequence."""

from __future__ import annotations

import torch
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack

from ..score.layouts import check_dense

_TENSORS = frozenset((torch.Tensor, torch.nn.Parameter))


def is_readable(x: torch.Tensor) -> bool:
    """Whether the values of ``x`` can be checked: in memory, with nobody tracing.

    Reading those of a GPU would wait for all work before.
    """
    return (
        not torch.compiler.is_compiling()
        and x.is_cpu
        and type(x) in _TENSORS
        and _len_torch_dispatch_stack() == 0
        and peek_interpreter_stack() is None
    )


def check_cu_seqlens(
    cu_seqlens: torch.Tensor,
    x: torch.Tensor,
    max_seqlen: int | None = None,
    total: int | None = None,
    axis: str = "",
) -> None:
    """Raise unless ``cu_seqlens`` (B + 1,) int32 says where sequences begin in ``x`` (total, ...).

    axis: what follows the names of both numbers, as "_q". total: default the rows of ``x``.
    TypeError: not an int32 tensor. ValueError: shape, device, and where ``is_readable`` also values
    that do not begin at 0, decrease, exceed total or are further apart than ``max_seqlen``.
    """
    check_int32(f"cu_seqlens{axis}", cu_seqlens, x.device)
    if cu_seqlens.ndim != 1 or len(cu_seqlens) == 0:
        shape = tuple(cu_seqlens.shape)
        raise ValueError(f"cu_seqlens{axis} of shape {shape} must be (batch + 1,)")
    if is_readable(cu_seqlens):
        total = len(x) if total is None else total
        _check_values(axis, cu_seqlens.numpy(), total, max_seqlen)


def check_int32(name: str, x: torch.Tensor, device: torch.device) -> None:
    """Raise unless ``x`` is a dense tensor of int32 on ``device``, that of the rows."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    check_dense(name, x)
    if x.dtype != torch.int32:
        raise TypeError(f"{name}.dtype={x.dtype} must be torch.int32: call .int()")
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}, the rows on {device}: move one")


def check_numbers(name: str, x: torch.Tensor, entries: int, device: torch.device) -> None:
    """As ``check_int32``; ValueError too unless ``x`` is (entries,)."""
    check_int32(name, x, device)
    if tuple(x.shape) != (entries,):
        raise ValueError(
            f"{name} of shape {tuple(x.shape)} must be ({entries},): a number for each sequence"
        )


def check_table(block_table: torch.Tensor, entries: int, device: torch.device) -> None:
    """As ``check_int32``; ValueError too unless ``block_table`` is (entries, most pages)."""
    check_int32("block_table", block_table, device)
    if block_table.ndim != 2 or len(block_table) != entries:
        shape = tuple(block_table.shape)
        raise ValueError(f"block_table of shape {shape} must be ({entries}, most pages)")


def sequence_and_position(
    cu_seqlens: torch.Tensor, total: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sequence of each of ``total`` rows, and the row's number in it; both (total,) int64.

    Rows past the last sequence are counted as one more sequence.
    """
    row = torch.arange(total, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), row, right=True)
    return sequence, (row - cu_seqlens[sequence]).long()


def _check_values(axis: str, values, total: int, max_seqlen: int | None) -> None:
    name, first, last = f"cu_seqlens{axis}", int(values[0]), int(values[-1])
    if first != 0:
        raise ValueError(f"{name} begins with {first}, must begin with 0")
    if len(values) == 1:
        return
    before, after = values[:-1], values[1:]
    if (decreases := after < before).any():
        place = int(decreases.argmax())
        step = int(before[place]) - int(after[place])
        raise ValueError(f"{name} decreases, by {step}: it must be cumulative lengths")
    if last > total:
        raise ValueError(f"{name} ends with {last}, but there are {total} rows")
    # Within 0 .. total, so that no difference overflows.
    if max_seqlen is not None and (most := int((after - before).max())) > max_seqlen:
        raise ValueError(
            f"max_seqlen{axis}={max_seqlen} is too small: {name} has a sequence of {most} rows"
        )
