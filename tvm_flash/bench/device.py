"""Where contenders run: what waits for a device, reads its time, and copies inputs to it."""

from __future__ import annotations

import gc
import types
from functools import cached_property
from typing import Any, Protocol

import torch

from ..cases import Inputs
from ..verify.buffers import moved
from .gpu_host import clocks, gpu_fields
from .timing import Call, Stopwatch, host_seconds

# Larger than any L2 cache.
FLUSH_BYTES = 2**30


class CudaStopwatch:
    """Seconds per call between two CUDA events of each call, its inputs not in the L2 cache.

    Before each call a buffer is cleared. That evicts every cache, and takes a third of a
    millisecond or more, in which the host enqueues the call: what is timed is the device, not
    Python.
    """

    def __init__(self, flush_bytes: int = FLUSH_BYTES):
        _, total = torch.cuda.mem_get_info()
        self._flush = torch.empty(min(flush_bytes, total // 16), dtype=torch.int8, device="cuda")

    def __call__(self, call: Call, repeats: int = 1) -> float:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        for start, end in pairs:
            self._flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) / repeats / 1e3


class Device(Protocol):
    """What contenders run on.

    tensors: torch's name of where their tensors lie. drifts: whether its clocks follow the load, so
    that times must settle first.
    """

    tensors: str
    drifts: bool

    @property
    def stopwatch(self) -> Stopwatch:
        """What reads the time of calls."""

    def wait(self) -> None:
        """Return when all that was started has ended; raises what went wrong in it."""

    def release(self) -> None:
        """Give memory that nobody holds back to the device."""

    def fields(self) -> dict[str, Any]:
        """What a document says of it, beside the host."""

    def state(self) -> dict[str, Any]:
        """What a document says of it at the start of each run."""


class HostDevice:
    """The CPU."""

    tensors, drifts = "cpu", False
    stopwatch = staticmethod(host_seconds)

    def wait(self) -> None:
        """As ``Device.wait``: whatever was started has ended."""

    def release(self) -> None:
        """As ``Device.release``."""
        gc.collect()

    def fields(self) -> dict[str, Any]:
        """As ``Device.fields``: nothing more."""
        return {}

    state = fields


class CudaDevice:
    """torch's first CUDA device."""

    tensors, drifts = "cuda", True

    @cached_property
    def stopwatch(self) -> Stopwatch:
        """As ``Device.stopwatch``: it holds a buffer there."""
        return CudaStopwatch()

    def wait(self) -> None:
        """As ``Device.wait``."""
        torch.cuda.synchronize()

    def release(self) -> None:
        """As ``Device.release``."""
        gc.collect()
        torch.cuda.empty_cache()

    def fields(self) -> dict[str, Any]:
        """As ``Device.fields``: the GPU, its driver, and libraries of contenders."""
        return gpu_fields()

    def state(self) -> dict[str, Any]:
        """As ``Device.state``: clocks, power and temperature."""
        return {"clocks": clocks()}


# By the device of a cell.
DEVICES: dict[str, Device] = {"cpu": HostDevice(), "cuda": CudaDevice()}


def inputs_on(inputs: Inputs, device: str) -> Inputs:
    """``inputs`` on ``device`` with the strides they have, captured tensors too."""
    variant = {
        name: _moved_function(value, device)
        if isinstance(value, types.FunctionType)
        else value.to(device)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in inputs.variant.items()
    }
    return Inputs(*(moved(x, device) for x in inputs[:-1]), variant)


def _moved_function(function: types.FunctionType, device: str) -> types.FunctionType:
    """``function`` with the tensors of its closure on ``device``."""
    contents = [cell.cell_contents for cell in function.__closure__ or ()]
    there = [x.to(device) if isinstance(x, torch.Tensor) else x for x in contents]
    cells = tuple(map(types.CellType, there)) if function.__closure__ else None
    return types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )
