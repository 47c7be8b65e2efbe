"""How far our results are from float64, and how far they may be: FlashAttention's error rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..cases import Case, Inputs, make_inputs
from ..functional import attention
from ..reference import attention_reference

# The rule: our largest error is at most FACTOR times that of plain torch operations in the same
# dtype, plus SLACK (FlashAttention's tests/test_flash_attn.py; 3 for gradients).
FACTOR = {"out": 2.0, "dq": 3.0, "dk": 3.0, "dv": 3.0}
SLACK = 1e-5


@dataclass(frozen=True)
class Accuracy:
    """Largest absolute errors against float64: ours, and plain torch's in the same dtype."""

    result: str  # out, dq, dk, dv
    error: float
    baseline: float

    @property
    def limit(self) -> float:
        """What ``error`` may be."""
        return FACTOR[self.result] * self.baseline + SLACK

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
        Accuracy(result, _largest(a, e), _largest(p, e))
        for result, a, p, e in zip(FACTOR, ours, plain, exact, strict=True)
    ]


def _results(function: Callable, inputs: Inputs, **options) -> list[torch.Tensor]:
    """out, dq, dk, dv of ``function``."""
    leaves = [x.detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    out = function(*leaves, **inputs.variant, **options)
    out = out[0] if isinstance(out, tuple) else out
    return [out, *torch.autograd.grad(out, leaves, inputs.dout.to(out.dtype))]


def _largest(found: torch.Tensor, exact: torch.Tensor) -> float:
    return (found.double() - exact.double()).abs().max().item()
