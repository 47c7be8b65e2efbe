"""The shared list of cases on a device, held to the error rule."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch

from ..cases import Case, make_inputs
from ..errors import UnsupportedSpec
from ..frontend.functional import attention as our_attention
from ..problem.spec import AttentionSpec
from ..runtime.loader import Library
from ..verify.rule import Deviation, judged
from .device import inputs_on


def directions_of(spec: AttentionSpec, library: Library | None) -> Collection[str]:
    """What of ``spec`` the kernels of ``library`` compute; None: both, compiled when needed."""
    if library is None:
        return ("forward", "backward")
    return {kernel.direction for kernel in library.kernels if kernel.spec == spec}


def case_row(
    case: Case, library: Library | None, device: str, attention: Callable = our_attention
) -> dict:
    """What a cell says of ``case``: errors and limits, or that the library does not serve it."""
    served = directions_of(case.spec, library)
    if "forward" not in served:
        return {"skipped": "the library has no kernel of this case"}
    try:
        found = check(case, "backward" in served, device, attention)
    except UnsupportedSpec as error:
        return {"skipped": str(error)}
    errors = {d.result: {"error": _finite(d.error), "allowed": _finite(d.allowed)} for d in found}
    return {"right": all(d.ok for d in found), "errors": errors}


def check(
    case: Case, backward: bool, device: str, attention: Callable, seed: int = 0
) -> list[Deviation]:
    """Errors of ``attention`` on the inputs of ``case``, what it leaves unwritten being NaN."""
    inputs = inputs_on(make_inputs(case, seed), device)
    with poisoned_memory():
        return judged(attention, inputs, backward=backward)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Uninitialised tensors hold NaN: what a kernel leaves unwritten shows."""
    # cuBLAS refuses deterministic mode without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _finite(number: float) -> float | None:
    """JSON has no infinity: null is an error without bound."""
    return number if math.isfinite(number) else None
