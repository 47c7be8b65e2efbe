"""Gradients of biases, captured tensors, ALiBi slopes, scales and softcaps."""

import pytest
import torch
from packed_problems import cumulative
from table_problems import BIASES, FULL, HK, OTHERS, SK, SQ, B, D, H, bias

from tvm_flash import attention, capture
from tvm_flash import scaled_dot_product_attention as sdpa
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.problem.table_parts import table_parts
from tvm_flash.reference import attention_reference

PROBLEMS = [
    *(pytest.param(x, marks=pytest.mark.sweep) for x in BIASES),
    bias("hk", dtype=torch.bfloat16, of_tables=torch.bfloat16),
    *OTHERS,
]


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    shapes = ((B, SQ, H, D), (B, SK, HK, D), (B, SK, HK, D))
    return [torch.randn(s, generator=generator).to(dtype) for s in shapes]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_rule(problem):
    problem.check(attention)


def test_scale_and_softcap_keep_their_shapes():
    q, k, v = inputs(torch.float32)
    scale, cap = (torch.tensor(x, requires_grad=True) for x in (0.3, [2.0]))
    out = attention(q, k, v, softmax_scale=scale, softcap=cap)
    found = torch.autograd.grad(out.square().sum(), (scale, cap))
    exact_scale, exact_cap = (x.detach().double().requires_grad_() for x in (scale, cap))

    def scores(score, *_):
        return torch.tanh(score * exact_scale / exact_cap) * exact_cap

    exact = attention_reference(
        *(x.double() for x in (q, k, v)), softmax_scale=1.0, score_mod=scores
    )[0]
    wanted = torch.autograd.grad(exact.square().sum(), (exact_scale, exact_cap))
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)


def test_packed_sequences_add_to_one_bias():
    """b is the sequence, positions count inside it."""
    q, k, v = (x[0].float() for x in inputs())
    lengths = ((40, 30), (50, 40))
    spans = {f"cu_seqlens_{x}": cumulative(n) for x, n in zip("qk", lengths, strict=True)}
    table = torch.randn(2, 1, 40, 50, requires_grad=True)
    out = attention(q, k, v, bias=table, **spans)
    found = torch.autograd.grad(out.square().sum(), table)[0]
    exact = table.detach().double().requires_grad_()
    total = 0
    for n, (rows, keys) in enumerate(zip((slice(0, 40), slice(40, 70)),
                                         (slice(0, 50), slice(50, 90)), strict=True)):  # fmt: skip
        own = exact[n, :, : rows.stop - rows.start, : keys.stop - keys.start]
        parts = (x[None].double() for x in (q[rows], k[keys], v[keys]))
        total += attention_reference(*parts, score_mod=lambda s, *_, x=own: s + x)[0].square().sum()
    wanted = torch.autograd.grad(total, exact)[0]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


def test_attn_mask_of_torch():
    q, k, v = (x.float().transpose(1, 2) for x in inputs())
    mask = torch.randn(H, 1, SK, requires_grad=True)
    run = torch.nn.functional.scaled_dot_product_attention
    found, wanted = (
        torch.autograd.grad(f(q, k, v, mask, enable_gqa=True).square().sum(), mask)[0]
        for f in (sdpa, run)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_transforms_and_compilers():
    """The problem of "bias_bhqk", whose kernels there are."""
    q, k, v = inputs(torch.float32)
    table = torch.randn(FULL)

    def loss(table):
        return attention(q, k, v, bias=table, causal=True).square().sum()

    leaf = table.clone().requires_grad_()
    wanted = torch.autograd.grad(loss(leaf), leaf)[0]
    assert torch.equal(torch.func.grad(loss)(table), wanted)
    both = torch.vmap(torch.func.grad(loss))(torch.stack([table, table]))
    torch.testing.assert_close(both, torch.stack([wanted, wanted]))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(torch.autograd.grad(compiled(leaf), leaf)[0], wanted)
    assert torch.equal(torch.autograd.grad(loss(leaf), leaf)[0], wanted)  # the same bits
    with pytest.raises(NotImplementedError, match="gradient of attention's gradient"):
        torch.autograd.grad(loss(leaf), leaf, create_graph=True)[0].sum().backward()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.zeros(3, SQ, SK), ValueError, r"bias of shape \(3, 70, 90\) must broadcast"),
        (torch.zeros(1, 1, 1, 1, 1), ValueError, "must broadcast"),
        (torch.zeros(SQ, SK, dtype=torch.bool), TypeError, "mask_mod"),
        (torch.zeros(SQ, SK, device="meta"), ValueError, "bias is on meta"),
        ("bias", TypeError, "bias must be a tensor"),
    ],
)
def test_wrong_biases(given, error, message):
    with pytest.raises(error, match=message):
        attention(*inputs(torch.float32), bias=given)


@pytest.mark.parametrize("place", ["index", "mask"])
def test_integers_and_masks_have_no_derivative(place):
    table = torch.zeros(SK, requires_grad=True)
    other = torch.zeros(SK)
    mods = {
        "index": {"score_mod": lambda s, b, h, q, k: s + other[table[k].to(torch.int32)]},
        "mask": {"mask_mod": lambda b, h, q, k: table[k] > 0},
    }
    with pytest.raises(ValueError, match=r"requires grad.*no derivative.*detach"):
        attention(*inputs(torch.float32), **mods[place])


def test_what_owns_the_elements_of_a_table():
    table = torch.zeros(4, 4)
    owned = {
        frozenset("bh"): lambda s, b, h, q, k: s + table[b, h],
        frozenset({"q_idx"}): lambda s, b, h, q, k: s + table[q, k % 4],
        frozenset(): lambda s, b, h, q, k: s + table[b, h] * table[h, b],
    }
    for wanted, score_mod in owned.items():
        spec, _ = AttentionSpec.capture(
            dtype="float32", head_dim=8, score_mod=score_mod, learned=(0,)
        )
        assert spec.owned_symbols == wanted
        sizes = {"B": 2, "H": 4, "Sq": 640}
        assert table_parts(spec, sizes, 16, threads=64) == {2: 10, 1: 8, 0: 80}[len(wanted)]
        assert table_parts(spec, sizes, 2**26, threads=64) == 1


def test_a_captured_that_is_used_again():
    table = torch.randn(H, requires_grad=True)
    mods = capture(lambda score, b, h, q, k: score * table[h])
    q, k, v = inputs(torch.float32)
    once, again = (
        torch.autograd.grad(attention(q, k, v, score_mod=mods).sum(), table)[0] for _ in range(2)
    )
    assert torch.equal(once, again)
