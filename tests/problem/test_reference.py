"""The numeric oracle against torch's own attention, and the rows where that gives NaN."""

import pytest
import torch
import torch.nn.functional as F

from tvm_flash.cases import CASES, make_inputs
from tvm_flash.reference import attention_reference


def problem(b=2, sq=7, sk=9, h=4, hk=2, d=8, dv=6):
    """q, k, v in float64 that require grad."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((b, sq, h, d), (b, sk, hk, d), (b, sk, hk, dv))
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


@pytest.mark.parametrize("causal", [False, True])
def test_agrees_with_torch(causal):
    q, k, v = problem()
    out, lse = attention_reference(q, k, v, causal=causal, alignment="top_left", softmax_scale=0.3)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(
        *heads_first, is_causal=causal, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(out, expected.transpose(1, 2))
    scores = heads_first[0] @ heads_first[1].repeat_interleave(2, 1).transpose(-1, -2) * 0.3
    if causal:
        scores = scores.masked_fill(torch.ones(7, 9).triu(1).bool(), float("-inf"))
    torch.testing.assert_close(lse, scores.logsumexp(-1))


def test_bottom_right_puts_the_last_row_on_the_last_key():
    q, k, v = problem(sq=3)
    whole, _ = attention_reference(q, k, v, causal=True)
    last, _ = attention_reference(q[:, -1:], k, v)
    first, _ = attention_reference(q[:, :1], k[:, :7], v[:, :7])
    torch.testing.assert_close(whole[:, -1:], last)
    torch.testing.assert_close(whole[:, :1], first)


@pytest.mark.parametrize("sk", [4, 0])
def test_rows_without_keys_are_zero_and_their_gradients_finite(sk):
    q, k, v = problem(sk=sk)
    out, lse = attention_reference(q, k, v, causal=True)
    empty = 7 - sk
    assert (out[:, :empty] == 0).all() and (lse[..., :empty] == -float("inf")).all()
    assert lse[..., empty:].isfinite().all()
    seen = torch.where(lse.isinf(), 0.0, lse)
    grads = torch.autograd.grad(out.sum() + seen.sum(), (q, k, v))
    assert all(grad.isfinite().all() for grad in grads)
    assert (grads[0][:, :empty] == 0).all()


def test_gradients_are_those_of_finite_differences():
    inputs = problem(b=1, sq=3, sk=4, h=2, hk=1, d=3, dv=2)
    slopes = torch.tensor([0.1, 0.4])

    def function(q, k, v):
        return attention_reference(
            q, k, v, window_size=(2, 1), softcap=2.0, alibi_slopes=slopes,
            score_mod=lambda s, b, h, q_idx, k_idx: s * (1 + 0.1 * q_idx),
        )  # fmt: skip

    assert torch.autograd.gradcheck(function, inputs)


def test_upcast():
    q, k, v = (x.detach().bfloat16() for x in problem())
    assert attention_reference(q, k, v)[0].dtype == torch.bfloat16
    assert attention_reference(q, k, v, upcast=torch.float64)[0].dtype == torch.float64


def test_listed_cases_differ_and_repeat():
    assert len({case.name for case in CASES}) == len(CASES)
    for view in ("bshd", "bhsd", "packed", "every_other"):
        case = next(case for case in CASES if case.view == view)
        inputs, again = make_inputs(case, 1), make_inputs(case, 1)
        assert torch.equal(inputs.q, again.q) and inputs.q.stride(-1) == 1
        assert inputs.q.is_contiguous() == (view == "bshd")
        assert not torch.equal(inputs.q, make_inputs(case, 2).q)
