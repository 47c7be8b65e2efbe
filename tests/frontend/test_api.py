"""Names, parameter orders and defaults of the peers, and parity with torch's SDPA."""

import inspect

import pytest
import torch
import torch.nn.functional as F

import tvm_flash
from tvm_flash import scaled_dot_product_attention as sdpa

TAIL = {
    "dropout_p": 0.0,
    "softmax_scale": None,
    "causal": False,
    "window_size": (-1, -1),
    "softcap": 0.0,
    "alibi_slopes": None,
    "deterministic": False,
    "return_attn_probs": False,
}
HEADS = {
    "flash_attn_func": ["q", "k", "v"],
    "flash_attn_qkvpacked_func": ["qkv"],
    "flash_attn_kvpacked_func": ["q", "kv"],
}


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("name", HEADS)
def test_signatures_are_those_of_flash_attention_2(name):
    parameters = inspect.signature(getattr(tvm_flash, name)).parameters
    own = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert own == [*HEADS[name], *TAIL]
    assert {n: parameters[n].default for n in TAIL} == TAIL


def test_signature_of_the_general_door():
    parameters = inspect.signature(tvm_flash.attention).parameters
    keywords = {n: p.default for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    expected = {
        "softmax_scale": None, "causal": False, "window_size": (-1, -1), "softcap": 0.0,
        "alibi_slopes": None, "score_mod": None, "mask_mod": None, "layout": "bshd",
        "deterministic": False, "return_lse": False,
    }  # fmt: skip
    assert expected.items() <= keywords.items()


def test_signature_of_sdpa_is_that_of_torch():
    schema = torch.ops.aten.scaled_dot_product_attention.default._schema
    parameters = inspect.signature(sdpa).parameters
    assert list(parameters) == [argument.name for argument in schema.arguments]
    for argument in schema.arguments:
        parameter = parameters[argument.name]
        assert (parameter.kind is parameter.KEYWORD_ONLY) == argument.kwarg_only
        default = argument.default_value if argument.has_default_value() else parameter.empty
        assert parameter.default == default or parameter.default is default


def test_packed_functions_are_views_of_the_plain_one():
    qkv, q, kv = random(2, 10, 3, 4, 32), random(2, 7, 4, 32), random(2, 10, 2, 2, 32)
    want = tvm_flash.flash_attn_func(*qkv.unbind(2), causal=True)
    assert torch.equal(tvm_flash.flash_attn_qkvpacked_func(qkv, causal=True), want)
    want = tvm_flash.flash_attn_func(q, *kv.unbind(2), window_size=(3, 1))
    assert torch.equal(tvm_flash.flash_attn_kvpacked_func(q, kv, window_size=(3, 1)), want)


def test_packed_gradient_arrives_in_the_packed_tensor():
    qkv = random(1, 10, 3, 2, 32).requires_grad_()
    tvm_flash.flash_attn_qkvpacked_func(qkv, causal=True).square().sum().backward()
    parts = [x.detach().requires_grad_() for x in qkv.unbind(2)]
    tvm_flash.flash_attn_func(*parts, causal=True).square().sum().backward()
    torch.testing.assert_close(qkv.grad, torch.stack([x.grad for x in parts], 2))


def test_return_attn_probs_gives_three_values():
    q = random(1, 10, 2, 32)
    out, lse, probs = tvm_flash.flash_attn_func(q, q, q, return_attn_probs=True)
    assert (out.shape, lse.shape, probs) == (q.shape, (1, 2, 10), None)


def heads_first(*lead, sq=9, sk=9, h=4, hk=4):
    return (
        random(*lead, h, sq, 32),
        random(*lead, hk, sk, 32, seed=1),
        random(*lead, hk, sk, 32, seed=2),
    )


MASKS = {
    "pairs": torch.rand(7, 9, generator=torch.Generator().manual_seed(3)) > 0.3,
    "per_batch": random(2, 1, 7, 9, seed=6) > 0,
    "row": torch.arange(9).view(1, 9) > 3,
    "column": torch.arange(7).view(7, 1) != 2,
    "bias": random(7, 9, seed=4),
    "bias_per_head": random(4, 7, 9, seed=4),
    "bias_per_key": random(2, 1, 1, 9, seed=5),
    "bias_with_infinity": random(7, 9, seed=4).masked_fill(torch.eye(7, 9) > 0, -torch.inf),
}


def values_and_gradients(function, *inputs, **arguments):
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves, **arguments)
    return out.detach(), *torch.autograd.grad(out.sin().sum(), leaves)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"is_causal": True}, {"scale": 0.3}, *({"attn_mask": name} for name in MASKS)],
    ids=str,
)
def test_sdpa_agrees_with_torch(arguments):
    """Values and gradients; a row that sees no key (mask "column") gives zeros in both."""
    q, k, v = heads_first(2, sq=7, sk=9)
    arguments = {n: MASKS[x] if n == "attn_mask" else x for n, x in arguments.items()}
    ours = values_and_gradients(sdpa, q, k, v, **arguments)
    theirs = values_and_gradients(F.scaled_dot_product_attention, q, k, v, **arguments)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sdpa_in_half_precision_with_a_bias(dtype):
    q, k, v = (x.to(dtype) for x in heads_first(2))
    bias = random(9, 9, seed=4, dtype=dtype)
    got, want = (f(q, k, v, bias) for f in (sdpa, F.scaled_dot_product_attention))
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)


def test_sdpa_causal_is_top_left():
    q, k, v = heads_first(1, sq=5, sk=9)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(sdpa(q, k, v, is_causal=True), want)
    rows = [x.transpose(1, 2) for x in (q, k, v)]
    aligned = tvm_flash.flash_attn_func(*rows, causal=True).transpose(1, 2)
    assert not torch.allclose(aligned, want, atol=1e-3)


def test_sdpa_grouped_heads():
    q, k, v = heads_first(2, h=4, hk=2)
    want = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    torch.testing.assert_close(sdpa(q, k, v, enable_gqa=True), want)
    with pytest.raises(ValueError, match="enable_gqa"):
        sdpa(q, k, v)


@pytest.mark.parametrize("rank", [2, 3, 5])
def test_sdpa_of_other_ranks(rank):
    q, k, v = heads_first(*(1, 2)[: max(rank - 3, 1)])
    q, k, v = (x[0, 0] if rank == 2 else x[0] if rank == 3 else x for x in (q, k, v))
    mask = torch.rand(*q.shape[:-2], 9, 9, generator=torch.Generator().manual_seed(3)) > 0.3
    for attn_mask in (None, mask):
        want = F.scaled_dot_product_attention(q, k, v, attn_mask)
        torch.testing.assert_close(sdpa(q, k, v, attn_mask), want)


def test_sdpa_of_values_of_another_width():
    q, k, v = heads_first(2)
    v = torch.cat((v, v[..., :16]), -1)
    torch.testing.assert_close(sdpa(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_layouts_are_transposes_of_each_other():
    q, k, v = heads_first(2)
    swapped = [x.transpose(1, 2) for x in (q, k, v)]
    want = tvm_flash.attention(*swapped, causal=True).transpose(1, 2)
    assert torch.equal(tvm_flash.attention(q, k, v, causal=True, layout="bhsd"), want)
