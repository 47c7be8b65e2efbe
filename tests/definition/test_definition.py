"""The definition compiles as it stands, both forms agree, and both agree with float64 torch."""

import pytest
import torch
from problems import (
    Sizes,
    backward_workspace,
    call_backward,
    call_forward,
    captured,
    compile_function,
    exact,
    inputs,
)

from tvm_flash.definition.plain import plain_forward
from tvm_flash.definition.plain_backward import plain_backward
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cpu.forms.backward import streaming_backward
from tvm_flash.schedules.cpu.forms.forward import streaming_forward
from tvm_flash.schedules.cpu.forms.tiles import BackwardTile, Bf16PairOperand, ForwardTile
from tvm_flash.schedules.target import host_target
from tvm_flash.verify.rule import largest_error


def rises_with_distance(score, b, h, q_idx, k_idx):
    return score + 0.05 * (q_idx - k_idx)


VARIANTS = {
    "full": {},
    "causal": {"causal": True},
    "window": {"window_size": (20, 5)},
    "softcap": {"softcap": 2.0, "causal": True},
    "score_mod": {"score_mod": rises_with_distance},
}
SIZES = [Sizes(), Sizes(b=1, sq=90, sk=40, h=2, hk=1)]


@pytest.fixture(scope="module")
def target():
    return host_target().tvm_target()


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_forms_agree(variant, target):
    spec, tables, numbers = captured(VARIANTS[variant], dtype="float32", head_dim=24, head_dim_v=16)
    plain = compile_function(plain_forward(spec), target)
    streaming = compile_function(streaming_forward(spec, ForwardTile(32, 16, 24, 16)), target)
    for sizes in SIZES:
        q, k, v, _ = inputs(spec, sizes)
        _, (out, lse) = exact(q, k, v, **VARIANTS[variant])
        for kernel in (plain, streaming):
            got_out, got_lse = call_forward(
                kernel, q, k, v, tables, spec.forward_statistics, numbers
            )
            assert largest_error(got_out, out) < 3e-6
            assert largest_error(got_lse, lse) < 3e-6


@pytest.mark.parametrize("variant", VARIANTS)
def test_backward_forms_agree(variant, target):
    spec, tables, numbers = captured(VARIANTS[variant], dtype="float32", head_dim=24, head_dim_v=16)
    plain = compile_function(plain_backward(spec), target)
    tile = BackwardTile(32, 32, 16, 24, 16, 32, 16, 32, 16)
    streaming = compile_function(streaming_backward(spec, tile), target)
    for sizes in SIZES:
        q, k, v, dout = inputs(spec, sizes)
        leaves, (out, lse) = exact(q, k, v, **VARIANTS[variant])
        dlse = torch.randn(lse.shape, generator=torch.Generator().manual_seed(1))
        finite = torch.where(lse.isinf(), 0.0, lse)
        want = torch.autograd.grad((out, finite), leaves, (dout.double(), dlse.double()))
        saved = (q, k, v, out.detach().float(), dout, lse.detach().float(), dlse)
        workspace = backward_workspace({"block_q": 32, "head_dim_pad": 32}, q, k)
        low = [torch.zeros_like(dlse) for _ in spec.saved_statistics[1:]]
        for kernel, extra in ((plain, ()), (streaming, workspace)):
            got = call_backward(kernel, *saved, tables, extra, low, numbers)
            for name, a, b in zip(("dq", "dk", "dv"), got, want, strict=True):
                assert largest_error(a, b) < 1e-5, name


def test_pair_operand_is_bf16(target):
    """Pairs of bf16 round P and nothing else: inputs that are bf16 already keep exact scores."""
    spec = AttentionSpec(dtype="bfloat16", head_dim=24, causal=True)
    tile = ForwardTile(32, 16, 24, 24, Bf16PairOperand())
    kernel = compile_function(streaming_forward(spec, tile), target)
    q, k, v, _ = inputs(spec, Sizes())
    _, (out, lse) = exact(q, k, v, causal=True)
    got_out, got_lse = call_forward(kernel, q, k, v)
    assert largest_error(got_lse, lse) < 3e-6
    assert largest_error(got_out, out) < 2**-7 * out.abs().max().item()


@pytest.mark.parametrize("head_rows", [False, True])
def test_pair_operand_of_the_backward_is_bf16(target, head_rows):
    """Pairs round P and dS, in either orientation of dK and dV."""
    variant = {"window_size": (40, 10)}
    spec, _, numbers = captured(variant, dtype="bfloat16", head_dim=24, head_dim_v=16)
    tile = BackwardTile(32, 32, 16, 12, 8, 32, 16, 12, 8, Bf16PairOperand(), head_rows)
    kernel = compile_function(streaming_backward(spec, tile), target)
    for sizes in (Sizes(), Sizes(b=1, sq=91, sk=41, h=2, hk=1)):
        q, k, v, dout = inputs(spec, sizes)
        leaves, (out, lse) = exact(q, k, v, **variant)
        want = torch.autograd.grad(out, leaves, dout.double())
        saved = (q, k, v, out.detach().to(q.dtype), dout, lse.detach().float())
        workspace = backward_workspace({"block_q": 32, "head_dim_pad": 32}, q, k)
        dlse = torch.zeros_like(saved[5])
        got = call_backward(kernel, *saved, dlse, (), workspace, numbers=numbers)
        for name, a, b in zip(("dq", "dk", "dv"), got, want, strict=True):
            assert largest_error(a, b) < 2**-6 * b.abs().max().item(), name
