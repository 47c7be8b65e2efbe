"""num_splits=1: the bits of a sequence do not depend on what else is in the batch."""

import pytest
import torch
from ragged import Pages, Ragged

from tvm_flash import attention, flash_attn_with_kvcache

PROBLEM = Ragged((3, 90, 1, 40, 7), (300, 90, 33, 400, 0), dim=32, dim_v=32, before=1)


def packed(problem, numbers, **options):
    """out of these entries of the problem, in this order, each as rows of its own."""
    parts = [problem.entry(number) for number in numbers]
    q, k, v = (torch.cat([part[name][0] for part in parts]) for name in ("q", "k", "v"))
    cu_seqlens = [
        torch.tensor([0, *(lengths[n] for n in numbers)]).cumsum(0).int()
        for lengths in (problem.rows, problem.keys)
    ]
    out = attention(
        q, k, v, cu_seqlens_q=cu_seqlens[0], cu_seqlens_k=cu_seqlens[1], causal=True, num_splits=1,
        **options,
    )  # fmt: skip
    return dict(zip(numbers, out.split([problem.rows[n] for n in numbers]), strict=True))


@pytest.mark.parametrize("options", [{}, {"window_size": (20, 0)}], ids=["causal", "window"])
def test_alone_in_a_batch_at_any_place_on_any_number_of_threads(options):
    whole = packed(PROBLEM, [0, 1, 2, 3, 4], **options)
    threads = torch.get_num_threads()
    try:
        for order in ([4, 3, 2, 1, 0], [3], [0], [2], [1, 0]):
            torch.set_num_threads(1 if threads > 1 else 2)
            for number, out in packed(PROBLEM, order, **options).items():
                assert torch.equal(out, whole[number]), (order, number)
    finally:
        torch.set_num_threads(threads)


def test_decoding_from_pages():
    """One query each: alone, and beside others that are longer, in other pages."""
    problem = Ragged((1, 1, 1), (17, 600, 90), dim=32, dim_v=32)
    laid = Pages(problem, 16, left=(0, 0, 0)).laid()
    q, ends, table = problem.tensors["q"][:, None], laid["ends_k"], laid["page_table"]

    def decoded(chosen):
        return flash_attn_with_kvcache(
            q[chosen], laid["k"], laid["v"], cache_seqlens=ends[chosen].contiguous(),
            block_table=table[chosen].contiguous(), num_splits=1,
        )  # fmt: skip

    whole = decoded([0, 1, 2])
    for number in range(3):
        assert torch.equal(decoded([number])[0], whole[number])
    assert torch.equal(decoded([2, 0]), whole[[2, 0]])
