"""Block masks are what their mask_mod shows, by block; visits follow their lists."""

import pytest
import torch
from block_masks import random_mask
from torch.nn.attention.flex_attention import BlockMask as TorchBlockMask
from torch.nn.attention.flex_attention import create_block_mask

from tvm_flash import block_mask, masks
from tvm_flash.problem.block_maker import from_torch
from tvm_flash.problem.block_mask import FULL, HIDDEN, PARTIAL
from tvm_flash.problem.listed import ListedVisibility
from tvm_flash.problem.spec import AttentionSpec

BLOCK = (16, 32)


def states_by_pairs(mask_mod, seqlen_q, seqlen_k, block=BLOCK, h=0):
    """HIDDEN, FULL or PARTIAL of each block, of every pair."""
    seen = masks.visible_pairs(mask_mod, seqlen_q, seqlen_k, h=h)
    rows = [
        [x.any() * PARTIAL - x.all() * (PARTIAL - FULL) for x in rows.split(block[1], dim=1)]
        for rows in seen.split(block[0])
    ]
    return torch.tensor(rows, dtype=torch.uint8)


@pytest.mark.parametrize("name", masks.EXAMPLES)
def test_blocks_of_named_masks(name):
    mask_mod = masks.EXAMPLES[name](150)
    made = block_mask(mask_mod, 2, 4, 130, 150, BLOCK)
    assert made.shape == (1, 4 if name == "bigbird" else 1, 130, 150)
    for h in range(made.shape[1]):
        assert torch.equal(made.states(h=h), states_by_pairs(mask_mod, 130, 150, h=h))
    assert (made.program is None) == (PARTIAL not in made.states())


def test_entries_and_heads_that_a_mask_tells_apart():
    ids = torch.arange(100) // torch.tensor([[20], [50]])
    by_entry = block_mask(masks.document(ids), 2, 3, 100, 100, BLOCK)
    assert by_entry.shape == (2, 1, 100, 100)
    assert torch.equal(by_entry.states(b=1), states_by_pairs(masks.document(ids[1]), 100, 100))
    by_head = block_mask(lambda b, h, q_idx, k_idx: k_idx < 32 * h, 2, 3, 100, 100, BLOCK)
    assert by_head.shape == (1, 3, 100, 100) and by_head.program is None
    assert by_head.visits == 7 * (0 + 1 + 2)


