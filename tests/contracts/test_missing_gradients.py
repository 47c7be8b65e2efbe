"""Gradients by other tensors than q, k and v: computed, or refused where they are wanted."""

import math

import pytest
import torch
from torch.autograd import forward_ad

from tvm_flash import attention, capture
from tvm_flash import scaled_dot_product_attention as sdpa
from tvm_flash.reference import attention_reference

Q, K, V = (torch.randn(1, 6, 2, 16, generator=torch.Generator().manual_seed(n)) for n in range(3))
HEADS_FIRST = [x.transpose(1, 2) for x in (Q, K, V)]


def biased(table):
    """A score_mod that reads ``table`` (6, 6)."""
    return lambda score, b, h, q_idx, k_idx: score + table[q_idx, k_idx]


def biased_row(table):
    """A score_mod that reads one row of ``table``."""
    return lambda score, b, h, q_idx, k_idx: score + table[0, k_idx]


# What each place makes of a tensor of its shape.
PLACES = {
    "alibi_slopes": ((2,), lambda x: attention(Q, K, V, alibi_slopes=x)),
    "attn_mask": ((6, 6), lambda x: sdpa(*HEADS_FIRST, x).transpose(1, 2)),
    "captured tensor": ((6, 6), lambda x: attention(Q, K, V, score_mod=biased(x))),
    "softmax_scale": ((), lambda x: attention(Q, K, V, softmax_scale=x)),
    "softcap": ((), lambda x: attention(Q, K, V, softcap=x)),
    "scale": ((), lambda x: sdpa(*HEADS_FIRST, scale=x).transpose(1, 2)),
    "dropout_p": ((), lambda x: sdpa(*HEADS_FIRST, dropout_p=x * 0).transpose(1, 2)),
}


def values(place):
    shape, call = PLACES[place]
    return torch.linspace(1.0, 0.1, math.prod(shape)).view(shape), call


COMPUTED = [place for place in PLACES if place != "dropout_p"]


@pytest.mark.parametrize("place", COMPUTED)
def test_a_wanted_gradient_is_that_of_differences(place):
    x, call = values(place)
    weight = torch.randn(Q.shape, generator=torch.Generator().manual_seed(3)).double()

    def loss(x):
        return (call(x).double() * weight).sum()

    found = torch.autograd.grad(loss(x.requires_grad_()), x)[0]
    step = 0.01 * torch.cos(torch.arange(x.numel()) + 0.3).view(x.shape)
    with torch.no_grad():
        ahead, behind = loss(x + step), loss(x - step)
    slope = (found.double() * step).sum() * 2
    torch.testing.assert_close(ahead - behind, slope, rtol=2e-2, atol=1e-4)


def test_dropout_has_no_gradient():
    x, call = values("dropout_p")
    with pytest.raises(NotImplementedError, match=r"dropout_p.* requires grad.*detach\(\)"):
        call(x.requires_grad_())


@pytest.mark.parametrize("place", PLACES)
def test_a_wanted_tangent_is_refused(place):
    x, call = values(place)
    message = f"forward-mode|{place}"
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with torch.no_grad(), pytest.raises(NotImplementedError, match=message):
            call(dual)
    with pytest.raises(NotImplementedError, match=message):
        torch.func.jvp(call, (x,), (torch.ones_like(x),))


@pytest.mark.parametrize("place", ["alibi_slopes", "attn_mask", "captured tensor"])
@pytest.mark.parametrize("transform", ["vmap(grad)", "grad(vmap)", "jacfwd"])
def test_transforms(place, transform):
    x, call = values(place)

    def loss(x):
        return call(x).square().sum()

    leaf = x.clone().requires_grad_()
    want = torch.autograd.grad(loss(leaf), leaf)[0]
    if transform == "jacfwd":
        with pytest.raises(NotImplementedError, match="forward-mode"):
            torch.func.jacfwd(call)(x)
        return
    transforms = {
        "vmap(grad)": torch.vmap(torch.func.grad(loss)),
        "grad(vmap)": torch.func.grad(lambda x: torch.vmap(loss)(x).sum()),
    }
    found = transforms[transform](torch.stack([x, x]))
    torch.testing.assert_close(found, torch.stack([want, want]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_parameter_serves_where_no_gradient_is_wanted(place, mode):
    x, call = values(place)
    want = call(x)
    with mode():
        assert torch.equal(call(torch.nn.Parameter(x)), want)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_view_that_was_captured_without_gradients_is_asked_again(mode):
    table = torch.nn.Parameter(torch.zeros(6, 6))
    with mode():
        captured = capture(biased_row(table))
        attention(Q, K, V, score_mod=captured)
    with pytest.raises(NotImplementedError, match="captured tensor 0 of shape"):
        attention(Q, K, V, score_mod=captured)


def test_a_mask_that_wants_a_gradient():
    table = torch.zeros(6, 6)
    captured = capture(mask_mod=lambda b, h, q, k: table[q, k] >= 0)
    for wanting in (torch.zeros(6, 6), torch.zeros(6, 6).double()):
        with pytest.raises(ValueError, match=r"captured tensor of shape \(6, 6\) .*no derivative"):
            attention(Q, K, V, mask_mod=captured.with_tables(wanting.requires_grad_()))


def test_a_detached_tensor_is_read():
    table = torch.nn.Parameter(torch.linspace(-1, 1, 36).view(6, 6)).detach().T
    want, _ = attention_reference(Q, K, V, score_mod=biased(table), upcast=torch.float64)
    plain = capture(biased(torch.zeros(6, 6)))
    for score_mod in (capture(biased(table)), plain.with_tables(table)):
        got = attention(Q, K, V, score_mod=score_mod).double()
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_a_compiled_region():
    torch._dynamo.reset()
    captured = capture(biased(torch.zeros(6, 6)))

    def block(x):
        return attention(Q, K, V, score_mod=captured.with_tables(x))

    def slope(block):
        return torch.autograd.grad(block(table).square().sum(), table)[0]

    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    table = torch.ones(6, 6, requires_grad=True)
    assert torch.equal(slope(compiled), slope(block))
    with torch.no_grad():
        assert torch.equal(compiled(table), block(table))
