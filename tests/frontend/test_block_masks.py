"""``attention(block_mask=)``: the plain mask's results, by lists of blocks."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from block_masks import random_mask
from packed_problems import assert_rule, cumulative, int32, packed_inputs
from pairwise import grid
from torch.nn.attention.flex_attention import create_block_mask
from torch.testing import assert_close

from tvm_flash import attention, block_mask, masks, top_blocks
from tvm_flash.cases import MASK_MODS, Case, make_inputs
from tvm_flash.verify.rule import judged

BLOCK = (32, 64)


def qkv(seqlen_q=100, seqlen_k=150, batch=2, heads=4, kv_heads=2):
    case = Case(
        "", head_dim=16, batch=batch, heads=heads, kv_heads=kv_heads, seqlen_q=seqlen_q,
        seqlen_k=seqlen_k,
    )  # fmt: skip
    return make_inputs(case)


def holds(inputs, mask, **variant):
    """The error rule for ``attention`` with this block mask."""
    inputs = inputs._replace(variant={"block_mask": mask, **variant})
    for deviation in judged(attention, inputs):
        assert deviation.ok, str(deviation)


def results(attend, inputs):
    """out, lse and the gradients of ``attend``."""
    leaves = [x.clone().requires_grad_() for x in inputs[:3]]
    out, lse = attend(*leaves, return_lse=True)
    gradients = torch.autograd.grad((out, lse), leaves, (inputs.dout, inputs.dlse))
    return [out.detach(), lse.detach(), *gradients]


@grid(
    "seqlen_q, seqlen_k, shape, heads, causal",
    (33, 96, 127, 256),
    (64, 129, 190),
    ((1, 1), (2, 1), (1, 4), (2, 4)),
    ((4, 4), (4, 2), (4, 1)),
    (False, True),
)
def test_random_blocks(seqlen_q, seqlen_k, shape, heads, causal):
    """All residues of blocks and tiles; rows and keys that no list names."""
    mask = random_mask(seqlen_q, seqlen_k, shape, BLOCK)
    holds(qkv(seqlen_q, seqlen_k, 2, *heads), mask, causal=causal)


def test_as_the_mask_itself():
    """The order of keys is the same: so are the forward's bits."""
    case = Case("", batch=2, heads=2, seqlen_q=200, seqlen_k=200)
    mask_mod = MASK_MODS["staircase"](case, torch.Generator())
    inputs = qkv(200, 200)
    mask = block_mask(mask_mod, 2, 4, 200, 200, (64, 64))
    plain = results(partial(attention, mask_mod=mask_mod), inputs)
    listed = results(partial(attention, block_mask=mask), inputs)
    for got, want in zip(listed[:2], plain, strict=False):
        assert torch.equal(got, want)
    for got, want in zip(listed, plain, strict=True):
        assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", masks.EXAMPLES)
def test_named_masks(name):
    mask_mod, sizes = masks.EXAMPLES[name](190), (2, 4, 190, 190)
    holds(qkv(190, 190), block_mask(mask_mod, *sizes, BLOCK))


def test_all_blocks_and_none():
    inputs = qkv()
    every = block_mask(lambda b, h, q_idx, k_idx: q_idx >= 0, 2, 4, 100, 150, BLOCK)
    assert every.density == 1 and every.shape[:2] == (1, 1)
    found = results(partial(attention, block_mask=every), inputs)
    for got, want in zip(found, results(attention, inputs), strict=True):
        assert_close(got, want, atol=1e-5, rtol=1e-5)
    none = block_mask(lambda b, h, q_idx, k_idx: q_idx < 0, 2, 4, 100, 150, BLOCK)
    assert none.visits == 0
    out, lse, *gradients = results(partial(attention, block_mask=none), inputs)
    assert torch.equal(lse, torch.full_like(lse, -torch.inf))
    assert not any(x.any() for x in (out, *gradients))


@pytest.mark.slow
def test_a_score_function_and_a_sink_beside_it():
    mask = random_mask(100, 150, (1, 4), BLOCK)
    bias = torch.randn(4, 200, generator=torch.Generator().manual_seed(0))

    def score_mod(score, b, h, q_idx, k_idx):
        return score + bias[h, k_idx]

    holds(qkv(), mask, score_mod=score_mod, sink=torch.randn(4))


LENGTHS = [(100, 130), (0, 20), (64, 0), (1, 70), (150, 33)]


