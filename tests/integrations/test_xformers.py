"""xFormers' function on our kernels, beside float64 and what its bias classes materialize.

Needs xformers (`pip install xformers`) for its classes; its kernels do not run on CPUs. `pytest -m
sweep` runs most classes.
"""

import math

import pytest
import torch

biases = pytest.importorskip("xformers.ops.fmha.attn_bias")

from tvm_flash.integrations.xformers import (  # noqa: E402
    memory_efficient_attention,
    memory_efficient_attention_forward,
    memory_efficient_attention_forward_requires_grad,
)
from tvm_flash.integrations.xformers_biases import _KINDS  # noqa: E402
from tvm_flash.verify.rule import allowed_error, largest_error  # noqa: E402

CPU, SWEEP = torch.device("cpu"), pytest.mark.sweep
QUERIES, KEYS = [5, 17, 1], [9, 17, 12]
PADDING, PAGE = 24, 8
PAGES = torch.tensor([[4, 0, 7], [2, 8, 1], [3, 6, 5]], dtype=torch.int32)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def dense(name, *given):
    return lambda: getattr(biases, name)(*given)


def of_lengths(name, *given):
    def make():
        kind = getattr(biases, name)
        made = getattr(kind, "from_seqlens_local", kind.from_seqlens)
        device = {} if made.__name__ == "from_seqlens_local" else {"device": CPU}
        return made(*given, **device)

    return make


def local(name, base, window):
    def make():
        plain = getattr(biases, base).from_seqlens(QUERIES, KEYS, device=CPU)
        return getattr(biases, name)(plain.q_seqinfo, plain.k_seqinfo, None, window)

    return make


def in_pages(name):
    """Keys from position 3, 0 and 5 of each entry's pages on."""

    def make():
        starts = [3, PADDING, 2 * PADDING + 5, 3 * PADDING]
        plain = biases.BlockDiagonalGappyKeysMask.from_seqlens(QUERIES, starts, KEYS, device=CPU)
        return plain.make_paged(PAGES, PAGE, PADDING, getattr(biases, name))

    return make


SPACED = ([3, 15, 40, 60], KEYS)
# Every class that is served: how one is made.
BIASES = {
    "LowerTriangularMask": dense("LowerTriangularMask"),
    "LowerTriangularMaskWithTensorBias": lambda: biases.LowerTriangularMask().add_bias(
        random(2, 4, 20, 31, seed=5)
    ),
    "LowerTriangularFromBottomRightMask": dense("LowerTriangularFromBottomRightMask"),
    "LowerTriangularFromBottomRightLocalAttentionMask": dense(
        "LowerTriangularFromBottomRightLocalAttentionMask", 6
    ),
    "LocalAttentionFromBottomRightMask": dense("LocalAttentionFromBottomRightMask", 3, 2),
    "BlockDiagonalMask": of_lengths("BlockDiagonalMask", QUERIES, KEYS),
    "BlockDiagonalCausalMask": of_lengths("BlockDiagonalCausalMask", QUERIES, KEYS),
    "BlockDiagonalCausalFromBottomRightMask": of_lengths(
        "BlockDiagonalCausalFromBottomRightMask", QUERIES, KEYS
    ),
    "BlockDiagonalCausalLocalAttentionMask": local(
        "BlockDiagonalCausalLocalAttentionMask", "BlockDiagonalCausalMask", 4
    ),
    "BlockDiagonalCausalLocalAttentionFromBottomRightMask": local(
        "BlockDiagonalCausalLocalAttentionFromBottomRightMask", "BlockDiagonalMask", 4
    ),
    "BlockDiagonalPaddedKeysMask": of_lengths(
        "BlockDiagonalPaddedKeysMask", QUERIES, PADDING, KEYS
    ),
    "BlockDiagonalCausalWithOffsetPaddedKeysMask": of_lengths(
        "BlockDiagonalCausalWithOffsetPaddedKeysMask", QUERIES, PADDING, KEYS
    ),
    "BlockDiagonalLocalAttentionPaddedKeysMask": of_lengths(
        "BlockDiagonalLocalAttentionPaddedKeysMask", QUERIES, PADDING, KEYS, 3, 1
    ),
    "BlockDiagonalCausalLocalAttentionPaddedKeysMask": of_lengths(
        "BlockDiagonalCausalLocalAttentionPaddedKeysMask", QUERIES, PADDING, KEYS, 4
    ),
    "BlockDiagonalGappyKeysMask": of_lengths("BlockDiagonalGappyKeysMask", QUERIES, *SPACED),
    "BlockDiagonalCausalWithOffsetGappyKeysMask": of_lengths(
        "BlockDiagonalCausalWithOffsetGappyKeysMask", QUERIES, *SPACED
    ),
    "PagedBlockDiagonalPaddedKeysMask": of_lengths(
        "PagedBlockDiagonalPaddedKeysMask", QUERIES, KEYS, PAGES, PAGE
    ),
    "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask": of_lengths(
        "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask", QUERIES, KEYS, PAGES, PAGE
    ),
    "PagedBlockDiagonalGappyKeysMask": in_pages("PagedBlockDiagonalGappyKeysMask"),
    "PagedBlockDiagonalCausalWithOffsetGappyKeysMask": in_pages(
        "PagedBlockDiagonalCausalWithOffsetGappyKeysMask"
    ),
}


