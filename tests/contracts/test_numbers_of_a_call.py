"""One kernel serves every window and every cap, and its launcher refuses what is neither."""

import dataclasses
import math
from itertools import product

import pytest
import torch
from error_rule import check_case

from tvm_flash import attention
from tvm_flash.cases import Case, make_inputs
from tvm_flash.codegen.build import build
from tvm_flash.frontend import ops
from tvm_flash.frontend.ops import spec_json
from tvm_flash.problem.arguments import MAX_WINDOW
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.reference import attention_reference
from tvm_flash.runtime.call import completed, new_tensors
from tvm_flash.runtime.loader import opened
from tvm_flash.verify.rule import largest_error

# Residues of tiles, ends of 0, ends beyond the lengths, and 2^30 as far as an end may be.
NUMBERS = {
    "window": [{"window_size": ends} for ends in ((20, 5), (0, 1), (3, 63), (500, MAX_WINDOW))],
    "causal_window": [{"window_size": (left, 0)} for left in (16, 0, 64, MAX_WINDOW)],
    "windowleft": [{"window_size": (left, -1)} for left in (11, 0, 1000)],
    "windowright": [{"window_size": (-1, right)} for right in (7, 1, 1000)],
    "softcap": [{"softcap": cap} for cap in (2.0, 0.5, 30.0, 1e9)],
    "window_softcap": [
        {"window_size": (9, 70), "softcap": 1.0}, {"window_size": (70, 1), "softcap": 15.0},
    ],
}  # fmt: skip
LENGTHS = [(70, 90), (97, 33)]  # the second: rows without a key


@pytest.fixture
def served(monkeypatch):
    """The kernels that operators ran."""
    found, resolve = [], ops.resolve

    def recorded(*problem):
        found.append(resolve(*problem))
        return found[-1]

    monkeypatch.setattr(ops, "resolve", recorded)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", NUMBERS)
def test_one_kernel_serves_all_numbers(kind, device, served):
    pairs = list(product(LENGTHS, NUMBERS[kind]))
    if device != "cpu":  # interpreted, a call takes a second
        pairs = list(zip(LENGTHS * 2, NUMBERS[kind], strict=False))
    for (seqlen_q, seqlen_k), variant in pairs:
        case = Case(f"{variant}", "float32" if device == "cpu" else "float16", 16, variant=variant)
        assert case.spec.name.endswith(f"_d16_{kind}")
        check_case(
            dataclasses.replace(
                case, batch=1, heads=1, kv_heads=1, seqlen_q=seqlen_q, seqlen_k=seqlen_k
            )
        )
    assert len(served) == 2 * len(pairs) and len(set(served)) == 2, "one for each direction"


@pytest.mark.parametrize("cap", [1e4, 1e9, 1e30])
def test_a_cap_above_all_scores_changes_none(cap, device):
    q, k, v, *_ = make_inputs(Case("large cap", "float16", 16, batch=1))
    out, lse = attention(q, k, v, softcap=cap, return_lse=True)
    want, want_lse = attention_reference(q, k, v, upcast=torch.float64)
    assert largest_error(out, want) < 1e-3 and largest_error(lse, want_lse) < 5e-6


SPEC = AttentionSpec(
    dtype="float32", head_dim=16, window_left=True, window_right=True, softcap=True
)
GIVEN = {"softmax_scale": 0.25, "window_left": 3, "window_right": 2, "softcap": 5.0}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """By direction, of one loaded library."""
    folder = tmp_path_factory.mktemp("numbers") / "kernels"
    return {k.direction: k for k in opened(build([SPEC], path=folder, buckets=("tiny",))).kernels}


def call(kernel, inputs, **numbers):
    """What ``kernel`` is called with, in order."""
    given = {name: getattr(inputs, name) for name in ("q", "k", "v", "dout", "dlse")}
    given |= GIVEN | {"out": torch.zeros(2, 70, 2, 16), "lse": torch.zeros(2, 2, 70)} | numbers
    values = kernel.sizes((2, 2, 2, 70, 90), threads=torch.get_num_threads())
    return completed(kernel.arguments, given, new_tensors(values))


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    "name, numbers",
    [
        ("window_left", (-1, MAX_WINDOW + 1, -(2**31), 2**32 + 3, 2**40)),
        ("window_right", (-1, MAX_WINDOW + 1, 3 - 2**32)),
        ("softcap", (0.0, -1.0, math.inf, math.nan, 1e-40, 1e38)),
        ("softmax_scale", (math.inf, -math.inf, math.nan, 3.5e38)),
    ],
)
def test_a_launcher_refuses_what_is_no_end_or_cap(kernels, direction, name, numbers):
    kernel, inputs = kernels[direction], make_inputs(Case("wrong", head_dim=16))
    for number in numbers:
        with pytest.raises(ValueError, match=f"{name} must lie in"):
            kernel(*call(kernel, inputs, **{name: number}).values())
    kernel(*call(kernel, inputs).values())


def test_calls_with_other_numbers_of_one_loaded_kernel(kernels):
    inputs = make_inputs(Case("numbers", head_dim=16))
    for left, right, cap in ((3, 2, 5.0), (40, 0, 0.5), (0, 90, 100.0)):
        numbers = {"window_left": left, "window_right": right, "softcap": cap}
        given = call(kernels["forward"], inputs, **numbers)
        kernels["forward"](*given.values())
        leaves = [x.double().requires_grad_() for x in inputs[:3]]
        out, lse = attention_reference(
            *leaves, window_size=(left, right), softcap=cap, softmax_scale=0.25
        )
        assert largest_error(given["out"], out) < 3e-6 and largest_error(given["lse"], lse) < 3e-6
        saved = {"out": given["out"], "lse": given["lse"], "dlse": torch.zeros_like(lse).float()}
        given = call(kernels["backward"], inputs, **numbers, **saved)
        kernels["backward"](*given.values())
        want = torch.autograd.grad(out, leaves, inputs.dout.double())
        for name, grad in zip(("dq", "dk", "dv"), want, strict=True):
            assert largest_error(given[name], grad) < 1e-5, name


def test_an_operator_without_the_numbers_of_its_spec_is_refused():
    q = torch.randn(1, 20, 2, 16)
    run = torch.ops.tvm_flash.attention_forward
    with pytest.raises(ValueError, match="window_left must lie in 0"):
        run(q, q, q, [], spec_json(SPEC), 0.25)
    numbers = {"window_left": 3, "window_right": 2, "softcap": 5.0}
    for wrong in ({"window_left": 2**32 + 3}, {"softcap": math.nan}):
        with pytest.raises(ValueError, match="must lie in"):
            run(q, q, q, [], spec_json(SPEC), 0.25, **numbers | wrong)
    with pytest.raises(ValueError, match="softmax_scale must lie in"):
        run(q, q, q, [], spec_json(SPEC), math.inf, **numbers)
    out, _, _ = run(q, q, q, [], spec_json(SPEC), 0.25, **numbers)
    want = attention(q, q, q, window_size=(3, 2), softcap=5.0, softmax_scale=0.25)
    assert torch.equal(out, want)


def test_caps_that_kernels_cannot_hold_are_refused():
    q = torch.randn(1, 20, 2, 16)
    for cap in (-1.0, math.inf, math.nan, 1e-39, 2e30):
        with pytest.raises(ValueError, match="softcap"):
            attention(q, q, q, softcap=cap)
    for cap in (1e30, 2e-38):
        assert attention(q, q, q, softcap=cap).isfinite().all()
    assert torch.equal(attention(q, q, q, softcap=None), attention(q, q, q))
