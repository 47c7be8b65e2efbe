"""FlashAttention's rule for errors (``tvm_flash.verify.rule``) on cases of the shared list."""

from __future__ import annotations

import torch

import tvm_flash
from tvm_flash.cases import make_inputs
from tvm_flash.reference import attention_reference
from tvm_flash.verify.rule import FACTORS, deviations


def check_case(case, **options) -> None:
    """Assert the rule for ``tvm_flash.attention`` with ``options`` on the inputs of ``case``."""
    inputs = make_inputs(case)
    ours = results(tvm_flash.attention, inputs, return_lse=True, **options)
    exact = results(attention_reference, inputs, torch.float64)
    plain = results(attention_reference, inputs)
    for deviation in deviations(case.dtype, ours, exact, plain):
        assert deviation.ok, str(deviation)


def results(attention, inputs, dtype=None, **options):
    """out, lse, dq, dk, dv of ``attention`` in ``dtype`` for the case's dout and dlse."""
    # Not clones, which would be dense. Leaves of the dtype: it is that of gradients.
    leaves = [x.detach().to(dtype or x.dtype) for x in (inputs.q, inputs.k, inputs.v)]
    leaves = [x.requires_grad_() for x in leaves]
    out, lse = attention(*leaves, **inputs.variant, **options)
    upstream = (inputs.dout.to(out.dtype), inputs.dlse.to(lse.dtype))
    grads = torch.autograd.grad((out, lse), leaves, upstream)
    return dict(zip(FACTORS, (out.detach(), lse.detach(), *grads), strict=True))