def by_entry(b, h, q_idx, k_idx):
    """Full, partial and hidden blocks, other ones in each sequence and in one of the heads."""
    return (q_idx // 37 == k_idx // 41) | ((k_idx + b) % 5 == 0) & (h != 1)


def packed_mask(lengths):
    rows, keys = zip(*lengths, strict=True)
    return block_mask(by_entry, len(rows), 4, rows, keys, BLOCK)


@pytest.mark.parametrize("causal", [True, pytest.param(False, marks=pytest.mark.sweep)])
def test_packed_sequences(causal):
    mask, ends = packed_mask(LENGTHS), [cumulative(x) for x in zip(*LENGTHS, strict=True)]

    def attend(q, k, v, mask_mod, **options):
        bounds = {"cu_seqlens_q": ends[0], "cu_seqlens_k": ends[1], "return_lse": True}
        return attention(q, k, v, block_mask=mask, **bounds, **options)

    assert_rule(attend, packed_inputs(LENGTHS, mask_mod=by_entry, causal=causal), LENGTHS)


def test_nested_sequences_and_parts_of_packed_ones():
    """A mask of two numbers serves sequences of these lengths."""
    q, k, v = packed_inputs([(64, 64)] * 3)[:3]
    mask, options = packed_mask([(64, 64)] * 3), {"causal": True}
    bounds = dict.fromkeys(("cu_seqlens_q", "cu_seqlens_k"), cumulative([64] * 3))
    want = attention(q, k, v, block_mask=mask, **bounds, **options)
    of_numbers = block_mask(by_entry, 3, 4, 64, 64, BLOCK)
    assert torch.equal(attention(q, k, v, block_mask=of_numbers, **bounds, **options), want)
    nested = [torch.nested.nested_tensor(list(x.split(64)), layout=torch.jagged) for x in (q, k, v)]
    assert torch.equal(attention(*nested, block_mask=mask, **options).values(), want)
    wider = [torch.cat([*x.split(64), x[:21]]) for x in (q, k, v)]
    for x, own in zip(wider, (q, k, v), strict=True):
        for n in range(3):
            x[71 * n : 71 * n + 64] = own[64 * n : 64 * n + 64]
    bounds = dict.fromkeys(bounds, cumulative([71] * 3))
    bounds |= dict.fromkeys(("seqused_q", "seqused_k"), int32(64, 64, 64))
    got = attention(*wider, block_mask=mask, **bounds, **options).view(3, 71, 4, -1)
    assert torch.equal(got[:, :64].flatten(0, 1), want) and not got[:, 64:].any()


def test_one_of_torch():
    inputs = qkv(150, 150)
    theirs = create_block_mask(
        lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, None, None, 150, 150, device="cpu",
        BLOCK_SIZE=64,
    )  # fmt: skip
    got = results(partial(attention, block_mask=theirs), inputs)
    for x, want in zip(got, results(partial(attention, causal=True), inputs), strict=True):
        assert_close(x, want, atol=1e-5, rtol=1e-5)


def test_compiled_mapped_and_checkpointed():
    inputs, mask = qkv(), random_mask(100, 150, (2, 4), BLOCK)
    want = results(partial(attention, block_mask=mask), inputs)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    for got, exact in zip(results(partial(compiled, block_mask=mask), inputs), want, strict=True):
        assert torch.equal(got, exact)
    many = [torch.stack([x, x * 0.5]) for x in inputs[:3]]
    mapped = torch.vmap(lambda *x: attention(*x, block_mask=mask))(*many)
    assert torch.equal(mapped[0], want[0])
    again = torch.utils.checkpoint.checkpoint(
        lambda *x, return_lse: attention(*x, block_mask=mask, return_lse=return_lse),
        *inputs[:3], use_reentrant=False, return_lse=True,
    )  # fmt: skip
    assert torch.equal(again[0], want[0])


@pytest.mark.parametrize("causal", [False, True])
def test_top_blocks(causal):
    """The blocks with the largest scores of means, with the query's own where it is causal."""
    inputs = qkv(130, 130)
    mask = top_blocks(inputs.q, inputs.k, BLOCK, 2, causal=causal)
    rows = torch.stack([x.mean(1) for x in inputs.q.split(BLOCK[0], 1)], 2)
    keys = torch.stack([x.mean(1) for x in inputs.k.split(BLOCK[1], 1)], 2)
    scores = rows @ keys.repeat_interleave(2, 1).transpose(2, 3)
    for i in range(5):
        own = min((i + 1) * BLOCK[0], 130) - 1
        seen = own // BLOCK[1] + 1 if causal else 3
        wanted = scores[1, 3, i, :seen].clone()
        if causal:
            wanted[-1] = torch.inf
        picked = mask.states(1, 3)[i].nonzero().flatten().tolist()
        assert picked == sorted(wanted.topk(min(2, seen)).indices.tolist())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = top_blocks(inputs.q, inputs.k, BLOCK, 2, causal=causal)
    assert torch.equal(again.states(1, 3), mask.states(1, 3))
    holds(inputs, mask, causal=causal)
    assert (
        top_blocks(inputs.q * torch.nan, inputs.k, BLOCK, 2, causal=causal).density == mask.density
    )
    for q, k, top, message in (
        (inputs.q, inputs.k, 0, "top=0 must be at least 1"),
        (inputs.q[:0], inputs.k[:0], 1, "q has no rows"),
        (inputs.q, inputs.k[:1], 1, "batch of q, k, v"),
        (inputs.q, inputs.k[..., :8], 1, "head_dim of q"),
    ):
        with pytest.raises(ValueError, match=message):
            top_blocks(q, k, BLOCK, top)


def test_lists_alone_of_a_long_sequence_beside_short_ones():
    """Without a partial block there is no function: the lists alone know the sequences."""
    lengths = [100] + [30] * 40
    ends, (q, k, v) = cumulative(lengths), torch.randn(3, sum(lengths), 2, 16)

    def mask_mod(b, h, q_idx, k_idx):
        return (q_idx // 32 - k_idx // 32 + b) % 2 == 0

    mask = block_mask(mask_mod, len(lengths), 2, lengths, lengths, block=(32, 32))
    assert mask.program is None
    call = partial(attention, q, k, v, cu_seqlens_q=ends, cu_seqlens_k=ends, return_lse=True)
    assert_close(call(block_mask=mask), call(mask_mod=mask_mod))


def test_nan_in_a_table_of_a_mask():
    q, k, v = qkv()[:3]
    table = torch.ones(150).index_fill(0, torch.tensor([3]), torch.nan)

    def mask_mod(b, h, q_idx, k_idx):
        return table[k_idx] > 0

    with pytest.raises(ValueError, match=r"\(150,\) that mask_mod captured holds NaN"):
        attention(q, k, v, mask_mod=mask_mod)
    with pytest.raises(ValueError, match="holds NaN"):
        attention(q, k, v, block_mask=block_mask(mask_mod, 2, 4, 100, 150, BLOCK))


@pytest.mark.parametrize(
    "name, changed, error, message",
    [
        (
            "key_blocks",
            lambda x: x + 6,
            ValueError,
            r"key_blocks of block_mask has 7 to .* of 0..2",
        ),
        ("query_blocks", lambda x: x - 3, ValueError, "query_blocks of block_mask has -2 to"),
        ("key_blocks", lambda x: x[:1], ValueError, "must ascend from 0 or more to 1 at most"),
        (
            "query_starts",
            lambda x: x.flip(-1),
            ValueError,
            "query_starts of block_mask must ascend",
        ),
        (
            "key_starts",
            lambda x: x[..., 1:],
            ValueError,
            r"shape \(1, 1, 4\), must have \(1, 1, 5\)",
        ),
        ("key_starts", lambda x: x.long(), TypeError, "torch.int64, must have torch.int32"),
    ],
)
def test_lists_that_are_none(name, changed, error, message):
    mask = block_mask(masks.sliding_window(40), 1, 1, 100, 150, BLOCK)
    mask = replace(mask, **{name: changed(getattr(mask, name))})
    with pytest.raises(error, match=message):
        attention(*qkv()[:3], block_mask=mask)


def test_rows_of_blocks_share_staged_keys():
    """A tile of many rows of blocks with lists of their own, on one thread and in any number."""
    inputs, mask = qkv(1000, 700), random_mask(1000, 700, (2, 4), BLOCK)
    holds(inputs, mask, causal=True)
    threads, call = torch.get_num_threads(), partial(attention, *inputs[:3], block_mask=mask)
    found = []
    for n in (1, 2, 16):
        torch.set_num_threads(n)
        found.append(call())
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_what_does_not_fit():
    q, k, v = qkv()[:3]
    mask = random_mask(100, 150, (1, 1), BLOCK)
    for other, error, message in (
        (
            random_mask(100, 149, (1, 1), BLOCK),
            ValueError,
            "100 queries and 149 keys, q and k have",
        ),
        (random_mask(100, 150, (3, 1), BLOCK), ValueError, "lists of 3 entries, q has 2"),
        (random_mask(100, 150, (1, 2), BLOCK), ValueError, "lists of 2 heads, q has 4"),
        (mask.to("meta"), ValueError, "block_mask is on meta, q on cpu"),
        (torch.ones(100, 150), TypeError, "block_mask of Tensor must be a BlockMask"),
    ):
        with pytest.raises(error, match=message):
            attention(q, k, v, block_mask=other)
    with pytest.raises(TypeError, match="mask_mod is a BlockMask, must be a function"):
        attention(q, k, v, mask_mod=mask)
    with pytest.raises(ValueError, match="has its own mask_mod"):
        attention(q, k, v, block_mask=mask, mask_mod=masks.causal())
    packed, other = [q[0], k[0], v[0]], block_mask(masks.causal(), 2, 4, [40, 60], [75, 75])
    lengths = {"cu_seqlens_q": cumulative([40, 60]), "cu_seqlens_k": cumulative([74, 76])}
    with pytest.raises(ValueError, match=r"of sequences of \(75, 75\) .* of k have \[74, 76\]"):
        attention(*packed, block_mask=other, **lengths)
    with pytest.raises(ValueError, match="the keys of listed blocks are not divided"):
        attention(*packed, block_mask=other, num_splits=2, **lengths)
    with pytest.raises(ValueError, match=r"block_mask is of \(40, 60\) queries"):
        attention(q, k, v, block_mask=other)
    del lengths["cu_seqlens_k"]
    with pytest.raises(ValueError, match="keys in pages have none"):
        attention(
            packed[0], k, v, block_mask=other, block_table=int32(0, 1).view(2, 1),
            seqused_k=int32(75, 75), **lengths,
        )  # fmt: skip
