"""Operators under torch's own checks: opcheck, fake tensors, torch.compile, autograd."""

import pytest
import torch

import tvm_flash
from tvm_flash import AttentionSpec, attention
from tvm_flash.ops import spec_json, spec_name


def random(*shape, seed=0, dtype=torch.float32, grad=True):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).requires_grad_(grad)


def qkv(grad=True, dtype=torch.float32):
    return (
        random(2, 9, 4, 16, seed=1, grad=grad, dtype=dtype),
        random(2, 12, 2, 16, seed=2, grad=grad, dtype=dtype),
        random(2, 12, 2, 16, seed=3, grad=grad, dtype=dtype),
    )


SPEC = AttentionSpec("float32", 16, causal=True)


@pytest.mark.parametrize("text", [spec_name, spec_json], ids=["name", "json"])
def test_opcheck_forward(text):
    operator = torch.ops.tvm_flash.attention_forward.default
    torch.library.opcheck(operator, (*qkv(), [], text(SPEC), 0.25))


def test_opcheck_backward():
    q, k, v = (x.detach() for x in qkv())
    out, lse = attention(q, k, v, causal=True, softmax_scale=0.25, return_lse=True)
    operator = torch.ops.tvm_flash.attention_backward.default
    args = (torch.randn_like(out), torch.randn_like(lse), q, k, v, out, lse, [], spec_name(SPEC))
    torch.library.opcheck(operator, (*args, 0.25), test_utils=("test_schema", "test_faketensor"))


def test_opcheck_with_a_captured_table():
    slopes = torch.rand(2, 4)
    spec = AttentionSpec("float32", 16, alibi=True)
    operator = torch.ops.tvm_flash.attention_forward.default
    torch.library.opcheck(operator, (*qkv(), [slopes], spec_name(spec), 0.25))


def test_meta_tensors_give_shapes_without_a_kernel():
    q, k, v = (
        torch.empty(shape, device="meta") for shape in ((1, 5, 4, 32), (1, 7, 2, 32), (1, 7, 2, 16))
    )
    out, lse = torch.ops.tvm_flash.attention_forward(
        q, k, v, [], spec_name(AttentionSpec("float32", 32, 16)), 1.0
    )
    assert (out.shape, lse.shape, lse.dtype) == ((1, 5, 4, 16), (1, 4, 5), torch.float32)


def compiled_matches_eager(function, *args):
    want = torch.autograd.grad(function(*args).square().sum(), args)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(*args).square().sum(), args)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_compile_of_built_in_variants_in_one_graph():
    slopes = torch.rand(4)

    def layer(q, k, v):
        x = attention(q, k, v, causal=True, softcap=20.0, alibi_slopes=slopes)
        return tvm_flash.flash_attn_func(x, k, v, window_size=(4, 4)) * 2

    compiled_matches_eager(layer, *qkv())


def test_compile_of_a_captured_score_mod_in_one_graph():
    table = torch.randn(40)
    mods = tvm_flash.capture(
        lambda score, b, h, q_idx, k_idx: score + table[q_idx - k_idx + 20],
        lambda b, h, q_idx, k_idx: (q_idx + k_idx) % 3 != 0,
    )
    compiled_matches_eager(lambda q, k, v: attention(q, k, v, score_mod=mods), *qkv())


@pytest.mark.slow
def test_compile_with_inductor():
    function = lambda q, k, v: tvm_flash.flash_attn_func(q * 2, k, v, causal=True) + 1  # noqa: E731
    args = qkv()
    torch.testing.assert_close(torch.compile(function, fullgraph=True)(*args), function(*args))


def test_compile_with_dynamic_lengths():
    function = lambda q, k, v: tvm_flash.flash_attn_func(q, k, v, causal=True)  # noqa: E731
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (5, 8, 13):
        args = [random(1, length, 2, 16, seed=n) for n in range(3)]
        torch.testing.assert_close(compiled(*args), function(*args))


@pytest.mark.parametrize("variant", [{"causal": True}, {"softcap": 2.0}, {"window_size": (3, 2)}])
def test_gradients_by_finite_differences(variant):
    """Along random directions; float32 kernels, so the step is wide and the check in float64."""
    args = qkv()
    weights, pull = random(2, 9, 4, 16, seed=7, grad=False), random(2, 4, 9, seed=8, grad=False)

    def loss(*tensors):
        out, lse = attention(*tensors, return_lse=True, **variant)
        return (out.double() * weights).sum() + (lse.double() * pull).sum()

    grads = torch.autograd.grad(loss(*args), args)
    for n, (x, grad) in enumerate(zip(args, grads, strict=True)):
        direction = random(*x.shape, seed=20 + n, grad=False)
        moved = [[y + s * 1e-2 * direction if y is x else y for y in args] for s in (1, -1)]
        with torch.no_grad():
            slope = (loss(*moved[0]) - loss(*moved[1])) / 2e-2
        assert abs(slope - (grad * direction).sum()) < 2e-3 * max(1.0, abs(slope))


def test_lse_alone_is_differentiable():
    q, k, v = qkv()
    _, lse = attention(q, k, v, return_lse=True)
    dq, dk = torch.autograd.grad(lse.sum(), (q, k))
    scores = torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(2, 2)) / 4
    want = torch.autograd.grad(scores.logsumexp(-1).sum(), (q, k))
    torch.testing.assert_close((dq, dk), want, atol=1e-5, rtol=1e-4)


def test_only_what_backward_needs_is_saved():
    saved = []
    q, k, v = qkv()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        out, lse = attention(q, k, v, causal=True, return_lse=True)
    expected = {x.data_ptr() for x in (q, k, v, out, lse)}
    assert {x.data_ptr() for x in saved} == expected
    assert len(saved) == 5


def test_second_derivative_is_refused():
    q, k, v = qkv()
    (dq,) = torch.autograd.grad(attention(q, k, v).sum(), q, create_graph=True)
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.autograd.grad(dq.sum(), q)


def test_frozen_inputs_need_no_gradient():
    q, k, v = qkv(grad=False)
    q.requires_grad_()
    out = attention(q, k, v)
    out.sum().backward()
    assert q.grad is not None
    assert k.grad is None