def sizes(bias):
    """B, queries and keys of a problem for ``bias``."""
    if not hasattr(bias, "q_seqinfo"):
        return 2, 20, 31
    keys = bias.k_seqinfo.seqstart_py[-1]
    return 1, sum(QUERIES), (PAGES.max().item() + 1) * PAGE if hasattr(bias, "page_size") else keys


def materialized(bias, shape):
    """What ``bias`` adds, of its own making."""
    if not hasattr(bias, "page_size"):
        return bias.materialize(shape, torch.float64)
    # It is of the pages' positions before it is cut into pages.
    return bias.materialize((*shape[:-1], PAGES.numel() * PAGE), torch.float64)[..., : shape[-1]]


def exact(q, k, v, added, dtype=torch.float64):
    """The definition, in ``dtype``: rows without keys are 0."""
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + added.to(dtype)
    seen = (scores > -math.inf).any(-1, keepdim=True)
    weights = torch.where(seen, scores, 0.0).softmax(-1) * seen
    return (weights @ v).transpose(1, 2)


def problem(bias, dtype=torch.float32, head_dim_v=24):
    batch, queries, keys = sizes(bias)
    q, k, v = (
        random(batch, length, 4, columns, dtype=dtype, seed=n)
        for n, (length, columns) in enumerate(((queries, 16), (keys, 16), (keys, head_dim_v)))
    )
    return q, k, v, materialized(bias, (batch, 4, queries, keys))


def test_every_class_that_is_served_is_tested_and_exists():
    assert BIASES.keys() == _KINDS.keys()
    assert all(type(make()).__name__ == name for name, make in BIASES.items())


QUICK = ("LowerTriangularMask", "PagedBlockDiagonalCausalWithOffsetGappyKeysMask")
NAMES = [name if name in QUICK else pytest.param(name, marks=SWEEP) for name in BIASES]


@pytest.mark.parametrize("name", NAMES)
def test_results_and_gradients_keep_the_error_rule(name):
    bias = BIASES[name]()
    q, k, v, added = problem(bias)
    learn = not name.startswith("Paged")
    leaves = [x.requires_grad_(learn) for x in (q, k, v)]
    got = [memory_efficient_attention(q, k, v, bias)]
    wanted, plain = ([exact(q, k, v, added, d)] for d in (torch.float64, torch.float32))
    if learn:
        dout = random(*got[0].shape, seed=9)
        for results in (got, wanted, plain):
            results += torch.autograd.grad(results[0], leaves, dout.to(results[0].dtype))
    for x, right, torchs, of in zip(got, wanted, plain, ("out", "dq", "dk", "dv"), strict=False):
        error = largest_error(x.detach(), right.detach())
        assert error <= allowed_error(of, "float32", right.detach(), torchs.detach()), of


@pytest.mark.parametrize("ndim", [pytest.param(3, marks=SWEEP), pytest.param(4, marks=SWEEP), 5])
def test_shapes_and_a_bias_that_learns(ndim):
    """Heads in no, one or two dimensions; in groups, keys and values are read once."""
    heads = {3: (), 4: (6,), 5: (2, 3)}[ndim]
    q = random(2, 20, *heads, 16).requires_grad_()
    stored = [random(2, 31, *heads[:-1], 1, 16, seed=n).requires_grad_() for n in (1, 2)]
    k, v = (x.expand(2, 31, *heads, 16) if heads else x.squeeze(2) for x in stored)
    bias = random(2, *heads, 20, 31, seed=4).requires_grad_()
    leaves = [q, *stored, bias]

    def four(x):
        return x.reshape(*x.shape[:2], -1, 16)

    out, lse = memory_efficient_attention_forward_requires_grad(q, k, v, bias, scale=0.25)
    wanted = exact(four(q), four(k), four(v), bias.reshape(2, -1, 20, 31)).reshape(q.shape)
    torch.testing.assert_close(out.double(), wanted, atol=1e-5, rtol=1e-5)
    assert lse.shape == (2, *(heads or (1,)), 20)
    dout = random(*out.shape, seed=9)
    got = torch.autograd.grad(out, leaves, dout)
    expected = torch.autograd.grad(wanted, leaves, dout.double())
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(memory_efficient_attention_forward(q, k, v, bias, scale=0.25), out)


