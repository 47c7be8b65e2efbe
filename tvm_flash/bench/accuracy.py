"""How far our results are from float64, and how far they may be: FlashAttention's error rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..cases import Case, Inputs, make_inputs
from ..frontend.functional import attention
from ..reference import attention_reference
from ..verify.rule import FACTORS, ROUND_OFF, largest_error

RESULTS = ("out", "dq", "dk", "dv")


@dataclass(frozen=True)
class Accuracy:
    """Largest absolute errors against float64: ours, and plain torch's in the same dtype."""

    result: str  # one of RESULTS
    error: float
    baseline: float

    @property
    def limit(self) -> float:
        """What ``error`` may be."""
        return FACTORS[self.result] * self.baseline + ROUND_OFF

    @property
    def ok(self) -> bool:
        """Whether the rule holds (NaN does not)."""
        return self.error <= self.limit


def accuracies(case: Case, seed: int = 0) -> list[Accuracy]:
    """Errors of out, dq, dk, dv of ``case`` for random inputs."""
    inputs = make_inputs(case, seed)
    ours = _results(attention, inputs)
    exact = _results(attention_reference, inputs, upcast=torch.float64)
    plain = _results(attention_reference, inputs)
    return [
        Accuracy(result, largest_error(a, e), largest_error(p, e))
        for result, a, p, e in zip(RESULTS, ours, plain, exact, strict=True)
    ]


def _results(function: Callable, inputs: Inputs, **options) -> list[torch.Tensor]:
    """out, dq, dk, dv of ``function``."""
    leaves = [x.detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    out = function(*leaves, **inputs.variant, **options)
    out = out[0] if isinstance(out, tuple) else out
    return [out, *torch.autograd.grad(out, leaves, inputs.dout.to(out.dtype))]
