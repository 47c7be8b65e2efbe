"""Properties over random shapes, with few kernels reused."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_flash import attention
from tvm_flash.reference import attention_reference
from tvm_flash.verify.rule import allowed_error, largest_error

LENGTHS = st.integers(1, 200)
DEADLINE = settings(max_examples=25, deadline=None)


def random(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


HEADS = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))


@DEADLINE
@given(sq=LENGTHS, sk=LENGTHS, heads=HEADS, causal=st.booleans(), seed=st.integers(0, 99))
def test_any_shape_matches_float64(sq, sk, heads, causal, seed):
    batch, kv, group = heads
    q, k, v = (
        random((batch, s, h, 24), seed + n).requires_grad_()
        for n, (s, h) in enumerate(((sq, kv * group), (sk, kv), (sk, kv)))
    )
    dout = random((batch, sq, kv * group, 24), seed + 3)

    def results(function, leaves, **extra):
        out = function(*leaves, causal=causal, **extra)
        out = out[0] if isinstance(out, tuple) else out
        return (out, *torch.autograd.grad(out, leaves, dout.to(out.dtype)))

    got = results(attention, (q, k, v))
    exact = results(attention_reference, [x.detach().double().requires_grad_() for x in (q, k, v)])
    plain = results(attention_reference, [x.detach().requires_grad_() for x in (q, k, v)])
    for n, name in enumerate(("out", "dq", "dk", "dv")):
        allowed = allowed_error(name, "float32", exact[n], plain[n])
        assert largest_error(got[n], exact[n]) <= allowed, name


@DEADLINE
@given(length=st.integers(1, 150), extra=st.integers(0, 80), seed=st.integers(0, 99))
def test_keys_after_the_last_visible_one_change_nothing(length, extra, seed):
    q, k, v = (random((1, length, 2, 24), seed + n) for n in range(3))
    more = [torch.cat((x, random((1, extra, 2, 24), 7)), 1) for x in (k, v)]
    want = attention(q, k, v, causal=True, alignment="top_left")
    torch.testing.assert_close(attention(q, *more, causal=True, alignment="top_left"), want)


@DEADLINE
@given(length=st.integers(1, 150), seed=st.integers(0, 99))
def test_a_permutation_of_keys_changes_nothing(length, seed):
    q, k, v = (random((1, length, 2, 24), seed + n) for n in range(3))
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    want = attention(q, k, v)
    torch.testing.assert_close(attention(q, k[:, order], v[:, order]), want, atol=1e-5, rtol=1e-4)


@DEADLINE
@given(length=st.integers(1, 150), shift=st.floats(-50, 50), seed=st.integers(0, 99))
def test_output_is_a_convex_combination_of_values(length, shift, seed):
    q, k = (random((1, length, 2, 24), seed + n) for n in range(2))
    v = torch.full((1, length, 2, 24), shift)
    torch.testing.assert_close(attention(q, k, v), v, atol=1e-4, rtol=1e-5)
