"""Entries of different lengths on interpreted GPU kernels: packed rows, keys in pages."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from entries import Ragged
from interpreted import aligned_rows, resolver
from packed_problems import Entries, assert_rule, cumulative, packed_inputs

from tvm_flash import attention, block_mask
from tvm_flash.frontend import blocks, placement, ragged_ops
from tvm_flash.problem.arguments import named_sizes
from tvm_flash.ptx_interpreter import Checks
from tvm_flash.schedules.cuda.entries import key_work, query_work

ATOMIC, ORDERED = "backward", "backward_deterministic"


def steeper(score, b, h, q_idx, k_idx):
    """Depends on the entry and on positions inside it."""
    return score * 0.5 + b * 0.3 + (q_idx - k_idx) * 0.01


def odd_keys(b, h, q_idx, k_idx):
    return (k_idx + b) % 2 == 0


def slopes(entries: int, heads: int):
    return torch.linspace(0.05, 0.4, entries * heads).reshape(entries, heads)


# Lengths around tiles of 64, none at all, fewer queries than keys and the other way round.
MIXED = Entries((33, 0, 70, 1), (45, 9, 64, 0))
GAPS = Entries((20, 66), (70, 3), heads=4, kv_heads=2, gap=3)
ALONE = Entries((65,), (31,), heads=1)
EMPTY = Entries((0, 0), (0, 5))
# arch, entries, variant, backward, fields: pairs of these meet, not all of them.
PACKED = {
    "causal": ("sm_80", MIXED, {"causal": True}, ATOMIC, {"head_dim": 64}),
    "full, in order": ("sm_80", GAPS, {}, ORDERED, {"head_dim": 32, "dtype": "bfloat16"}),
    "window, capped": (
        "sm_75", MIXED, {"window_size": (9, 3), "softcap": 2.0}, ORDERED, {"head_dim": 40},
    ),
    "causal, gaps, sm_75": ("sm_75", GAPS, {"causal": True}, ATOMIC, {"head_dim": 64}),
    "score_mod": (
        "sm_120", MIXED, {"score_mod": steeper}, ATOMIC, {"head_dim": 24, "head_dim_v": 16},
    ),
    "mask_mod, ordered": ("sm_120", GAPS, {"mask_mod": odd_keys}, ORDERED, {"head_dim": 15}),
    "alibi": (
        "sm_80", GAPS, {"alibi_slopes": slopes(2, 4), "causal": True}, ATOMIC, {"head_dim": 16},
    ),
    "one entry, top left": (
        "sm_75", ALONE, {"causal": True, "alignment": "top_left"}, ATOMIC, {"head_dim": 16},
    ),
    "float32": ("sm_80", ALONE, {}, ATOMIC, {"head_dim": 16, "dtype": "float32"}),
    "small shared memory": ("sm_120", ALONE, {"causal": True}, ATOMIC, {"head_dim": 128}),
    "no rows": ("sm_80", EMPTY, {"causal": True}, ATOMIC, {"head_dim": 64}),
    "no entries": ("sm_80", Entries((), ()), {"causal": True}, ATOMIC, {"head_dim": 64}),
}  # fmt: skip


def ragged(entries, variant, fields, **options):
    return Ragged(entries, variant, **{"dtype": "float16", **fields}, **options)


@pytest.mark.parametrize("name", PACKED)
def test_packed(name):
    arch, entries, variant, backward, fields = PACKED[name]
    problem = ragged(entries, variant, fields)
    problem.check(problem.found(arch, backward, unwritten=entries.gap > 0))


PAGED = {
    "rows": (1, "sm_80", MIXED, {"causal": True}, {"head_dim": 64}),
    "threes": (3, "sm_75", MIXED, {"causal": True}, {"head_dim": 40}),
    "sixteens": (16, "sm_80", ALONE, {"window_size": (20, 2)}, {"head_dim": 15}),
    "tiles": (64, "sm_120", GAPS, {"score_mod": steeper}, {"head_dim": 128}),
    "widths": (16, "sm_75", ALONE, {"softcap": 2.0}, {"head_dim": 16, "head_dim_v": 48}),
    "float32": (7, "sm_80", GAPS, {}, {"head_dim": 24, "dtype": "float32"}),
    "no rows": (5, "sm_80", EMPTY, {}, {"head_dim": 16}),
}


@pytest.mark.parametrize("name", PAGED)
def test_paged(name):
    size, arch, entries, variant, fields = PAGED[name]
    problem = ragged(entries, variant, fields, page_size=size)
    problem.check(problem.found(arch, "", unwritten=entries.gap > 0))


def test_many_short_entries():
    """Each block searches among all of them."""
    lengths = tuple(n % 4 for n in range(45))
    problem = ragged(Entries(lengths, lengths[::-1], heads=1), {}, {"head_dim": 16})
    problem.check(problem.found("sm_80", ATOMIC))


# Out of the tensors on either side, decreasing, as far as int32 goes. Entries that overlap are
# written by several blocks, which is wrong of the caller and no fault of an address.
HOSTILE = [
    (-9, 7, 40, 2**31 - 1),
    (30, 20, 10, 0),
    (-(2**31), 2**31 - 1, -1, 50),
    (2**31 - 1, 2**31 - 1, 2**31 - 1, 2**31 - 1),
]
WRONG = {"unwritten": True, "checks": Checks(global_races=False)}


@pytest.mark.parametrize("numbers", HOSTILE, ids=str)
def test_spans_outside_the_tensors_are_clamped(numbers):
    wrong = torch.tensor(numbers, dtype=torch.int32)
    spans = {"starts_q": wrong, "ends_q": wrong.roll(-1), "starts_k": wrong.flip(0)}
    spans |= {"ends_k": wrong.roll(1)}
    problem = ragged(Entries((9, 11, 7, 14), (8, 3, 20, 9)), {"causal": True}, {"head_dim": 16})
    for backward in (ATOMIC, ORDERED):
        saved = problem.call("forward", "sm_80", spans, **WRONG)
        problem.call(backward, "sm_80", {**saved, **spans}, **WRONG)


@pytest.mark.parametrize("numbers", HOSTILE, ids=str)
def test_pages_that_do_not_exist_are_clamped(numbers):
    wrong = torch.tensor(numbers, dtype=torch.int32)
    problem = ragged(MIXED, {}, {"head_dim": 16}, page_size=3)
    table = problem.in_pages()["page_table"]
    spoilt = wrong.repeat(table.numel() // 4 + 1)[: table.numel()].reshape(table.shape)
    problem.call("forward", "sm_80", {"page_table": spoilt})
    spans = {"starts_k": wrong, "ends_k": wrong.flip(0), "page_table": spoilt}
    problem.call("forward", "sm_75", spans)


LISTED = [(100, 130), (0, 20), (64, 0), (1, 70), (150, 33)]


def near(b, h, q_idx, k_idx):
    """Full, partial and hidden blocks, other ones in each entry and in one of the heads."""
    return (q_idx // 37 == k_idx // 41) | ((k_idx + b) % 5 == 0) & (h != 1)


def listed(arch, monkeypatch):
    """``attention`` by interpreted kernels over lists of blocks, which ``mask`` names."""
    monkeypatch.setattr(placement, "has_readable_rows", aligned_rows)
    monkeypatch.setattr(ragged_ops, "resolve", resolver(arch))
    rows, keys = zip(*LISTED, strict=True)
    ends = {"cu_seqlens_q": cumulative(rows), "cu_seqlens_k": cumulative(keys)}
    mask = block_mask(near, len(rows), 4, rows, keys, (128, 64))
    return partial(attention, return_lse=True, **ends), mask


@pytest.mark.parametrize(
    ("arch", "causal", "deterministic"),
    [
        ("sm_75", True, True),
        *(pytest.param("sm_80", causal, False, marks=pytest.mark.sweep) for causal in (0, 1)),
        pytest.param("sm_90", False, True, marks=pytest.mark.sweep),
    ],
)
def test_listed_blocks_of_packed_sequences(arch, causal, deterministic, monkeypatch):
    ours, mask = listed(arch, monkeypatch)
    inputs = packed_inputs(LISTED, torch.float16, mask_mod=near, causal=bool(causal))

    def attend(q, k, v, mask_mod, **options):
        return ours(q, k, v, block_mask=mask, deterministic=deterministic, **options)

    assert_rule(attend, inputs, LISTED)


def test_sequences_longer_than_their_lists_read_nothing_outside(monkeypatch):
    """Lengths on a GPU are not compared with the mask's."""
    ours, _ = listed("sm_75", monkeypatch)
    short = block_mask(near, 5, 4, [20] * 5, [20] * 5, (128, 64))
    monkeypatch.setattr(blocks, "_check_lengths", lambda *given: None)
    leaves = [x.requires_grad_() for x in packed_inputs(LISTED, torch.float16)[:3]]
    out, _ = ours(*leaves, block_mask=short, causal=True, deterministic=True)
    torch.autograd.grad(out.sum(), leaves)


