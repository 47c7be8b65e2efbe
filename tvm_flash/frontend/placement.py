"""Where tensors lie and whether kernels there can read their rows as they are."""

from __future__ import annotations

from functools import lru_cache
from math import gcd

import torch

# GPU kernels move rows in pieces of up to 16 bytes, each at a multiple of its size.
_WIDEST = 16
_CPU = ("cpu", None)


def place_of(x: torch.Tensor) -> tuple[str, tuple[int, int] | None]:
    """(device type, compute capability of a CUDA device)."""
    if x.is_cpu:  # asked first: the name of a device takes longer to make
        return _CPU
    return ("cuda", _capability(x.device.index)) if x.is_cuda else (x.device.type, None)


def has_readable_rows(x: torch.Tensor) -> bool:
    """Whether rows (the last dimension) are contiguous and, on a GPU, aligned for its kernels.

    A row of D elements is read in the widest pieces that divide it, so base address and strides
    must be multiples of that: 16 bytes where D * itemsize is.
    """
    if x.stride()[-1] != 1:
        return False
    return not x.is_cuda or has_aligned_rows(x)


def readable_rows(x: torch.Tensor) -> torch.Tensor:
    """``x`` itself when kernels can read its rows, else a copy.

    ``contiguous()`` gives back what has no elements whatever its strides are, and what lies dense
    at an address of which no wide piece is read.
    """
    return x if has_readable_rows(x) else x.clone(memory_format=torch.contiguous_format)


def has_aligned_rows(x: torch.Tensor) -> bool:
    """Whether every row of ``x`` begins at a multiple of the pieces it is read in, and is another
    than the row before."""
    if x.dim() > 2 and x.shape[-3] > 1 and x.stride(-3) == 0:
        return False  # no tensor map has such rows
    size = gcd(x.shape[-1] * x.element_size(), _WIDEST)
    steps = [n for n, extent in zip(x.stride()[:-1], x.shape[:-1], strict=True) if extent > 1]
    return x.data_ptr() % size == 0 and all(step * x.element_size() % size == 0 for step in steps)


def processors_of(x: torch.Tensor) -> int:
    """How many SMs the CUDA device of ``x`` has."""
    return _processors(x.device.index)


@lru_cache
def _processors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@lru_cache
def _capability(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
