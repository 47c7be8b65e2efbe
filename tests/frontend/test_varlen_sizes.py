"""Packed and paged calls at the ends of what sizes may be: none, very many, beyond int32."""

from math import prod

import pytest
import torch
from packed_problems import DIM, HEADS, KV_HEADS, cumulative, int32, packed_inputs, random

from tvm_flash import AttentionSpec, attention, flash_attn_varlen_func
from tvm_flash.frontend.results import layouts_of
from tvm_flash.reference import attention_reference
from tvm_flash.runtime.kernels import resolve
from tvm_flash.verify.rule import allowed_error, largest_error


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_max_seqlen_as_a_tensor(dtype):
    inputs, cu = packed_inputs([(9, 9), (20, 20)]), cumulative([9, 20])
    want = flash_attn_varlen_func(*inputs[:3], cu, cu, 20, 20)
    longest = torch.tensor(20, dtype=dtype)
    assert torch.equal(flash_attn_varlen_func(*inputs[:3], cu, cu, longest, longest), want)
    for name in ("max_seqlen_q", "max_seqlen_k"):
        given = {"max_seqlen_q": longest, "max_seqlen_k": longest, name: longest - 1}
        with pytest.raises(ValueError, match=f"{name}=19 is too small: a sequence has 20 rows"):
            flash_attn_varlen_func(*inputs[:3], cu, cu, **given)


# Queries of each sequence, pages in the table, pages there are.
NOTHING = {
    "no sequence": ([], 2, 3),
    "no queries": ([0, 0], 2, 3),
    "no columns of the table": ([3, 2], 0, 3),
    "no pages": ([3, 2], 0, 0),
}


@pytest.mark.parametrize("name", NOTHING)
def test_pages_of_nothing(name):
    queries, columns, count = NOTHING[name]
    q, pages = random(sum(queries), HEADS, DIM), random(count, 4, KV_HEADS, DIM)
    none = torch.zeros(len(queries), dtype=torch.int32)
    table = none[:, None].expand(-1, columns)
    out, lse = attention(
        q, pages, pages, cu_seqlens_q=cumulative(queries), seqused_k=none, block_table=table,
        return_lse=True,
    )  # fmt: skip
    assert torch.equal(out, torch.zeros_like(q)) and (lse == -torch.inf).all()
    assert lse.shape == (HEADS, len(q))


def test_a_batch_of_no_sequences_with_slopes():
    q, ends = random(4, HEADS, DIM), int32(0)
    slopes = torch.rand(HEADS)
    out, lse = attention(
        q, q, q, cu_seqlens_q=ends, cu_seqlens_k=ends, alibi_slopes=slopes, return_lse=True
    )
    assert torch.equal(out, torch.zeros_like(q)) and (lse == -torch.inf).all()


def test_numbers_of_a_call_may_grow_afterwards():
    """A call leaves the memory of its numbers to be resized, as torch.cumsum(out=) does."""
    q, ends = random(9, HEADS, DIM), int32(0, 4, 9)
    out = torch.full_like(q, torch.nan)
    got = flash_attn_varlen_func(q, q, q, ends, ends, 5, 5, out=out)
    assert got is out and torch.equal(out, flash_attn_varlen_func(q, q, q, ends, ends, 5, 5))
    ends.resize_(4).copy_(int32(0, 2, 4, 9))
    wanted = flash_attn_varlen_func(q, q, q, ends.clone(), ends.clone(), 5, 5)
    assert torch.equal(flash_attn_varlen_func(q, q, q, ends, ends, 5, 5), wanted)


