"""The bits of a sequence do not depend on what else is in the batch: what holds on CPUs."""

from contextlib import contextmanager

import pytest
import torch
from packed_problems import Entries, cumulative

from tvm_flash import attention, flash_attn_with_kvcache


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
INPUTS = PROBLEM.inputs(32)


def packed(numbers, **options):
    """out of these entries of the problem, in this order, each as rows of its own."""
    q, k, v = (
        torch.cat([x[PROBLEM.slices(axis)[n]] for n in numbers])
        for x, axis in zip(INPUTS[:3], "qkk", strict=True)
    )
    rows, keys = ([lengths[n] for n in numbers] for lengths in (PROBLEM.rows, PROBLEM.keys))
    out = attention(
        q, k, v, cu_seqlens_q=cumulative(rows), cu_seqlens_k=cumulative(keys), causal=True,
        num_splits=1, **options,
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
