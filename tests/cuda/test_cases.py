"""The shared list of cases through the operators on interpreted CUDA kernels: the same rule."""

import dataclasses

import pytest
import torch
from case_factors import factors, sweeping
from error_rule import check_case
from interpreted import aligned_rows, resolver, shuffled

import tvm_flash
from tvm_flash.cases import CORRECTNESS, make_inputs
from tvm_flash.frontend import ops, placement
from tvm_flash.verify.rule import results

# float32 is the list's default type and a GPU's exception: cases not about it run in float16.
SERVED = [
    case if case.name.startswith("f32_") or case.dtype != "float32"
    else dataclasses.replace(case, dtype="float16")
    for case in CORRECTNESS
    if max(case.head_dim, case.head_dim_v or 0) <= 256
]  # fmt: skip


@pytest.fixture
def on(monkeypatch):
    """Operators on CPU tensors run interpreted kernels of an architecture."""
    monkeypatch.setattr(placement, "has_readable_rows", aligned_rows)
    return lambda arch, choice=0: monkeypatch.setattr(ops, "resolve", resolver(arch, choice))


def long_to_interpret(case):
    """float32 of many widths: its three products take half a minute; one of each kind stays."""
    widths = (case.head_dim, case.head_dim_v or case.head_dim)
    return case.dtype == "float32" and max(widths) > 64 and widths != (128, 128)


def gpu_factors(case):
    """As ``factors``, with fewer values. Which function a mask_mod or score_mod is changes no code
    around it: CPUs run each; biases are those of test_table_gradients."""
    found = factors(case)
    return found | {
        "width": -(-found["width"] // 2),
        "score": (*found["score"][:2], case.score_mod is not None),
        "mask_mod": (case.mask_mod is not None, case.block is not None),
        "tiles": tuple(min(tiles, 2) for tiles in found["tiles"]),
        "bias": False,
    }


@pytest.mark.parametrize("case", sweeping(SERVED, gpu_factors, long_to_interpret))
def test_case(case, on):
    on("sm_80")
    check_case(case)


def named(*names, sweep=()):
    """The cases of these names, and those of ``sweep`` for `pytest -m sweep`."""
    found = [case for case in SERVED if case.name in (*names, *sweep)]
    assert len(found) == len((*names, *sweep))
    marks = {True: [pytest.mark.sweep], False: []}
    return [pytest.param(case, id=case.name, marks=marks[case.name in sweep]) for case in found]


def the_case(name):
    """The one case of this name."""
    return next(case for case in SERVED if case.name == name)


@pytest.mark.parametrize(
    "case",
    named("f16_dim_80", "f16_gqa", sweep=("f16_full", "f16_large_logits", "everything")),
)
def test_turing_copies_through_registers_and_multiplies_in_halves(case, on):
    on("sm_75")
    check_case(dataclasses.replace(case, dtype="float16"))


@pytest.mark.parametrize("choice", range(5))
@pytest.mark.parametrize("dim", [64, 96, 128, 192, 256])
@pytest.mark.sweep
def test_every_config_of_the_tables(dim, choice, on):
    on("sm_80", choice)
    case = the_case("bf16_gqa")
    check_case(dataclasses.replace(case, head_dim=dim))


@pytest.mark.parametrize("dim", [pytest.param(128, marks=pytest.mark.sweep), 256])
def test_small_shared_memory(dim, on):
    on("sm_86")
    case = the_case("f16_full")
    check_case(dataclasses.replace(case, head_dim=dim))


def test_deterministic_gradients_do_not_depend_on_the_order_of_blocks(on):
    """Interpreter seeds shuffle warps and blocks; sums of atomics come out in their order."""
    on("sm_80")
    case = the_case("f16_gqa")
    runs = {}
    for seed in (1, 2, 3):
        run = {}
        for name, options in {"ordered": {"deterministic": True}, "atomic": {}}.items():
            with shuffled(seed):
                run[name] = results(
                    tvm_flash.attention, make_inputs(case), return_lse=True, **options
                )
        runs[seed] = run
    for seed in (2, 3):
        for name in runs[1]["ordered"]:
            assert torch.equal(runs[1]["ordered"][name], runs[seed]["ordered"][name]), name
        # dK and dV are summed in registers in both.
        for name in ("out", "lse", "dk", "dv"):
            assert torch.equal(runs[1]["atomic"][name], runs[seed]["atomic"][name]), name


@pytest.mark.parametrize(
    "case",
    named("everything", "f16_gqa", "view_bhsd", sweep=("bf16_full", "f32_full")),
)
def test_deterministic(case, on):
    on("sm_80")
    check_case(case, deterministic=True)


@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_scales_that_fold_badly(scale, on):
    """A negative factor would turn maxima into minima, zero a hidden key's -inf into NaN."""
    on("sm_80")
    case = the_case("f16_full")
    variant = {**case.variant, "softmax_scale": scale, "causal": True}
    check_case(dataclasses.replace(case, variant=variant))
