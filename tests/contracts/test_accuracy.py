"""Rounding does not add up: float32 of wide heads and of many keys is as accurate as torch's."""

import pytest
import torch
from problems import Sizes, call_forward, compile_function, inputs

import tvm_flash
from tvm_flash.cases import Case, make_inputs
from tvm_flash.machine import cpu_features
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.reference import attention_reference
from tvm_flash.schedules.select import scheduled_module
from tvm_flash.schedules.target import TARGETS, cpu_target
from tvm_flash.verify.rule import deviations, results

# One target for each register file: more features multiply float32 in the same way.
RUNNABLE = [t.name for t in TARGETS if t.features <= cpu_features() and "+" not in t.name]


def three(case: Case):
    """Results of ``case`` by our kernels, in float64, and by torch in float32."""
    given = make_inputs(case)
    ours = results(tvm_flash.attention, given, return_lse=True)
    return (
        ours,
        results(attention_reference, given, torch.float64),
        results(attention_reference, given),
    )


def rms(found, exact) -> float:
    """Root mean square of the error: the largest is a matter of chance."""
    return (found.double() - exact).square().mean().sqrt().item()


@pytest.mark.parametrize(
    "head_dim, logits_scale",
    [(256, 1.0), (256, 6.8), (256, 24.0), (388, 1.0), (512, 1.0), (512, 6.8), (512, 24.0)],
)
def test_wide_heads(head_dim, logits_scale):
    sizes = {"batch": 1, "seqlen_q": 257, "seqlen_k": 257}
    case = Case("wide", head_dim=head_dim, logits_scale=logits_scale, **sizes)
    ours, exact, plain = three(case)
    for deviation in deviations("float32", ours, exact, plain):
        assert deviation.ok, str(deviation)
    for name in ("out", "dq", "dk"):
        assert rms(ours[name], exact[name]) < 1.3 * rms(plain[name], exact[name]), name


@pytest.mark.parametrize("name", RUNNABLE)
def test_a_score_is_no_running_sum(name):
    # With one key the lse is the score itself.
    target, spec, scale = cpu_target(name), AttentionSpec(dtype="float32", head_dim=500), 500**-0.5
    (func,) = scheduled_module(spec, "forward", target).mod.functions.values()
    q, k, v, _ = inputs(spec, Sizes(b=1, sq=257, sk=1, h=2, hk=2))
    _, lse = call_forward(compile_function(func, target.tvm_target()), q, k, v)
    exact = (q.double() * k.double()).sum(-1).transpose(1, 2) * scale
    running = torch.zeros(q.shape[:3])
    for column in range(500):
        running += q[..., column] * k[..., column]
    assert rms(lse, exact) < 0.8 * rms(running.transpose(1, 2).double() * scale, exact)


@pytest.mark.parametrize("seqlen_q, seqlen_k", [(17, 65536), (65536, 16), (3, 65536)])
def test_long_sequences(seqlen_q, seqlen_k):
    sizes = {"batch": 1, "heads": 1, "kv_heads": 1, "seqlen_q": seqlen_q, "seqlen_k": seqlen_k}
    ours, exact, plain = three(Case("long", **sizes))
    for name in exact:
        assert rms(ours[name], exact[name]) < 3 * rms(plain[name], exact[name]), name
