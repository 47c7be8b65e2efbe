"""Packed tensors (total, ...): checks of cu_seqlens, and where a row stands in its sequence."""

from __future__ import annotations

import torch
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack

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
    cu_seqlens: torch.Tensor, x: torch.Tensor, max_seqlen: int | None = None
) -> None:
    """Raise unless ``cu_seqlens`` (B + 1,) int32 says where sequences begin in ``x`` (total, ...).

    TypeError: not an int32 tensor. ValueError: shape, device, and where ``is_readable`` also values
    that do not begin at 0, decrease, exceed total or are further apart than ``max_seqlen``.
    """
    if not isinstance(cu_seqlens, torch.Tensor):
        raise TypeError(f"cu_seqlens must be a tensor, not {type(cu_seqlens).__name__}")
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"{cu_seqlens.dtype=} must be torch.int32: call .int()")
    if cu_seqlens.ndim != 1 or len(cu_seqlens) == 0:
        raise ValueError(f"cu_seqlens of shape {tuple(cu_seqlens.shape)} must be (batch + 1,)")
    if cu_seqlens.device != x.device:
        raise ValueError(f"cu_seqlens is on {cu_seqlens.device}, the rows on {x.device}: move one")
    if is_readable(cu_seqlens):
        _check_values(cu_seqlens, len(x), max_seqlen)


def sequence_and_position(
    cu_seqlens: torch.Tensor, total: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sequence of each of ``total`` rows, and the row's number in it; both (total,) int64.

    Rows past the last sequence are counted as one more sequence.
    """
    row = torch.arange(total, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), row, right=True)
    return sequence, (row - cu_seqlens[sequence]).long()


def _check_values(cu_seqlens: torch.Tensor, total: int, max_seqlen: int | None) -> None:
    first, last = cu_seqlens[0].item(), cu_seqlens[-1].item()
    if first != 0:
        raise ValueError(f"cu_seqlens begins with {first}, must begin with 0")
    if last > total:
        raise ValueError(f"cu_seqlens ends with {last}, but there are {total} rows")
    if len(cu_seqlens) == 1:
        return
    lengths = cu_seqlens.diff()
    if (least := lengths.min().item()) < 0:
        raise ValueError(f"cu_seqlens decreases, by {-least}: it must be cumulative lengths")
    if max_seqlen is not None and (most := lengths.max().item()) > max_seqlen:
        raise ValueError(f"{max_seqlen=}, but cu_seqlens has a sequence of {most} rows")
