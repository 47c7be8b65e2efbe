"""The error rule (``tvm_flash.verify.rule``) on cases of the shared list."""

import torch

import tvm_flash
from tvm_flash.cases import make_inputs
from tvm_flash.reference import attention_reference
from tvm_flash.verify.rule import judged


def check_case(case, **options) -> None:
    """Assert the rule for ``tvm_flash.attention`` with ``options`` on the inputs of ``case``."""
    for deviation in judged(tvm_flash.attention, make_inputs(case), **options):
        assert deviation.ok, str(deviation)


def off(*tensors, return_lse, **variant):
    """Attention whose output is 1 % too large."""
    out, lse = attention_reference(*tensors, **variant)
    return out * 1.01, lse


def unwritten(*tensors, return_lse, **variant):
    """Attention that writes no output: NaN."""
    out, lse = attention_reference(*tensors, **variant)
    return out + torch.full_like(out, float("nan")), lse
