"""The error rule itself: what it allows, and that it compares with what is exact."""

import pytest
import torch
from error_rule import off, unwritten

from tvm_flash import attention
from tvm_flash.cases import CORRECTNESS, make_inputs
from tvm_flash.problem.dtype import DTYPES
from tvm_flash.reference import attention_reference
from tvm_flash.verify.rule import (
    ROUND_OFF,
    Deviation,
    allowed_error,
    judged,
    largest_error,
    results,
)

CASES = {case.name: case for case in CORRECTNESS}


def test_twice_the_error_of_torch_and_three_times_for_gradients():
    exact, plain = torch.tensor([1.0, 2.0]).double(), torch.tensor([1.0, 2.5])
    assert allowed_error("out", "float32", exact, plain) == pytest.approx(1.0 + ROUND_OFF)
    assert allowed_error("dq", "float32", exact, plain) == pytest.approx(1.5 + ROUND_OFF)
    lse = allowed_error("lse", "bfloat16", exact, plain)
    assert lse == pytest.approx(1.0 + DTYPES["bfloat16"].lse_round_off)
    assert not Deviation("out", error=3e-3, allowed=2e-3).ok
    assert not Deviation("out", error=float("nan"), allowed=1.0).ok


def test_equal_infinities_are_equal_and_nan_is_infinitely_wrong():
    inf, nan = torch.tensor(float("inf")), torch.tensor(float("nan"))
    assert largest_error(inf, inf) == 0 and not largest_error(nan, inf) <= 1e9
    assert largest_error(nan, nan) > 1e9
    assert largest_error(torch.ones(0), torch.ones(0)) == 0
    with pytest.raises(ValueError, match="shape"):
        largest_error(torch.ones(1, 2), torch.ones(2))


@pytest.mark.parametrize("name", ["bf16_gqa", "f16_gqa"])
def test_exact_gradients_are_not_rounded_to_the_dtype_of_the_inputs(name):
    """Autograd rounds a gradient to its leaf: bfloat16 leaves would round the float64 oracle."""
    inputs = make_inputs(CASES[name])
    exact = results(attention_reference, inputs, torch.float64)
    rounded = inputs.q.dtype
    for result, tensor in exact.items():
        assert tensor.dtype == torch.float64, result
        assert largest_error(tensor.to(rounded), tensor) > 0, f"{result} has its digits"
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    out, lse = attention_reference(*leaves, **inputs.variant, upcast=torch.float64)
    upstream = (inputs.dout.double(), inputs.dlse.double())
    for one in torch.autograd.grad((out, lse), leaves, upstream):
        assert one.dtype == rounded, "what the oracle gives for leaves of the inputs' dtype"


def test_an_error_below_the_rounding_of_the_oracle_counts():
    """The plain gradients themselves have an error that a rounded oracle would hide or double."""
    inputs = make_inputs(CASES["bf16_gqa"])
    exact = results(attention_reference, inputs, torch.float64)
    best = {name: x.to(inputs.q.dtype) for name, x in exact.items() if name != "lse"}
    for name, got in best.items():
        assert largest_error(got, exact[name]) > 0
        assert largest_error(got, exact[name].to(inputs.q.dtype)) == 0


def test_a_case_is_judged():
    found = judged(attention, make_inputs(CASES["bf16_relative_bias"]))
    assert [deviation.result for deviation in found] == ["out", "lse", "dq", "dk", "dv"]
    assert all(deviation.ok for deviation in found)


def test_a_forward_is_judged_alone():
    found = judged(attention, make_inputs(CASES["f32_full"]), backward=False)
    assert [deviation.result for deviation in found] == ["out", "lse"]


def test_wrong_and_unwritten_results_break_the_rule():
    broken = {d.result for d in judged(off, make_inputs(CASES["f32_full"])) if not d.ok}
    assert broken == {"out", "dq", "dk", "dv"}
    found = judged(unwritten, make_inputs(CASES["f32_full"]), backward=False)
    assert [d.result for d in found if not d.ok] == ["out"]
