"""The shared list of cases on the device, by FlashAttention's error rule."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

from tvm_flash.cases import Case, Inputs, make_inputs
from tvm_flash.reference import attention_reference, error_bound, max_error

from .clock import reason

RESULTS = ("out", "lse", "dq", "dk", "dv")


@dataclass(frozen=True)
class Failure:
    """A result that is too far from float64, or a case that raised (``result`` "error")."""

    case: str
    result: str
    error: float | None = None
    limit: float | None = None
    message: str = ""

    def to_json(self) -> dict:
        """One entry of the document's "failures"."""
        return asdict(self)


def served(cases: Iterable[Case], kernels: Iterable) -> list[tuple[Case, bool]]:
    """The cases that loaded ``kernels`` compute, and whether their backward too."""
    have = {(kernel.spec, kernel.direction) for kernel in kernels}
    return [
        (case, (case.spec, "backward") in have) for case in cases if (case.spec, "forward") in have
    ]


def check(
    case: Case, backward: bool, device: str, attention: Callable, seed: int = 0
) -> list[Failure]:
    """What is wrong with ``attention`` in ``case``: too large errors, or what it raised."""
    inputs = on_device(make_inputs(case, seed), device)
    try:
        ours = _results(attention, inputs, backward, return_lse=True)
        exact = _results(attention_reference, inputs, backward, upcast=torch.float64)
        plain = _results(attention_reference, inputs, backward)
    except Exception as error:
        return [Failure(case.name, "error", message=reason(error))]
    return [
        Failure(case.name, name, error, limit)
        for name, found, want, baseline in zip(RESULTS, ours, exact, plain, strict=False)
        # Not "error > limit": NaN must fail.
        if not (error := max_error(found, want))
        <= (limit := error_bound(want, baseline, gradient=name in ("dq", "dk", "dv")))
    ]


@contextmanager
def poisoned_memory():
    """Uninitialised tensors hold NaN: what a kernel leaves unwritten shows."""
    # cuBLAS refuses deterministic mode without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def on_device(inputs: Inputs, device: str) -> Inputs:
    """``inputs`` on ``device`` with the strides they have, captured tensors too."""
    variant = {
        name: _moved_function(value, device)
        if isinstance(value, types.FunctionType)
        else value.to(device)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in inputs.variant.items()
    }
    return Inputs(*(_moved(x, device) for x in inputs[:-1]), variant)


def _moved(x: torch.Tensor, device: str) -> torch.Tensor:
    # A copy of a view would be dense: copy what it looks into.
    if x._base is None:
        return x.to(device)
    return x._base.to(device).as_strided(x.shape, x.stride(), x.storage_offset())


def _moved_function(function: types.FunctionType, device: str) -> types.FunctionType:
    """``function`` with the tensors of its closure on ``device``."""
    contents = [cell.cell_contents for cell in function.__closure__ or ()]
    moved = [x.to(device) if isinstance(x, torch.Tensor) else x for x in contents]
    cells = tuple(map(types.CellType, moved)) if function.__closure__ else None
    return types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
    )


def _results(attention: Callable, inputs: Inputs, backward: bool, **options):
    """out and lse, with ``backward`` also dq, dk, dv."""
    # Not clones, which would be dense.
    leaves = [x.detach().requires_grad_(backward) for x in (inputs.q, inputs.k, inputs.v)]
    out, lse = attention(*leaves, **inputs.variant, **options)
    if not backward:
        return out, lse
    upstream = (inputs.dout.to(out.dtype), inputs.dlse.to(lse.dtype))
    return out.detach(), lse.detach(), *torch.autograd.grad((out, lse), leaves, upstream)
