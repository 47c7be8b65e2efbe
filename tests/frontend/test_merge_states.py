"""Attention over parts of the keys, merged, is attention over all of them."""

import pytest
import torch
from pairwise import grid

from tvm_flash import attention, merge_states
from tvm_flash.reference import attention_reference
from tvm_flash.verify.rule import allowed_error, largest_error

NAMES = ("out", "lse", "dq", "dk", "dv")


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def qkv(sq=9, sk=30, dtype=torch.float32):
    """q (2, sq, 4, 32), k, v (2, sk, 2, 32)."""
    heads_and_rows = enumerate(((sq, 4), (sk, 2), (sk, 2)))
    return [random(2, rows, heads, 32, seed=n, dtype=dtype) for n, (rows, heads) in heads_and_rows]


def in_parts(q, k, v, sizes=(17, 13), **options):
    """(out, lse) merged from parts of these sizes; bottom-right causal, for the last part."""
    parts = list(zip(k.split(sizes, 1), v.split(sizes, 1), strict=True))
    states = [attention(q, *part, return_lse=True) for part in parts[:-1]]
    states.append(attention(q, *parts[-1], return_lse=True, **options))
    return merge_states(*(x for state in states for x in state))


def with_gradients(function, leaves, **options):
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    out, lse = function(*leaves, **options)
    upstream = random(*out.shape, seed=7), random(*lse.shape, seed=8)
    upstream = [g.to(x.dtype) for g, x in zip(upstream, (out, lse), strict=True)]
    return out, lse, *torch.autograd.grad((out, lse), leaves, upstream)


@grid(
    "dtype, sizes, causal",
    (torch.float32, torch.bfloat16),
    ((17, 13), (30, 0), (1, 9, 20)),
    (False, True),
    ids=str,
)
def test_the_union_of_keys(dtype, sizes, causal):
    inputs = qkv(dtype=dtype)
    causal = causal and sizes[-1] >= 9  # its diagonal lies in the last part
    got = with_gradients(in_parts, inputs, sizes=sizes, causal=causal)
    exact = with_gradients(attention_reference, [x.double() for x in inputs], causal=causal)
    plain = with_gradients(attention_reference, inputs, causal=causal)
    for name, *values in zip(NAMES, got, exact, plain, strict=True):
        value, want, baseline = values
        allowed = allowed_error(name, str(dtype).removeprefix("torch."), want, baseline)
        assert largest_error(value, want) <= allowed, name
    assert got[0].dtype == dtype and got[1].dtype == torch.float32


def test_packed_is_dense_of_one_sequence():
    q, k, v = (x[:1] for x in qkv())
    states = [attention(q, k[:, part], v[:, part], return_lse=True) for part in PARTS]
    (out_a, lse_a), (out_b, lse_b) = states
    out, lse = merge_states(out_a, lse_a, out_b, lse_b)
    packed = merge_states(out_a[0], lse_a[0], out_b[0], lse_b[0])
    assert torch.equal(packed[0], out[0]) and torch.equal(packed[1], lse[0])


PARTS = slice(0, 11), slice(11, 30)


def states(dtype=torch.float32, lse_dtype=torch.float32):
    """Two parts (5, 3, 4): row 0 sees no key, row 1 those of b alone, row 2 those of a."""
    lse_a, lse_b = (random(3, 5, seed=n, dtype=lse_dtype) for n in (1, 2))
    lse_a[:, :2] = lse_b[:, 0] = lse_b[:, 2] = -torch.inf
    return random(5, 3, 4, seed=3, dtype=dtype), lse_a, random(5, 3, 4, seed=4, dtype=dtype), lse_b


