"""Windows, causal masks, softcap and ALiBi are what FlashAttention means by them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tvm_flash.score import variants
from tvm_flash.score.bias import bias_program
from tvm_flash.score.trace import trace_score_mod

lengths = st.integers(1, 14)
alignments = st.sampled_from(["bottom_right", "top_left"])


def visible(left, right, alignment, seqlen_q, seqlen_k):
    """(Sq, Sk) by the mask itself."""
    row = torch.arange(seqlen_q)[:, None] + variants.alignment_offset(alignment, seqlen_q, seqlen_k)
    key = torch.arange(seqlen_k)[None, :]
    everything = torch.ones(seqlen_q, seqlen_k, dtype=torch.bool)
    if (left, right) == (-1, -1):
        return everything
    ends = (None if end == -1 else end for end in (left, right))
    return everything & variants.window(*ends)(0, 0, row, key)


@given(st.integers(-1, 12), alignments, lengths, lengths)
def test_window_is_flash_attentions(left, alignment, seqlen_q, seqlen_k):
    """Keys in [i + sk - sq - left, i + sk - sq + right], both ends included."""
    right = 2
    seen = visible(left, right, alignment, seqlen_q, seqlen_k)
    for i in range(seqlen_q):
        middle = i + (seqlen_k - seqlen_q if alignment == "bottom_right" else 0)
        for j in range(seqlen_k):
            assert seen[i, j] == (j <= middle + right and (left == -1 or j >= middle - left))


def test_causal_is_a_window_that_ends_at_zero():
    row, key = torch.arange(9)[:, None], torch.arange(9)[None, :]
    expected = variants.window(None, 0)(0, 0, row, key)
    assert torch.equal(variants.causal(0, 0, row, key), expected)
    assert torch.equal(expected, torch.ones(9, 9).tril().bool())


@pytest.mark.parametrize("axes", ["", "h", "bk", "bhqk"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_program_of_a_bias_is_the_traced_one(axes, dtype):
    table = torch.zeros([1] * len(axes), dtype=getattr(torch, dtype))
    assert bias_program(axes, dtype) == trace_score_mod(variants.bias(axes, table))[0]


@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_softcap_bounds_and_keeps_small_scores(cap):
    scores = torch.linspace(-1000, 1000, 101, dtype=torch.float64)
    capped = variants.softcap(cap)(scores, 0, 0, 0, 0)
    assert capped.abs().max() <= cap
    small = torch.tensor(1e-4 * cap, dtype=torch.float64)
    torch.testing.assert_close(variants.softcap(cap)(small, 0, 0, 0, 0), small, rtol=1e-6, atol=0)


def test_alibi_grows_with_distance():
    slopes = torch.tensor([[0.5, 0.25]])
    biased = variants.alibi(slopes)(torch.zeros(()), 0, 1, torch.tensor(7), torch.arange(10))
    assert torch.equal(biased, -0.25 * (7 - torch.arange(10)).abs())


def test_masks_compose():
    row, key = torch.arange(6)[:, None], torch.arange(6)[None, :]
    even = lambda b, h, q_idx, k_idx: k_idx % 2 == 0 * q_idx  # noqa: E731
    both = variants.and_masks(variants.causal, even)(0, 0, row, key)
    either = variants.or_masks(variants.causal, even)(0, 0, row, key)
    assert torch.equal(both, variants.causal(0, 0, row, key) & even(0, 0, row, key))
    assert torch.equal(either, variants.causal(0, 0, row, key) | even(0, 0, row, key))