def test_memory_of_decoding_goes_with_the_keys_there_are():
    """Room for entries all as long as the longest would be 150 TB."""
    page, short, dim = 2**20, 2**17, 8
    q, pages = random(short + 1, 2, dim), random(1, page, 1, dim)
    used = torch.ones(short + 1, dtype=torch.int32)
    used[7] = 4 * page
    out = attention(
        q, pages, pages, cu_seqlens_q=torch.arange(short + 2, dtype=torch.int32), seqused_k=used,
        block_table=used.new_zeros(short + 1, 4),
    )  # fmt: skip
    keys = pages[0, :, 0].double()
    expected = keys[0].expand(short + 1, 2, dim).clone()
    expected[7] = (q[7].double() @ keys.T * dim**-0.5).softmax(-1) @ keys
    torch.testing.assert_close(out.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_memory_goes_with_rows_and_not_with_sequences(direction):
    """All that a call reads and writes, its own memory included: as much for 1 as for 10^5."""
    spec = AttentionSpec(dtype="float32", head_dim=DIM, sequences="packed")
    kernel, total = resolve(spec, direction, "cpu", None, "tiny"), 200_000
    sizes = {"H": HEADS, "Hk": HEADS, "total_q": total, "total_k": total, "max_seqlen_k": 4}
    one, many = (
        sum(prod(shape) for shape, _, _ in layouts_of(kernel, {**sizes, "B": count}, 2).values())
        for count in (1, 100_000)
    )
    # A sequence adds the 4 numbers of its spans, which the caller has.
    assert many - one == 4 * (100_000 - 1)
    # q, k, v, out; for gradients dout, dq, dk, dv and a sum of dQ besides.
    assert one < {"forward": 4.2, "backward": 9.2}[direction] * total * HEADS * DIM


@pytest.mark.slow
def test_a_hundred_thousand_sequences():
    count = 100_000
    lengths = torch.randint(0, 5, (count,), generator=torch.Generator().manual_seed(1))
    cu = cumulative(lengths.tolist())
    total = int(cu[-1])
    leaves = [random(total, 1, DIM, seed=n).requires_grad_() for n in range(3)]
    dout = random(total, 1, DIM, seed=3)
    out = attention(*leaves, cu_seqlens_q=cu, cu_seqlens_k=cu, causal=True)
    found = [out.detach(), *torch.autograd.grad(out, leaves, dout)]
    rows = torch.arange(4) < lengths[:, None]

    def padded(dtype):
        """The same of sequences of 4 rows; those past the end are seen by none that counts."""
        parts = [x.detach().to(dtype).requires_grad_() for x in leaves]
        dense = [torch.zeros(count, 4, 1, DIM, dtype=dtype) for _ in parts]
        dense = [x.index_put((rows,), part) for x, part in zip(dense, parts, strict=True)]
        want = attention_reference(*dense, causal=True)[0][rows]
        return [want.detach(), *torch.autograd.grad(want, parts, dout.to(dtype))]

    names = ("out", "dq", "dk", "dv")
    for name, got, want, plain in zip(
        names, found, padded(torch.float64), padded(torch.float32), strict=True
    ):
        assert largest_error(got, want) <= allowed_error(name, "float32", want, plain), name


@pytest.mark.slow
def test_packed_keys_of_more_elements_than_int32_counts():
    """The last sequence of a tensor whose other memory is never touched."""
    total = 2**31 // (KV_HEADS * DIM) + 100
    k, v = (torch.empty(total, KV_HEADS, DIM, dtype=torch.bfloat16) for _ in "kv")
    q = random(5, HEADS, DIM, dtype=torch.bfloat16)
    for x, seed in ((k, 1), (v, 2)):
        x[-70:] = random(70, KV_HEADS, DIM, seed=seed, dtype=torch.bfloat16)
    cu_k, used = int32(0, 2**24, total - 70, total), int32(0, 0, 70)
    out = attention(q, k, v, cu_seqlens_q=int32(0, 0, 0, 5), cu_seqlens_k=cu_k, seqused_k=used)
    own = q[None], k[None, -70:], v[None, -70:]
    want, _ = attention_reference(*own, upcast=torch.float64)
    plain, _ = attention_reference(*own)
    assert largest_error(out[None], want) <= allowed_error("out", "bfloat16", want, plain)
