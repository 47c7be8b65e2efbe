"""Linear attention by interpreted GPU kernels: the definition, the operator, spills, banks."""

import pytest
import torch
from interpreted import aligned_rows, interpreted, resolver
from linear_problems import B, H, check

from tvm_flash import AttentionSpec, linear_attention
from tvm_flash.codegen.cuda import ptx_of, ptx_version
from tvm_flash.codegen.nvcc import assemble
from tvm_flash.codegen.sass.spills import spill_reasons
from tvm_flash.frontend import linear_kernel, placement
from tvm_flash.reference import linear_reference
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.select import cuda_programs
from tvm_flash.verify.compiled import verify_spec
from tvm_flash.verify.rule import deviations


def spec_of(dtype, head_dim, head_dim_v, causal):
    widths = {"head_dim": head_dim, "head_dim_v": head_dim_v}
    return AttentionSpec(dtype=dtype, causal=causal, computes="linear", **widths)


# Queries, keys, key/value heads, parts (some without a row), reverse, normalize, age of the state.
CALLS = [
    (True, (70, 70, 1, 2, 1, 0, 0)),
    (False, (40, 70, 2, 2, 0, 1, 0)),
    *(
        pytest.param(causal, call, marks=pytest.mark.sweep)
        for causal in (True, False)
        for call in ((64, 64, 2, 1, 0, 1, 1), (0, 0, 1, 1, 1, 0, 0), (200, 200, 1, 6, 0, 0, 1))
    ),
]


@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.sweep)])
def test_kernels_without_tf32(causal):
    spec = spec_of("float16", 16, 16, causal)
    check(spec, (20, 20, 1, 1, 0, 1, 1), interpreted(spec, "linear", "sm_75"))


@pytest.mark.parametrize(("causal", "call"), CALLS, ids=str)
def test_kernels_are_the_definition(causal, call):
    spec = spec_of("float32", 24, 40, causal)
    check(spec, call, interpreted(spec, "linear"))


# Launches of the forward and dV, and of dQ and dK: two each, since there is one part.
DIMS = ((16, 24), (24, 16))


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.sweep)])
def test_the_operator_and_its_gradients(dtype, monkeypatch):
    monkeypatch.setattr(linear_kernel, "resolve", resolver("sm_90"))
    monkeypatch.setattr(placement, "has_readable_rows", aligned_rows)
    generator = torch.Generator().manual_seed(0)
    shapes = (H, 16), (1, 16), (1, 24)
    rows = [torch.rand(B, 70, *shape, generator=generator) for shape in shapes]
    given = [x.to(getattr(torch, dtype)) for x in rows]
    state = torch.rand(B, H, 16, 25, generator=generator)
    dout = torch.randn(B, 70, H, 24, generator=generator)
    options = {"causal": True, "decay": torch.tensor([0.95, 0.5])}

    def results(function, upcast=None, **more):
        leaves = [x.to(upcast or x.dtype).requires_grad_() for x in (*given, state)]
        call = {**options, **more, "initial_state": leaves[3]}
        out, behind = function(*leaves[:3], **call)
        gradients = torch.autograd.grad(
            (out, behind), leaves, (dout.to(out.dtype), behind.detach())
        )
        names = ("out", "state", "dq", "dk", "dv", "dstate")
        return dict(zip(names, (out.detach(), behind.detach(), *gradients), strict=True))

    exact, plain = results(linear_reference, torch.float64), results(linear_reference)
    for deviation in deviations(dtype, results(linear_attention, return_state=True), exact, plain):
        assert deviation.ok, str(deviation)
    walks = [interpreted(spec_of(dtype, *dims, True), "linear", "sm_90", 0) for dims in DIMS]
    assert [x.total_bank_conflicts for walk in walks for x in walk.reports] == [0] * 4


WIDTHS = [("bfloat16", 128, 128, "sm_80"), ("float16", 15, 100, "sm_86"),
          ("float32", 128, 64, "sm_120"), ("float16", 80, 128, "sm_90"),
          ("bfloat16", 64, 64, "sm_100"), ("float32", 64, 80, "sm_89"),
          ("float16", 64, 64, "sm_75"), ("float16", 128, 80, "sm_75"),
          ("bfloat16", 256, 160, "sm_90"), ("float16", 200, 256, "sm_86")]  # fmt: skip


@pytest.mark.sweep
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("dtype", "head_dim", "head_dim_v", "arch"), WIDTHS)
def test_widths(dtype, head_dim, head_dim_v, causal, arch):
    found = verify_spec(spec_of(dtype, head_dim, head_dim_v, causal), ("linear",), (arch,))
    outcomes = found.kernels[0].outcomes
    assert not [one.failure for one in outcomes if not one.ok]


@pytest.mark.sweep
@pytest.mark.parametrize("head_dim", [32, 64, 80, 128])
def test_no_bank_conflicts(head_dim):
    found = verify_spec(spec_of("float16", head_dim, head_dim, True), ("linear",), quick=True)
    assert found.ok, [one.failure for kernel in found.kernels for one in kernel.outcomes]
    counts = [one.counts for kernel in found.kernels for one in kernel.outcomes]
    assert [x.bank_conflicts for x in counts] == [0] * len(counts)


@pytest.mark.sweep
@pytest.mark.parametrize("head_dim", [16, 64, 96, 128, 256])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_builds_refuse_no_spills(dtype, head_dim):
    archs = tuple(arch for arch in ARCHS.values() if arch.bf16)
    for causal in (True, False):
        spec = spec_of(dtype, head_dim, head_dim, causal)
        for served, program in cuda_programs(spec, "linear", archs):
            for step, ptx in zip(
                program.launches, ptx_of(program, ptx_version(served)), strict=True
            ):
                for arch in served:
                    assert not spill_reasons(assemble(ptx, step.name, arch.name), step.name)