@pytest.mark.parametrize("unwritten", [0.0, float("nan"), float("inf")])
def test_rows_that_a_part_does_not_see(unwritten):
    out_a, lse_a, out_b, lse_b = states()
    out_a[:2] = out_b[0] = out_b[2] = unwritten
    leaves = [x.requires_grad_() for x in (out_a, lse_a, out_b, lse_b)]
    out, lse = merge_states(*leaves)
    assert torch.equal(out[0], torch.zeros(3, 4)) and (lse[:, 0] == -torch.inf).all()
    assert torch.equal(out[1:3], torch.stack((out_b[1], out_a[2])))
    assert torch.equal(lse[:, 1:3], torch.stack((lse_b[:, 1], lse_a[:, 2]), 1))
    grads = torch.autograd.grad((out.sum() + lse[:, 1:].sum()), leaves)
    assert all(x.isfinite().all() for x in grads)
    assert not any(x.any() for x in (grads[0][:2], grads[2][0], grads[1][:, :2], grads[3][:, 0]))


def test_gradients():
    leaves = [x.requires_grad_() for x in states(torch.float64, torch.float64)]

    def function(*leaves):
        out, lse = merge_states(*leaves)
        return out, lse[:, 1:]  # finite differences of -inf are NaN

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_far_apart_and_large():
    """Scores of 1e4 and more: the exponential of their lse alone would be infinite or 0."""
    out_a, lse_a, out_b, lse_b = states()
    lse_a, lse_b = torch.full((3, 5), 3e4), torch.full((3, 5), 3e4)
    out, lse = merge_states(out_a, lse_a, out_b, lse_b)
    torch.testing.assert_close(out, (out_a + out_b) / 2)
    torch.testing.assert_close(lse, lse_a + torch.tensor(2.0).log())
    out, lse = merge_states(out_a, lse_a, out_b, -lse_b)
    assert torch.equal(out, out_a) and torch.equal(lse, lse_a)


def test_nan_stays_nan():
    out_a, lse_a, out_b, lse_b = states()
    lse_a[0, 3] = torch.nan
    out, lse = merge_states(out_a, lse_a, out_b, lse_b)
    assert out[3, 0].isnan().all() and lse[0, 3].isnan()
    assert out[3, 1:].isfinite().all()


def test_the_order_of_parts_only_rounds():
    outs = [random(6, 2, 8, seed=n, dtype=torch.float64) for n in range(4)]
    lses = [random(2, 6, seed=n + 9) for n in range(4)]
    pairs = list(zip(outs, lses, strict=True))
    want = merge_states(*(x for pair in pairs for x in pair))
    nested = merge_states(*merge_states(*pairs[3], *pairs[1]), *merge_states(*pairs[0], *pairs[2]))
    torch.testing.assert_close(nested, want)


def test_compiles_as_one_graph():
    compiled = torch.compile(merge_states, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(*states()), merge_states(*states()), strict=True):
        assert torch.equal(got, want)


OUT, LSE = torch.zeros(2, 6, 4, 8), torch.zeros(2, 4, 6)


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        ((OUT, LSE, OUT, [1]), TypeError, ["lse of part 1", "list"]),
        ((OUT, LSE, OUT, LSE, OUT), TypeError, ["1 tensors", "pairs"]),
        ((OUT, LSE, OUT.half(), LSE), TypeError, ["part 1", "float16", "float32"]),
        ((OUT.int(), LSE, OUT.int(), LSE), TypeError, ["part 0", "int32"]),
        ((OUT, LSE.half(), OUT, LSE), TypeError, ["lse of part 0", "float16", "float32"]),
        ((OUT, LSE, OUT[:, 1:], LSE), ValueError, ["part 1", "(2, 5, 4, 8)", "(2, 6, 4, 8)"]),
        ((OUT[0, 0], LSE, OUT[0, 0], LSE), ValueError, ["(4, 8)", "(B, S, H, Dv)"]),
        ((OUT, LSE, OUT, LSE.mT), ValueError, ["(2, 6, 4)", "(2, 4, 6)", "heads before rows"]),
        ((OUT, LSE, OUT, LSE, OUT, LSE[0]), ValueError, ["lse of part 2", "(4, 6)"]),
        ((OUT, LSE, OUT.to("meta"), LSE), ValueError, ["meta", "cpu"]),
    ],
)  # fmt: skip
def test_wrong_arguments(parts, error, words):
    with pytest.raises(error) as raised:
        merge_states(*parts)
    assert all(word in str(raised.value) for word in words), raised.value
