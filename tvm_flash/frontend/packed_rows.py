"""Packed tensors (total, ...): checks of cu_seqlens, and where a row stands in its sequence."""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

import numpy as np
import torch
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack
from torch.cuda import is_current_stream_capturing

from ..problem.lengths import MAX_SEQLEN
from ..score.layouts import check_in_memory

_TENSORS = frozenset((torch.Tensor, torch.nn.Parameter))
# For those who look for a mistake: numbers on GPUs are read too, which waits for all work before.
_READS_GPUS = os.environ.get("TVM_FLASH_CHECK", "") not in ("", "0")
_TO_READ = 0x100  # PyBUF_READ
_view_memory = ctypes.pythonapi.PyMemoryView_FromMemory
_view_memory.restype, _view_memory.argtypes = (
    ctypes.py_object,
    (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int),
)


class Extent(NamedTuple):
    """What the numbers of an axis say: the longest sequence, and the rows of all together."""

    longest: int
    rows: int


def is_readable(x: torch.Tensor) -> bool:
    """Whether the values of ``x`` can be checked: in memory, with nobody tracing.

    On a GPU only where the environment asks for that (TVM_FLASH_CHECK=1), outside of a capture.
    """
    return is_plain(x) and (
        x.is_cpu or (_READS_GPUS and x.is_cuda and not is_current_stream_capturing())
    )


def is_plain(x: torch.Tensor) -> bool:
    """Whether ``x`` is a tensor of a device, with nobody tracing."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in _TENSORS
        and _len_torch_dispatch_stack() == 0
        and peek_interpreter_stack() is None
    )


def read(x: torch.Tensor) -> np.ndarray:
    """The numbers of ``x``, which ``is_readable``; of a GPU in a copy."""
    return memory_of(x) if x.is_cpu else x.cpu().numpy()


def memory_of(x: torch.Tensor) -> np.ndarray:
    """The memory of ``x``, integers on a CPU, as long as it has that: its owner may resize it.

    ``x.numpy()`` would forbid that for good.
    """
    dtype = np.dtype(str(x.dtype).removeprefix("torch."))
    if not x.numel():
        return np.empty(x.shape, dtype)
    strides = [step * dtype.itemsize for step in x.stride()]
    last = sum((n - 1) * step for n, step in zip(x.shape, strides, strict=True))
    memory = _view_memory(x.data_ptr(), last + dtype.itemsize, _TO_READ)
    return np.ndarray(x.shape, dtype, memory, strides=strides)


def check_cu_seqlens(
    cu_seqlens: torch.Tensor,
    x: torch.Tensor,
    max_seqlen: int | None = None,
    total: int | None = None,
    axis: str = "",
) -> Extent | None:
    """The extent of sequences in ``x`` (total, ...), which begin at ``cu_seqlens`` (B + 1,) int32.

    None where that is not ``is_readable``. axis: what follows the names of both numbers, as "_q".
    total: default the rows of ``x``. TypeError: not an int32 tensor. ValueError: shape, device, and
    where values are read also those that do not begin at 0, decrease, exceed total or are further
    apart than ``max_seqlen``.
    """
    check_int32(f"cu_seqlens{axis}", cu_seqlens, x.device)
    if cu_seqlens.ndim != 1 or cu_seqlens.numel() == 0:
        shape = tuple(cu_seqlens.shape)
        raise ValueError(f"cu_seqlens{axis} of shape {shape} must be (batch + 1,)")
    if not is_readable(cu_seqlens):
        return None
    total = x.shape[0] if total is None else total
    return _extent(axis, read(cu_seqlens), total, max_seqlen)


def equal_cu_seqlens(x: torch.Tensor) -> torch.Tensor:
    """Cumulative lengths (B + 1,) int32 of the sequences of ``x`` (B, S, H, D)."""
    batch, length = x.shape[:2]
    return torch.arange(batch + 1, dtype=torch.int32, device=x.device) * length


def check_int32(name: str, x: torch.Tensor, device: torch.device) -> None:
    """Raise unless ``x`` is a dense tensor of int32 on ``device``, that of the rows."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    check_in_memory(name, x)
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


def check_capacity(block_table: torch.Tensor, pages: torch.Tensor) -> None:
    """ValueError where a row of ``block_table`` may hold more positions than kernels count."""
    columns, page_size = block_table.shape[1], pages.shape[1]
    if columns * page_size > MAX_SEQLEN:
        raise ValueError(
            f"{columns} pages of {page_size} rows for each sequence: limit {MAX_SEQLEN} positions; "
            "give block_table fewer columns"
        )


def sequence_and_position(
    cu_seqlens: torch.Tensor, total: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sequence of each of ``total`` rows, and the row's number in it; both (total,) int64.

    Rows past the last sequence are counted as one more sequence.
    """
    row = torch.arange(total, dtype=cu_seqlens.dtype, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), row, right=True)
    return sequence, (row - cu_seqlens[sequence]).long()


def extent_of(lengths: np.ndarray) -> Extent:
    """The extent of sequences of these ``lengths`` (int64), none of which is negative."""
    return Extent(_within_limit(longest_of(lengths)), int(lengths.sum()))


def longest_of(lengths: np.ndarray) -> int:
    """The largest of ``lengths`` (int64), 0 of none; a negative one counts as beyond all limits."""
    if not lengths.size:
        return 0
    unsigned = lengths.view(np.uint64)
    return int(unsigned[unsigned.argmax()])  # in a quarter of the time of max()


def _within_limit(longest: int) -> int:
    if longest > MAX_SEQLEN:
        raise ValueError(f"a sequence has {longest} rows, the limit is {MAX_SEQLEN}")
    return longest


def _extent(axis: str, values: np.ndarray, total: int, max_seqlen: int | None) -> Extent:
    places = values.astype(np.int64)  # no difference overflows
    first, last = int(places[0]), int(places[-1])
    longest = longest_of(places[1:] - places[:-1])
    name = f"cu_seqlens{axis}"
    if first != 0:
        raise ValueError(f"{name} begins with {first}, must begin with 0")
    if longest > last:  # not so where each is behind the one before
        step = int((places[:-1] - places[1:]).max())
        raise ValueError(f"{name} decreases, by {step}: it must be cumulative lengths")
    if last > total:
        raise ValueError(f"{name} ends with {last}, but there are {total} rows")
    if max_seqlen is not None and longest > max_seqlen:
        raise ValueError(
            f"max_seqlen{axis}={max_seqlen} is too small: {name} has a sequence of {longest} rows"
        )
    return Extent(_within_limit(longest), last)
