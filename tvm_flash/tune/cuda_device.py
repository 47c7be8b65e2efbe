"""A GPU kernel judged and timed: checked against float64 first, then CUDA events, in turns."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import Protocol

import torch

from ..artifact.library import symbol_name
from ..bench.device import CudaDevice
from ..bench.timing import Call
from ..problem.arguments import WRITTEN, names, values_before
from ..runtime.call import completed, new_tensors
from ..runtime.loader import Kernel, opened
from ..verify.buffers import moved, run_elsewhere, with_tensors
from ..verify.trial import CallArguments, Candidate, judge, tile_of
from ..verify.verdict import KernelVerdict
from .building import Place
from .measure import given_arguments, interleaved, verdict_trial
from .trial import Sizes, Trial

Outputs = tuple[str, ...]
# How errors begin that torch raises, and our launchers: no numbers came of such a call.
_CUDA_FAILED = ("CUDA error", "CUDA launch")


class TrialDevice(Protocol):
    """What runs the kernels of trials: a GPU, or what stands for one."""

    capability: tuple[int, int]

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor there, with the strides that it has."""

    def call(self, kernel: Kernel, given: CallArguments, outputs: Outputs) -> None:
        """Start ``kernel`` on placed tensors and numbers."""

    def wait(self) -> None:
        """Until all that was started has ended; raises what went wrong in it."""

    def seconds(self, call: Call, repeats: int) -> float:
        """Seconds per call on the device."""


class CudaTrialDevice(CudaDevice):
    """torch's current CUDA device."""

    def __init__(self) -> None:
        self.capability = torch.cuda.get_device_capability()
        _ = self.stopwatch  # its buffer, which must fit

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """As ``TrialDevice.place``."""
        return moved(tensor, self.tensors)

    def call(self, kernel: Kernel, given: CallArguments, outputs: Outputs) -> None:
        """As ``TrialDevice.call``."""
        kernel.function(*given.values())

    def seconds(self, call: Call, repeats: int) -> float:
        """As ``TrialDevice.seconds``: of each call between two events, caches cold; their mean."""
        return self.stopwatch(call, repeats)


def judged_and_timed_on_gpu(path: Place, incumbent: Place, sizes: Sizes, seconds: float) -> Trial:
    """``judged_and_timed`` on torch's CUDA device. May die of it: for a process of its own."""
    return judged_and_timed(_device(), path, incumbent, sizes, seconds)


def judged_and_timed(
    device: TrialDevice, path: Place, incumbent: Place, sizes: Sizes, seconds: float
) -> Trial:
    """The trial of the kernel at ``path`` beside that at ``incumbent``.

    A kernel that misses the error rule on any problem of its tile is wrong, and is not timed.
    """
    kernel = _kernel(path)
    verdict = verdict_trial(verdict_of(device, kernel))
    if verdict.outcome != "ok":
        # What a kernel's fault did to the CUDA context, no later call recovers from.
        failed = any(words in verdict.note for words in _CUDA_FAILED)
        return replace(verdict, outcome="crash") if failed else verdict
    calls = [timed_call(device, one, sizes) for one in (kernel, _kernel(incumbent))]
    ours, theirs = (partial(device.seconds, call) for call in calls)
    return Trial("ok", verdict.error, verdict.allowed, *interleaved(ours, theirs, seconds))


def verdict_of(device: TrialDevice, kernel: Kernel) -> KernelVerdict:
    """Whether results hold to the error rule, on the problems of the kernel's tile."""
    (variant,) = kernel.config["variants"]
    tile = tile_of(variant["meta"])

    def run(call: CallArguments, outputs: Outputs) -> list:
        def start_and_wait(placed: CallArguments) -> None:
            device.call(kernel, placed, outputs)
            device.wait()

        run_elsewhere(call, kernel.arguments, device.place, start_and_wait)
        return []

    symbol, archs = symbol_name(kernel.spec, kernel.direction), tuple(variant["archs"])
    known = (symbol, kernel.spec, kernel.direction, archs, tile)
    candidate = Candidate(*known, kernel.meta, run)
    outcomes = tuple(judge(candidate, problem) for problem in candidate.listed(quick=False))
    return KernelVerdict(symbol, kernel.direction, archs, tile, outcomes)


def timed_call(device: TrialDevice, kernel: Kernel, sizes: Sizes) -> Call:
    """A call of ``kernel`` on random data; a backward with the zeroing that it asks of callers."""
    given = given_arguments(kernel.spec, sizes)
    whole = completed(kernel.arguments, given, new_tensors(kernel.sizes(sizes, 1)))
    placed, outputs = with_tensors(whole, device.place), names(kernel.arguments, *WRITTEN)
    zeroed = [placed[name] for name in values_before(kernel.arguments)]

    def call() -> None:
        for tensor in zeroed:
            tensor.zero_()
        device.call(kernel, placed, outputs)

    return call


def open_device() -> None:
    """Make torch's CUDA device ready; raises what torch says of one that is lost, or full."""
    _device()


@lru_cache(maxsize=1)
def _device() -> CudaTrialDevice:
    return CudaTrialDevice()


@lru_cache(maxsize=8)
def _kernel(place: Place) -> Kernel:
    path, symbol = place if isinstance(place, tuple) else (place, "")
    library = opened(path)
    named = zip(library.manifest.kernels, library.kernels, strict=True)
    (kernel,) = (kernel for record, kernel in named if symbol in ("", record.symbol))
    return kernel
