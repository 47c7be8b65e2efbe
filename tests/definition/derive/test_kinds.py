"""Each plain definition and its derived gradient, compiled, against float64 autograd."""

import pytest
import torch
from attention_kinds import exact, rises
from problems import Sizes, captured, compile_function, inputs

from tvm_flash.definition.derive.formula import names
from tvm_flash.definition.kinds import gradient_of, recurrence_of
from tvm_flash.definition.plain import plain_forward
from tvm_flash.definition.plain_backward import plain_backward
from tvm_flash.definition.rows import KINDS
from tvm_flash.schedules.target import host_target
from tvm_flash.verify.rule import largest_error

SIZES = [
    Sizes(b=1, sq=13, sk=21, h=4, hk=2),
    Sizes(b=1, sq=9, sk=4, h=2, hk=1),
]  # rows without keys


VARIANTS = {"causal": {"causal": True}, "score_mod": {"score_mod": rises, "window_size": (6, 3)}}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
def test_plain_definitions(kind, variant):
    options = VARIANTS[variant]
    spec, tables, numbers = captured(options, dtype="float32", head_dim=8, softmax=kind)
    target = host_target().tvm_target()
    forward = compile_function(plain_forward(spec), target)
    backward = compile_function(plain_backward(spec), target)
    for sizes in SIZES:
        q, k, v, dout = inputs(spec, sizes)
        sink = torch.linspace(-1, 3, sizes.h)
        own = [sink] if kind == "sink" else []
        leaves = [x.double().requires_grad_() for x in (q, k, v, *own)]
        out, lse = exact(kind, *leaves[:3], leaves[3] if own else sink, options)
        statistics = (
            [] if lse is None else [torch.full(lse.shape, torch.nan) for _ in spec.saved_statistics]
        )
        got = torch.full_like(q, torch.nan)
        scale = q.shape[-1] ** -0.5
        forward(q, k, v, got, *statistics, *own, *tables, scale, *numbers)
        assert largest_error(got, out) < 3e-6
        if lse is not None:
            assert largest_error(statistics[0], lse) < 3e-6
        upstream = []
        total = (out * dout.double()).sum()
        if lse is not None:
            dlse = torch.randn(lse.shape, generator=torch.Generator().manual_seed(3))
            total = total + torch.where(lse.isinf(), 0.0, lse * dlse).sum()
            upstream = [dlse]
        want = torch.autograd.grad(total, leaves)
        grads = [torch.full_like(x, torch.nan) for x in (q, k, v, *own)]
        backward(q, k, v, got, dout, *statistics, *upstream, *grads, *own, *tables, scale, *numbers)
        for name, a, b in zip(("dq", "dk", "dv", "dsink"), grads, want, strict=False):
            assert largest_error(a, b) < 1e-5, name


def test_sigmoid_has_no_delta():
    assert not gradient_of("sigmoid").reads_delta
    assert all(gradient_of(kind).reads_delta for kind in KINDS if kind != "sigmoid")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_derived_is_made_once(kind):
    assert recurrence_of(kind) is recurrence_of(kind)
    assert gradient_of(kind) is gradient_of(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_a_factor_of_values(kind):
    """Read of the definition with dropout: the same recurrence, of values times z."""
    plain, dropped = recurrence_of(kind), recurrence_of(kind, dropout=True)
    assert set(dropped.blocks) - set(plain.blocks) == {"drop"}
    assert sorted(names(dropped.product.term)) == ["p", "v", "z"]
    for a, b in zip(plain.states, dropped.states, strict=True):
        assert (a.name, a.op, a.reads, str(a.start)) == (b.name, b.op, b.reads, str(b.start))
        assert str(a.factor) == str(b.factor)
    for formula in ("weight", "inverse", "statistics", "factor", "growth"):
        assert str(getattr(plain, formula)) == str(getattr(dropped, formula))