@pytest.mark.parametrize("backward", [ATOMIC, ORDERED])
def test_values_that_are_not_finite_stay_in_their_entry(backward):
    """Sums of dQ of rows past the end of an entry are the next one's."""
    clean, spoilt = (ragged(MIXED, {}, {"head_dim": 16}) for _ in range(2))
    keys = MIXED.slices("k")[0]
    spoilt.inputs["v"][keys] = torch.inf
    want, got = (problem.found("sm_80", backward) for problem in (clean, spoilt))
    for name, of in {"out": "q", "dq": "q", "dk": "k", "dv": "k"}.items():
        for rows in MIXED.slices(of)[1:]:
            assert torch.equal(got[name][rows], want[name][rows]), name
    assert not got["out"][MIXED.slices("q")[0]].isfinite().all()


def test_gradients_in_order_have_the_same_bits_in_any_order_of_blocks():
    problem = ragged(GAPS, {"causal": True}, {"head_dim": 32})
    one, other = (problem.found("sm_80", ORDERED, unwritten=True, seed=s) for s in (1, 2))
    for name in "qkv":
        assert torch.equal(one[f"d{name}"].nan_to_num(), other[f"d{name}"].nan_to_num())


def test_blocks_go_with_rows_and_entries():
    """Not with entries times the longest: nothing is read back to make the grid."""
    sizes = {"B": 100_000, "H": 2, "Hk": 1, "total_q": 6_400_000, "total_k": 640_000}
    assert query_work(sizes, 128).count == 2 * (50_000 + 100_000)
    assert key_work(sizes, 64).count == 10_000 + 100_000
    assert query_work({**sizes, "B": 0}, 128).count == 0
    assert query_work(named_sizes((2, 3, 1, 129, 5)), 128).count == 2 * 3 * 2


@pytest.mark.parametrize(("arch", "deterministic"), [("sm_80", False), ("sm_75", True)])
def test_operators(arch, deterministic, monkeypatch):
    """From cumulative lengths to gradients."""
    monkeypatch.setattr(placement, "has_readable_rows", aligned_rows)
    monkeypatch.setattr(ragged_ops, "resolve", resolver(arch))
    problem = ragged(MIXED, {"causal": True}, {"head_dim": 16})
    bounds = {
        f"cu_seqlens_{x}": cumulative(lengths)
        for x, lengths in (("q", MIXED.rows), ("k", MIXED.keys))
    }
    longest = {"max_seqlen_q": 70, "max_seqlen_k": 64}
    leaves = [problem.inputs[name].requires_grad_() for name in "qkv"]
    options = {"causal": True, "return_lse": True, "deterministic": deterministic}
    out, lse = attention(*leaves, **bounds, **longest, **options)
    upstream = [problem.inputs[name] for name in ("dout", "dlse")]
    dq, dk, dv = torch.autograd.grad((out, lse), leaves, upstream)
    problem.check({"out": out.detach(), "lse": lse.detach(), "dq": dq, "dk": dk, "dv": dv})
