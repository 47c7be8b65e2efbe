"""Tensors that torch negates when they are read, as the .imag of a conjugate: right, or refused."""

import pytest
import torch

from tvm_flash import apply_rotary, attention, flash_attn_with_kvcache, merge_states

torch.manual_seed(0)
CU = torch.tensor([0, 3, 8], dtype=torch.int32)
USED, PAD = torch.tensor([2, 4], dtype=torch.int32), torch.tensor([1, 0], dtype=torch.int32)
ROWS, CACHE, NEW = torch.randn(8, 2, 16), torch.randn(2, 16, 2, 16), torch.randn(2, 1, 2, 16)
ANGLES, SINK = torch.rand(20, 8), torch.randn(2)
PART = torch.randn(2, 3, 2, 16), torch.randn(2, 2, 3)


def step(q, k_cache, v_cache, k, v, cos, sin, used, rows, pad):
    out = flash_attn_with_kvcache(
        q, k_cache, v_cache, k, v, cos, sin, cache_seqlens=used, cache_batch_idx=rows,
        cache_leftpad=pad,
    )  # fmt: skip
    return out, k_cache, v_cache


# A call, its tensors, and which of these are refused.
CALLS = {
    "dense": (
        lambda q, k, v, sink, w: attention(
            q, k, v, sink=sink, alibi_slopes=sink, score_mod=lambda s, b, h, i, j: s + w[j]
        ),
        (CACHE, CACHE, CACHE, SINK, ANGLES[:, 0]), (),
    ),
    "packed": (
        lambda q, k, v, cu, used: attention(
            q, k, v, cu_seqlens_q=cu, cu_seqlens_k=CU, seqused_k=used
        ),
        (ROWS, ROWS, ROWS, CU, USED), (3, 4),
    ),
    "paged": (
        lambda q, k, v, table, used: attention(
            q, k, v, cu_seqlens_q=CU, block_table=table, seqused_k=used
        ),
        (ROWS, CACHE, CACHE, PAD[:, None], USED), (3, 4),
    ),
    "cache": (
        step, (NEW, CACHE, CACHE, NEW, NEW, ANGLES, ANGLES, USED, PAD, PAD), (1, 2, 7, 8, 9)
    ),
    "rotary": (
        lambda x, cos, sin, offsets: apply_rotary(x, cos, sin, seqlen_offsets=offsets),
        (NEW, ANGLES, ANGLES, USED), (3,),
    ),
    "merge": (merge_states, (*PART, *PART), ()),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_lazily_negated(name):
    call, given, refused = CALLS[name]
    results = call(*(x.clone() for x in given))
    for place in range(len(given)):
        tensors = [x.clone() for x in given]
        tensors[place] = torch._neg_view(-tensors[place])
        if place in refused:
            with pytest.raises(TypeError, match=r"negated lazily .* pass its .resolve_neg\(\)"):
                call(*tensors)
        else:
            torch.testing.assert_close(call(*tensors), results, atol=1e-5, rtol=1e-5)


def test_gradients():
    x, grad = torch.randn(1, 9, 2, 16, requires_grad=True), torch.randn(1, 9, 2, 16)
    expected = torch.autograd.grad(attention(x, x, x), x, grad)
    negated = torch._neg_view(-x.detach()).requires_grad_()
    found = torch.autograd.grad(attention(*[negated] * 3), negated, torch._neg_view(-grad))
    torch.testing.assert_close(found, expected)
