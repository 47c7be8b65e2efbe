"""Masks that papers name: which pairs each shows, what is refused, what they are called."""

import pytest
import torch

from tvm_flash import masks
from tvm_flash.masks import EXAMPLES, visible_pairs
from tvm_flash.score.trace import trace_mask_mod

N = 24
Q, K = torch.meshgrid(torch.arange(N), torch.arange(N), indexing="ij")
IS_GLOBAL = torch.zeros(N, dtype=torch.bool)
IS_GLOBAL[[3, 17]] = True
IDS = torch.tensor([0] * 5 + [1] * 12 + [2] * 7)


def near_on_grid(q, k, extent, width):
    """The ``width`` nearest of ``extent`` places, as many at an edge."""
    first = min(max(q - width // 2, 0), extent - width)
    return first <= k < first + width


PAIRS = {
    "causal": (masks.causal(), K <= Q),
    "causal ahead": (masks.causal(3), K <= Q + 3),
    "causal without itself": (masks.causal(-1), K < Q),
    "window": (masks.sliding_window(4, 2), (K >= Q - 4) & (K <= Q + 2)),
    "window without an end": (masks.sliding_window(-1, 2), K <= Q + 2),
    "dilated": (
        masks.dilated_window(2, 3),
        torch.stack([Q + 3 * n == K for n in range(-2, 3)]).any(0),
    ),
    "document": (masks.document(IDS), IDS[Q] == IDS[K]),
    "documents of entries": (
        masks.document(torch.stack([IDS, IDS.flip(0)])), IDS[Q] == IDS[K],
    ),
    "prefix": (masks.prefix_lm(6), (K <= Q) | (K < 6)),
    "prefixes": (masks.prefix_lm(torch.tensor([6, 9])), (K <= Q) | (K < 6)),
    "sinks": (masks.sink_window(2, 5), (K <= Q) & ((Q - K <= 5) | (K < 2))),
    "longformer": (
        masks.longformer(2, IS_GLOBAL), ((Q - K).abs() <= 2) | IS_GLOBAL[Q] | IS_GLOBAL[K],
    ),
    "longformer, first": (masks.longformer(2, 3), ((Q - K).abs() <= 2) | (Q < 3) | (K < 3)),
    "bigbird without chance": (
        masks.bigbird(N, 4, neighbors=1, global_blocks=1, random=0),
        ((Q // 4 - K // 4).abs() <= 1) | (Q < 4) | (K < 4),
    ),
    "line": (
        masks.neighborhood(N, 5),
        torch.tensor([[near_on_grid(q, k, N, 5) for k in range(N)] for q in range(N)]),
    ),
    "grid": (
        masks.neighborhood((4, 6), (3, 2)),
        torch.tensor(
            [
                [
                    near_on_grid(q // 6, k // 6, 4, 3) and near_on_grid(q % 6, k % 6, 6, 2)
                    for k in range(N)
                ]
                for q in range(N)
            ]
        ),
    ),
    "strided": (masks.sparse_strided(5), (K <= Q) & ((Q - K < 5) | ((Q - K) % 5 == 0))),
    "fixed": (masks.sparse_fixed(5, 2), (K <= Q) & ((Q // 5 == K // 5) | (K % 5 >= 3))),
    "all": (masks.all_of(masks.causal(), masks.document(IDS)), (K <= Q) & (IDS[Q] == IDS[K])),
    "any": (masks.any_of(masks.causal(), masks.document(IDS)), (K <= Q) | (IDS[Q] == IDS[K])),
    "not": (masks.not_mask(masks.causal()), K > Q),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name):
    mask_mod, expected = PAIRS[name]
    assert torch.equal(visible_pairs(mask_mod, N), expected)
    program, _ = trace_mask_mod(mask_mod)
    assert not program.is_score


def test_documents_and_prefixes_of_another_entry():
    seen = visible_pairs(masks.document(torch.stack([IDS, IDS.flip(0)])), N, b=1)
    assert torch.equal(seen, IDS.flip(0)[Q] == IDS.flip(0)[K])
    seen = visible_pairs(masks.prefix_lm(torch.tensor([6, 9])), N, b=1)
    assert torch.equal(seen, (K <= Q) | (K < 9))


def test_random_blocks_are_as_many_for_every_block_and_head():
    mask_mod = masks.random_blocks(100, 8, 3, heads=2, seed=1)
    seen = [visible_pairs(mask_mod, 104, h=h)[::8, ::8] for h in range(2)]
    assert all((x.sum(1) == 3).all() for x in seen)
    assert not torch.equal(*seen)
    again = masks.random_blocks(100, 8, 3, heads=2, seed=1)
    assert torch.equal(visible_pairs(again, 104)[::8, ::8], seen[0])


def test_every_query_of_a_neighborhood_sees_as_many():
    assert set(visible_pairs(masks.neighborhood((5, 7), (3, 4)), 35).sum(1).tolist()) == {12}


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("seqlen", [1, 2, 7, 40])
def test_examples_of_any_length(name, seqlen):
    seen = visible_pairs(EXAMPLES[name](seqlen), seqlen)
    assert seen.shape == (seqlen, seqlen) and seen.diagonal().all()


@pytest.mark.parametrize(
    "make, error, told",
    [
        (lambda: masks.causal(1.5), TypeError, "offset=1.5 must be an int"),
        (lambda: masks.causal(True), TypeError, "offset=True"),
        (lambda: masks.sliding_window(-1, -1), ValueError, "without an end"),
        (lambda: masks.sliding_window(2.5), TypeError, "left=2.5 must be an int"),
        (lambda: masks.sliding_window(-5, 2), ValueError, "left=-5 must be at least -1"),
        (lambda: masks.sliding_window(2, -2), ValueError, "right=-2 must be at least -1"),
        (lambda: masks.dilated_window(2, 0), ValueError, "dilation=0"),
        (lambda: masks.dilated_window(2.0, 1), TypeError, "reach=2.0"),
        (lambda: masks.document(torch.rand(4)), TypeError, "integer dtype"),
        (lambda: masks.document([0, 1]), TypeError, "list"),
        (lambda: masks.document(torch.zeros(4, dtype=torch.complex64)), TypeError, "integer dtype"),
        (lambda: masks.document(torch.zeros(2, 3, 4, dtype=torch.int32)), ValueError, r"\(B, S\)"),
        (lambda: masks.longformer(2, torch.zeros(4)), TypeError, "torch.bool"),
        (lambda: masks.prefix_lm(-1), ValueError, "prefix=-1"),
        (lambda: masks.prefix_lm(torch.zeros(2, 2, dtype=torch.int32)), ValueError, r"\(B,\)"),
        (lambda: masks.random_blocks(64, 16, 5), ValueError, "at most 4"),
        (lambda: masks.neighborhood((4, 4), (3, 5)), ValueError, "kernel"),
        (lambda: masks.neighborhood((4, 4), 3), ValueError, "kernel"),
        (lambda: masks.neighborhood((), ()), ValueError, "kernel"),
        (lambda: masks.neighborhood(8.0, 3), TypeError, "shape=8.0 must be an int"),
        (lambda: masks.sparse_fixed(4, 5), ValueError, "summary=5"),
        (lambda: masks.all_of(), ValueError, "of no mask"),
        (lambda: masks.any_of(masks.causal(), 3), TypeError, "any_of.. of 3"),
        (lambda: masks.bigbird(64, random=-1), ValueError, "random=-1"),
        (lambda: masks.random_blocks(64, 16, 1, seed="a"), TypeError, "seed='a'"),
    ],
)
def test_what_is_refused(make, error, told):
    with pytest.raises(error, match=told):
        make()


def test_names_tell_the_numbers():
    assert masks.sliding_window(4, 2).__name__ == "sliding_window(left=4, right=2)"
    both = masks.all_of(masks.causal(), masks.not_mask(masks.document(IDS)))
    assert both.__name__ == "all_of(causal(offset=0), not_mask(document))"
