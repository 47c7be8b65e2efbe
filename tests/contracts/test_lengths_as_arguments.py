"""Arguments that a compiled function computes from a length that it does not know."""

import math

import pytest
import torch

from tvm_flash import attention, flash_attn_func
from tvm_flash import scaled_dot_product_attention as sdpa

CALLS = {
    "half a window": lambda q, s: flash_attn_func(q, q, q, window_size=(s // 2, 0)),
    "a limited window": lambda q, s: flash_attn_func(q, q, q, window_size=(min(s, 16), 0)),
    "a window in a list": lambda q, s: attention(q, q, q, window_size=[s // 16, None]),
    "scale": lambda q, s: flash_attn_func(q, q, q, softmax_scale=s**-0.5),
    "scale of a logarithm": lambda q, s: attention(q, q, q, softmax_scale=math.log(s) / 9),
    "causal": lambda q, s: flash_attn_func(q, q, q, causal=s > 1),
    "softcap": lambda q, s: flash_attn_func(q, q, q, softcap=s / 8),
    "softcap of an integer": lambda q, s: flash_attn_func(q, q, q, softcap=s // 16),
    "no dropout": lambda q, s: flash_attn_func(q, q, q, 0.0 * s, deterministic=s > 22),
    "torch": lambda q, s: sdpa(q, q, q, None, 0 * s, s > 1, scale=1 / s, enable_gqa=s > 3),
}


@pytest.mark.parametrize("name", CALLS)
def test_it_compiles(name):
    torch._dynamo.reset()

    def call(q):
        return CALLS[name](q, q.shape[1])

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (20, 24):
        q = torch.randn(1, length, 2, 16, requires_grad="scale" in name)
        got, want = compiled(q), call(q)
        assert torch.equal(got, want)
        if q.requires_grad:
            assert torch.equal(*(torch.autograd.grad(x.sin().sum(), q)[0] for x in (got, want)))


@pytest.mark.parametrize(
    "name",
    [
        "half a window",
        *(
            pytest.param(f"a {x}", marks=pytest.mark.sweep)
            for x in ("limited window", "window in a list")
        ),
    ],
)
def test_a_window_of_any_length_is_compiled_once(name):
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[name], fullgraph=True, dynamic=True, backend="aot_eager")
    stance = "default"
    for length in (20, 24, 33, 70):
        q = torch.randn(1, length, 2, 16, requires_grad=True)
        with torch.compiler.set_stance(stance):
            got = compiled(q, q.shape[1])
        stance, want = "fail_on_recompile", CALLS[name](q, length)
        assert torch.equal(got, want)
        assert torch.equal(*(torch.autograd.grad(x.sin().sum(), q)[0] for x in (got, want)))


@pytest.mark.parametrize("name", ["half a window", "a window in a list"])
def test_an_exported_window_serves_other_lengths(name):
    class Model(torch.nn.Module):
        def forward(self, q):
            return CALLS[name](q, q.shape[1])

    lengths = {1: torch.export.Dim("length", min=16, max=4096)}
    exported = torch.export.export(
        Model(), (torch.randn(1, 40, 2, 16),), dynamic_shapes=(lengths,)
    ).module()
    for length in (33, 70):
        q = torch.randn(1, length, 2, 16)
        assert torch.equal(exported(q), CALLS[name](q, length))


@pytest.mark.parametrize("window", [torch.tensor([2, 0]), (torch.tensor(2), 0)], ids=str)
def test_a_tensor_there_is_named(window):
    torch._dynamo.reset()
    q = torch.randn(1, 20, 2, 16)

    def call(q, window, scale):
        return attention(q, q, q, window_size=window, softmax_scale=scale)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=r"window_size under torch\.compile must be of plain"):
        compiled(q, window, 0.5)
    with pytest.raises(Exception, match=r"softmax_scale under torch\.compile must be of plain"):
        compiled(q, (2, 0), torch.tensor(0.5))
    partly = torch.compile(call, backend="aot_eager")  # may leave the compiler
    assert torch.equal(partly(q, window, torch.tensor(0.5)), call(q, (2, 0), 0.5))


def test_an_exported_program_computes_a_window_of_its_length(tmp_path):
    class Half(torch.nn.Module):
        def forward(self, q):
            return attention(q, q, q, window_size=(q.shape[1] // 2, 3))

    dynamic = ({1: torch.export.Dim("length", min=8, max=4096)},)
    program = torch.export.export(Half(), (torch.randn(1, 20, 2, 16),), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "half.pt2")
    loaded = torch.export.load(tmp_path / "half.pt2").module()
    for length in (20, 33, 70):
        q = torch.randn(1, length, 2, 16)
        assert torch.equal(loaded(q), Half()(q))
