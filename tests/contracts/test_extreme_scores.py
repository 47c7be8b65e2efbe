"""Scores at the ends of float32 and score functions with singular points, on CPUs and GPUs."""

import pytest
import torch
from pairwise import grid

from tvm_flash import attention
from tvm_flash.reference import attention_reference
from tvm_flash.verify.rule import allowed_error, largest_error

LOWEST = torch.finfo(torch.float32).min
RESULTS = ("out", "lse", "dq", "dk", "dv")


def on_each_device(names, *axes):
    """A grid of ``axes`` and devices."""
    return grid(f"{names}, device", *axes, ["cpu", "sm_80"], indirect=["device"])


def inputs(sq=37, sk=50, dtype=torch.float32):
    """q, k, v, dout, and the gradient of lse."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, n, 2, 16) for n in (sq, sk, sk, sq)]
    return [*(torch.randn(s, generator=generator).to(dtype) for s in shapes), torch.ones(1, 2, sq)]


def results(function, tensors, dtype, **variant):
    """out, lse, dq, dk, dv, computed in ``dtype``."""
    *leaves, dout, dlse = (x.to(dtype) for x in tensors)
    leaves = [x.detach().requires_grad_() for x in leaves]
    out, lse = function(*leaves, **variant)
    upstream = (dout, torch.where(lse.isfinite(), dlse.to(lse.dtype), 0.0))
    grads = torch.autograd.grad((out, lse), leaves, upstream)
    return dict(zip(RESULTS, (out.detach(), lse.detach(), *grads), strict=True))


def ours(q, k, v, **variant):
    return attention(q, k, v, return_lse=True, **variant)


def assert_within_the_rule(tensors, only=RESULTS, **variant):
    """Errors against float64: twice those of torch in the same dtype, three times for gradients."""
    dtype = tensors[0].dtype
    got = results(ours, tensors, dtype, **variant)
    exact = results(attention_reference, tensors, torch.float64, **variant)
    plain = results(attention_reference, tensors, dtype, **variant)
    for name in only:
        bound = allowed_error(name, str(dtype).removeprefix("torch."), exact[name], plain[name])
        error = largest_error(got[name], exact[name])
        assert error <= bound, f"{name}: {error} > {bound}"


@on_each_device("low, sq", [LOWEST, -1e38, -1e30, 1e30], [1, 37])
def test_a_finite_bias_hides_no_key(low, sq, device):
    """A row whose every key has it is the mean of V; beside others such keys have no weight."""
    bias = torch.zeros(sq, 50)
    bias[sq // 2, 7:] = low
    bias[0] = low
    tensors = inputs(sq)

    def score_mod(score, b, h, q_idx, k_idx):
        return score + bias[q_idx, k_idx]

    assert_within_the_rule(tensors, score_mod=score_mod)
    out, v = attention(*tensors[:3], score_mod=score_mod), tensors[2]
    torch.testing.assert_close(out[0, 0], v[0].mean(0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_lowest_number_of_half_types_hides_no_key(dtype, device):
    bias = torch.zeros(37, 50, dtype=dtype)
    bias[0], bias[5, 9:] = torch.finfo(dtype).min, torch.finfo(dtype).min
    assert_within_the_rule(inputs(dtype=dtype), score_mod=lambda s, b, h, i, j: s + bias[i, j])


@on_each_device("scale, sq", [-1e30, 1e30, -1e37, 1e37, 2e37, -1e12, 3e5], [1, 37])
def test_scales_of_any_size(scale, sq, device):
    """Scores from -3e38 to 3e38: the largest wins, ties share.

    dP - delta is a difference of numbers near 1, of which float32 rounding (6e-8) is left where
    one key has all the weight: dQ and dK are the scale times that, as in FlashAttention.
    """
    tensors = inputs(sq)
    tensors[0], tensors[1] = (x.sign() for x in tensors[:2])  # dot products are exact, with ties
    assert_within_the_rule(tensors, ("out", "lse", "dv"), softmax_scale=scale)
    got, exact = (
        results(f, tensors, dtype, softmax_scale=scale)
        for f, dtype in ((ours, torch.float32), (attention_reference, torch.float64))
    )
    for name in ("dq", "dk"):
        error = largest_error(got[name] / abs(scale), exact[name] / abs(scale))
        assert error <= 100 * torch.finfo(torch.float32).eps, name


@pytest.mark.parametrize("size", [2.0**10, 2.0**30, 2.0**60])
def test_inputs_of_any_size(size, device):
    """Dot products up to 2e37."""
    tensors = inputs()
    tensors[0], tensors[1] = (x.sign() * size for x in tensors[:2])
    assert_within_the_rule(tensors, ("out", "lse"))


def root(s):
    return torch.sign(s) * torch.sqrt(torch.abs(s))


SINGULAR = {
    "derivative infinite at 0": root,
    "power": lambda s: torch.abs(s) ** 0.7,
    "value -inf at 0": lambda s: torch.log(torch.abs(s)),
    "value +inf at 0": lambda s: torch.where(s == 0, torch.inf, s),
    "value NaN at 0": lambda s: s / torch.abs(s),
    "value finite, parts infinite": lambda s: 1 / (2 + 1 / torch.abs(s)),
}


@on_each_device("sizes, name", [(1, 50), (37, 50), (64, 64)], list(SINGULAR))
def test_padding_is_no_score_of_zero(name, sizes, device):
    """No real score is 0; rows and keys that fill up a tile would have it."""
    assert_within_the_rule(inputs(*sizes), score_mod=lambda s, *_: SINGULAR[name](s))


def test_a_hidden_key_has_no_gradient_whatever_its_score(device):
    """Its score or derivative is NaN or infinite; all is as without these keys."""
    q, k, v, dout, dlse = inputs()
    nothing = torch.zeros(1)  # captured, so that no compiler sees the division

    def score_mod(score, b, h, q_idx, k_idx):
        zero = score * nothing[0 * b]
        return torch.where(k_idx < 40, score, root(zero) / zero)

    hidden = {"score_mod": score_mod, "mask_mod": lambda b, h, q_idx, k_idx: k_idx < 40}
    got = results(ours, (q, k, v, dout, dlse), q.dtype, **hidden)
    want = results(ours, (q, k[:, :40], v[:, :40], dout, dlse), q.dtype)
    for name in RESULTS:
        rows = 40 if name in ("dk", "dv") else 37
        there = got[name] if name == "lse" else got[name][:, :rows]
        torch.testing.assert_close(there, want[name], atol=1e-5, rtol=1e-5)
    assert (got["dk"][:, 40:] == 0).all() and (got["dv"][:, 40:] == 0).all()


FLAT = {
    "relu": lambda s: torch.sqrt(torch.relu(s)),
    "relu twice": lambda s: torch.sqrt(torch.relu(s) * torch.relu(s)),
    "clamp": lambda s: s.clamp(min=0.0) ** 0.7,
    "hardtanh": lambda s: torch.sqrt(torch.nn.functional.hardtanh(s, 0.0, 1.0)),
    "where": lambda s: torch.sqrt(torch.where(s > 0, s, 0.0)),
}


@pytest.mark.parametrize("name", FLAT)
def test_what_is_flat_has_no_slope_beside_an_infinite_one(name):
    """As in torch, which leaves out the branch, where 0 times infinity would be NaN."""
    assert_within_the_rule(inputs(3, 20), score_mod=lambda s, *_: FLAT[name](s))
