"""The bits of a sequence do not depend on what else is in the batch: what holds on CPUs."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from packed_problems import Entries, cumulative

from tvm_flash import attention, flash_attn_with_kvcache
from tvm_flash.frontend.mixed_lengths import shares_of
from tvm_flash.frontend.packed_rows import extent_of


@contextmanager
def other_threads():
    """Another number of threads than there was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


PROBLEM = Entries((3, 90, 1, 40, 7), (300, 90, 33, 400, 0), heads=4, kv_heads=2)
# Those with few queries have keys enough for a kernel of their own.
MIXED = Entries((1, 129, 16, 17, 0, 2), (900, 1100, 300, 40, 50, 600), heads=4, kv_heads=2)


def packed(numbers, problem=PROBLEM, num_splits=1, **options):
    """out of these entries of the problem, in this order, each as rows of its own."""
    q, k, v = (
        torch.cat([x[problem.slices(axis)[n]] for n in numbers])
        for x, axis in zip(problem.inputs(32)[:3], "qkk", strict=True)
    )
    rows, keys = ([lengths[n] for n in numbers] for lengths in (problem.rows, problem.keys))
    out = attention(
        q, k, v, cu_seqlens_q=cumulative(rows), cu_seqlens_k=cumulative(keys), causal=True,
        num_splits=num_splits, **options,
    )  # fmt: skip
    return dict(zip(numbers, out.split(rows), strict=True))


@pytest.mark.parametrize("options", [{}, {"window_size": (20, 0)}], ids=["causal", "window"])
def test_alone_in_a_batch_at_any_place_on_any_number_of_threads(options):
    whole = packed([0, 1, 2, 3, 4], **options)
    with other_threads():
        for order in ([4, 3, 2, 1, 0], [3], [0], [2], [1, 0]):
            for number, out in packed(order, **options).items():
                assert torch.equal(out, whole[number]), (order, number)


# One is too short for the kernel that divides keys.
@pytest.mark.parametrize(("splits", "least"), [(1, 17), (0, 33), (3, 33)])
def test_decoding_from_pages(splits, least):
    """One query each: alone, and beside others that are longer, in other pages."""
    problem = Entries((1, 1, 1), (least, 600, 290), heads=4, kv_heads=2)
    q, k, v, *_ = problem.inputs(32)
    laid = problem.in_pages(k, v, 16, left=(0, 0, 0))
    q, ends, table = q[:, None], laid["ends_k"], laid["page_table"]

    def decoded(chosen):
        return flash_attn_with_kvcache(
            q[chosen], laid["k"], laid["v"], cache_seqlens=ends[chosen].contiguous(),
            block_table=table[chosen].contiguous(), num_splits=splits,
        )  # fmt: skip

    whole = decoded([0, 1, 2])
    for number in range(3):
        assert torch.equal(decoded([number])[0], whole[number])
    with other_threads():
        assert torch.equal(decoded([2, 0]), whole[[2, 0]])
        assert torch.equal(decoded([0, 1, 2]), whole)


@pytest.mark.parametrize("options", [{}, {"window_size": (20, 0)}], ids=["causal", "window"])
def test_few_queries_beside_a_prompt_have_the_bits_of_a_batch_without_one(options):
    mixed = packed(range(6), MIXED, 0, **options)
    inputs = MIXED.inputs(32, causal=True, **options)
    for of_kind in ([0, 2, 5], [1, 3, 4]):
        for number, out in packed(of_kind, MIXED, 0, **options).items():
            assert torch.equal(out, mixed[number]), number
    exact, plain = (
        MIXED.alone(*(x.to(dtype) for x in inputs[:3]), **inputs.variant)[0]
        for dtype in (torch.float64, torch.float32)
    )
    out = torch.cat([*mixed.values()])
    assert (out - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-6


def spans_of(entries: Entries) -> tuple:
    """Spans and extents of a call."""
    lengths = (np.array(x, np.int64) for x in (entries.rows, entries.keys))
    return [*entries.spans.values()], tuple(map(extent_of, lengths))


def test_shares_of_a_mixed_batch():
    """Each entry with queries is in one; buckets are those of a share's longest entry."""
    tiny = [(20, 30)] * 40
    rows, keys = zip(*tiny, (16, 2000), (17, 900), (0, 5000), (33, 33), strict=True)
    entries = Entries(rows, keys)
    spans, extents = spans_of(entries)
    shares = dict(shares_of(spans, extents))
    found = {
        bucket: torch.stack(own[1::2]) - torch.stack(own[::2]) for bucket, own in shares.items()
    }
    assert list(found) == ["tiny", "decode", "medium"]
    assert found["tiny"].tolist() == [[20] * 40, [30] * 40]
    assert found["decode"].tolist() == [[16], [2000]]
    assert found["medium"].tolist() == [[17, 33], [900, 33]]


@pytest.mark.parametrize(
    "entries",
    [
        Entries((1, 1), (3000, 20)),
        Entries((300,), (3000,)),
        Entries((300, 1), (300, 1000)),
        Entries((300, 90), (4000, 90)),
        Entries((20,) * 60, (30,) * 60),
    ],
    ids=["decoding alone", "one", "few keys", "long ones", "tiny ones"],
)
def test_one_kernel_serves_all(entries):
    assert shares_of(*spans_of(entries)) == []


def test_nobody_is_left_for_the_longest():
    (bucket, own), (other, _) = shares_of(*spans_of(Entries((1, *[20] * 60), (3000, *[20] * 60))))
    assert (bucket, other) == ("tiny", "decode") and len(own[0]) == 60
