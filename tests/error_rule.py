"""FlashAttention's rule for errors, applied to a case of the shared list.

Its tests allow twice the error that plain PyTorch makes in the same precision, three times for
gradients, and a round-off; both errors are taken against float64.
"""

from __future__ import annotations

import torch

import tvm_flash
from tvm_flash.cases import make_inputs
from tvm_flash.reference import attention_reference

NAMES = ("out", "lse", "dq", "dk", "dv")
FACTORS = {"out": 2, "lse": 2, "dq": 3, "dk": 3, "dv": 3}
ROUND_OFF = 1e-5
# exp2 as a polynomial of degree 3 or 4 moves the logarithm of a sum by its relative error.
LSE_ROUND_OFF = {"float32": 2e-5, "bfloat16": 2e-4, "float16": 2e-4}


def check_case(case, **options) -> None:
    """Assert the rule for ``tvm_flash.attention`` with ``options`` on the inputs of ``case``."""
    inputs = make_inputs(case)
    ours = results(tvm_flash.attention, inputs, return_lse=True, **options)
    exact = results(attention_reference, inputs, upcast=torch.float64)
    plain = results(attention_reference, inputs)
    for name, got, want, baseline in zip(NAMES, ours, exact, plain, strict=True):
        round_off = LSE_ROUND_OFF[case.dtype] if name == "lse" else ROUND_OFF
        allowed = FACTORS[name] * largest_error(baseline, want) + round_off
        error = largest_error(got, want)
        assert error <= allowed, f"{name}: {error:.3g} exceeds {allowed:.3g}"


def results(attention, inputs, **options):
    """out, lse, dq, dk, dv of ``attention`` for the case's dout and dlse."""
    # Not clones, which would be dense.
    leaves = [x.detach().requires_grad_() for x in (inputs.q, inputs.k, inputs.v)]
    out, lse = attention(*leaves, **inputs.variant, **options)
    upstream = (inputs.dout.to(out.dtype), inputs.dlse.to(lse.dtype))
    return out.detach(), lse.detach(), *torch.autograd.grad((out, lse), leaves, upstream)


def largest_error(got, want) -> float:
    """Largest absolute difference; equal infinities are equal, NaN is infinitely wrong."""
    got, want = got.double(), want.double()
    assert got.shape == want.shape
    error = torch.where(got == want, 0.0, (got - want).abs()).nan_to_num(nan=float("inf"))
    return error.max().item() if error.numel() else 0.0