@SWEEP
def test_a_leaf_of_repeated_heads_gets_a_gradient_for_each():
    q = random(1, 9, 4, 16)
    k, v = (random(1, 9, 1, 16, seed=n).expand(1, 9, 4, 16).requires_grad_() for n in (1, 2))
    added = torch.zeros(())
    got = torch.autograd.grad(memory_efficient_attention(q, k, v).square().sum(), (k, v))
    wanted = torch.autograd.grad(exact(q, k, v, added, torch.float32).square().sum(), (k, v))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


@SWEEP
def test_keys_of_entries_may_overlap():
    """A prefix that all share, and an order that goes back."""
    bias = biases.BlockDiagonalGappyKeysMask.from_seqlens(
        QUERIES, [30, 0, 0, 50], [9, 17, 12], device=CPU
    )
    q, k, v, added = problem(bias)
    got = memory_efficient_attention(q, k, v, bias)
    torch.testing.assert_close(got, exact(q, k, v, added).float(), atol=1e-5, rtol=1e-5)


@SWEEP
def test_lse_of_packed_entries_and_output_dtype():
    bias = BIASES["BlockDiagonalMask"]()
    q, k, v, added = problem(bias)
    out, lse = memory_efficient_attention_forward_requires_grad(
        q, k, v, bias, output_dtype=torch.float64
    )
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) / 4 + added
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), atol=1e-5, rtol=1e-5)
    assert out.dtype == torch.float64 and lse.shape == (1, 4, sum(QUERIES))


@SWEEP
def test_dropout_drops_and_keeps_the_mean():
    q = random(1, 64, 2, 16)
    torch.manual_seed(0)
    out = memory_efficient_attention(q, q, torch.ones_like(q), p=0.25)
    assert out.std() > 0.01 and abs(out.mean() - 1) < 0.05
    with pytest.raises(NotImplementedError, match=r"p=0\.25"):
        memory_efficient_attention_forward_requires_grad(q, q, q, p=0.25)


def test_bad_input_is_named():
    q = random(2, 9, 4, 16)
    packed = BIASES["BlockDiagonalMask"]()

    class OwnMask(biases.LowerTriangularMask):
        pass

    class LocalAttentionFromBottomRightMask:  # another's
        pass

    five = random(2, 9, 2, 2, 16)
    beyond = biases.BlockDiagonalGappyKeysMask.from_seqlens([4, 5], [5, 0, 9], [4, 40], device=CPU)
    plain = biases.BlockDiagonalGappyKeysMask.from_seqlens([4, 5], [0, 8, 16], [4, 8], device=CPU)
    paged = plain.make_paged(PAGES[:2, :1], 8, 8, biases.PagedBlockDiagonalGappyKeysMask)

    for error, match, given in (
        (
            NotImplementedError,
            "OwnMask is not known here.*LowerTriangularMask,",
            (q, q, q, OwnMask()),
        ),
        (ValueError, r"batch \[2, 2, 2\] must be of batch 1", (q, q, q, packed)),
        (ValueError, r"must all be \(B, M, K\)", (q, q[0], q)),
        (TypeError, "the class LowerTriangularMask: give", (q, q, q, biases.LowerTriangularMask)),
        (TypeError, "has no window_left, unlike", (q, q, q, LocalAttentionFromBottomRightMask())),
        (ValueError, r"groups of query, key, value are \[2, 4, 2\]", (
            five, five.reshape(2, 9, 4, 1, 16), five)),
        (ValueError, "keys at .* but there are 9 rows", (q[:1], q[:1], q[:1], beyond)),
        (ValueError, "9 rows of keys are not whole pages of 8", (q[:1], q[:1], q[:1], paged)),
        (TypeError, "output_dtype=torch.int32", (q, q, q, None, 0.0, None, torch.int32)),
        (ValueError, "of as many dimensions as query", (q, q, q, random(4, 9, 9))),
        (ValueError, "must broadcast", (q, q, q, random(2, 4, 9, 8))),
        (TypeError, "key must be a tensor", (q, None, q)),
        (TypeError, "floating point", (q, q, q, torch.ones(2, 4, 9, 9).bool())),
        (ValueError, "dropout", (q, q, q, None, 1.5)),
        (TypeError, "float64", (q.double(), q.double(), q.double())),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            memory_efficient_attention(*given[:6], output_dtype=[None, *given[6:]][-1])
