"""Kernels of a library, and the shared list of cases, held to the error rule on a device."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

from ..cases import Case, make_inputs
from ..errors import UnsupportedSpec
from ..frontend.functional import attention as our_attention
from ..problem.spec import AttentionSpec
from ..runtime.loader import Library
from ..verify.library import candidates
from ..verify.rule import Deviation, judged
from ..verify.trial import Candidate, judge
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
    return {"right": all(d.ok for d in found), "errors": errors_of(found)}


def errors_of(found: Iterable[Deviation]) -> dict[str, dict]:
    """Error and limit by result, as a document has them."""
    return {d.result: {"error": _finite(d.error), "allowed": _finite(d.allowed)} for d in found}


def kernel_row(symbol: str, library: Library | None, device: str) -> dict:
    """What a cell says of the kernel ``symbol``: errors and limits, each the worst of its problems.

    On GPUs, on the problems of its tile; "failure": what it raised, or where it was wrong first.
    """
    assert library is not None, "kernels are those of a library"
    found = [c for c in _candidates(library, device != "cpu") if c.symbol == symbol]
    if not found:
        return {"skipped": "no variant of it is for this GPU"}
    outcomes = [judge(one, problem) for one in found for problem in one.listed(quick=False)]
    worst: dict[str, Deviation] = {}
    for deviation in (d for outcome in outcomes for d in outcome.deviations):
        if deviation.result not in worst or worst[deviation.result].share < deviation.share:
            worst[deviation.result] = deviation
    failures = [f"{one.problem.name}: {one.failure}" for one in outcomes if not one.ok]
    told = {"failure": failures[0]} if failures else {}
    errors = errors_of(worst.values())
    return {"right": not failures, "problems": len(outcomes), "errors": errors, **told}


@lru_cache(maxsize=1)
def _candidates(library: Library, gpu: bool) -> list[Candidate]:
    return candidates(library, gpu=gpu)


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