def test_sequences_of_lengths_of_their_own():
    """As many masks, of the positions inside each; a tensor of lengths too."""
    queries, keys = torch.tensor([60, 0, 33]), [70, 5, 0]
    made = block_mask(masks.causal(), 3, 2, queries, keys, BLOCK)
    assert made.shape == (3, 1, (60, 0, 33), (70, 5, 0))
    assert torch.equal(made.states(0), states_by_pairs(masks.causal(), 60, 70))
    assert [made.states(b).shape for b in (1, 2)] == [(0, 1), (3, 0)]
    assert made.visits == int((made.states(0) > HIDDEN).sum())
    assert made.density == made.visits / (4 * 3)


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (2, 3)])
def test_lists_of_keys_are_those_of_queries(shape):
    mask = random_mask(130, 150, shape, BLOCK)
    for b in range(shape[0]):
        for h in range(shape[1]):
            starts = mask.query_starts[b, h]
            for keys, column in enumerate(mask.states(b, h).T):
                own = mask.query_blocks[starts[keys] : starts[keys + 1]]
                assert (own // 2).tolist() == column.nonzero().flatten().tolist()
                assert (own % 2 + 1).tolist() == column[column > 0].tolist()


@pytest.mark.parametrize("causal", [False, True])
def test_visits_of_lists(causal):
    """Tiles in the order of keys, those past the end left out; from the end where asked."""
    seqlen_q, seqlen_k, tiles = 75, 75, (8, 16)
    mask = random_mask(seqlen_q, seqlen_k, (1, 1), BLOCK)
    spec = AttentionSpec(dtype="float32", head_dim=16, causal=causal, block_mask=BLOCK)
    lists = [x.numpy().astype(int) for x in mask.lists(1, 1)]
    seen = ListedVisibility(spec, seqlen_q, seqlen_k, {}, lists, 0).of_head(0)
    for axis, ask, tile, other, length in (
        (0, seen.keys, tiles[0], tiles[1], seqlen_k),
        (1, seen.queries, tiles[1], tiles[0], seqlen_q),
    ):  # fmt: skip
        states = mask.states() if axis == 0 else mask.states().T
        for first in range(0, 75, tile):
            own = states[first // BLOCK[axis]]
            wanted = [p for p in range(0, length, other) if own[p // BLOCK[1 - axis]] != HIDDEN]
            hides = [own[p // BLOCK[1 - axis]] == PARTIAL for p in wanted]
            visits = ask(first, first + tile, other)
            assert visits.count == len(wanted)
            assert [visits.first(n) for n in range(len(wanted))] == wanted
            assert [visits.hides(n) for n in range(len(wanted))] == hides
            back = ask(first, first + tile, other, last_first=True)
            assert [back.first(n) for n in range(len(wanted))] == wanted[::-1]


def test_blocks_of_torch():
    def mask_mod(b, h, q_idx, kv_idx):
        return (q_idx >= kv_idx) & (kv_idx > 40 * h)

    theirs = create_block_mask(mask_mod, 1, 2, 130, 150, device="cpu", BLOCK_SIZE=BLOCK)
    made = from_torch(theirs)
    assert made.block == BLOCK and made.shape == (1, 2, 130, 150)
    visible = states_by_pairs(mask_mod, 130, 150, h=1)
    # Theirs are partial where they reach past the end.
    assert torch.equal(made.states(h=1) > HIDDEN, visible > HIDDEN)
    assert torch.equal(made.states(h=1)[:8, :4], visible[:8, :4])


def test_lists_of_torch_in_any_order():
    counts, lists = torch.tensor([[[2, 1]]]), torch.tensor([[[[3, 0, 9], [1, 9, 9]]]])
    full_counts, full_lists = torch.tensor([[[1, 0]]]), torch.tensor([[[[2, 9, 9], [9, 9, 9]]]])
    theirs = TorchBlockMask.from_kv_blocks(
        counts.int(), lists.clamp(max=3).int(), full_counts.int(), full_lists.clamp(max=3).int(),
        BLOCK_SIZE=BLOCK, seq_lengths=(32, 128),
    )  # fmt: skip
    assert from_torch(theirs).states().tolist() == [
        [PARTIAL, HIDDEN, FULL, PARTIAL], [HIDDEN, PARTIAL, HIDDEN, HIDDEN],
    ]  # fmt: skip


def test_shown_as_text():
    shown = str(block_mask(masks.causal(), 1, 1, 64, 96, (32, 32)))
    assert shown == (
        "BlockMask(batch=1, heads=1, seqlen_q=64, seqlen_k=96, blocks of 32 x 32, 50.0% visited)\n"
        "░░\n██░░"
    )


@pytest.mark.parametrize(
    "sizes, block, error, message",
    [
        ((1, 1, 64, 64), (10, 64), ValueError, "multiples of 16"),
        ((1, 1, 64, 64), 64, TypeError, "pair of ints"),
        ((1, 1, 0, 64), BLOCK, ValueError, "seqlen_q=0 must be at least 1"),
        ((1, 1.0, 64, 64), BLOCK, TypeError, "heads=1.0 must be an int"),
        ((1, 1, 64.0, 64), BLOCK, TypeError, "seqlen_q=64.0 must be an int"),
        ((1, 1, 64, [64]), BLOCK, TypeError, "seqlen_q=64 .* the lengths of 1 sequences"),
        ((2, 1, [64], [64]), BLOCK, ValueError, "seqlen_q has the lengths of 1 sequences, batch=2"),
        ((1, 1, [-1], [64]), BLOCK, ValueError, r"seqlen_q\[0\]=-1 must be at least 0"),
        ((1, 1, [64], [0]), BLOCK, ValueError, "seqlen_k has no positions at all"),
    ],
)
def test_what_has_no_blocks(sizes, block, error, message):
    with pytest.raises(error, match=message):
        block_mask(masks.causal(), *sizes, block)


@pytest.mark.parametrize(
    ("count", "block", "message"),
    [(1, -1, r"outside 0\.\.1"), (1, 2, r"outside 0\.\.1"), (3, 0, "counts 3 .* room for 2")],
)
def test_torchs_lists_of_blocks_that_are_not_there(count, block, message):
    theirs = TorchBlockMask.from_kv_blocks(
        torch.full((1, 1, 1), count, dtype=torch.int32),
        torch.tensor([[[[block, 0]]]], dtype=torch.int32),
        BLOCK_SIZE=32,
        seq_lengths=(32, 64),
        compute_q_blocks=False,
    )
    with pytest.raises(ValueError, match=message):
        from_torch(theirs)
