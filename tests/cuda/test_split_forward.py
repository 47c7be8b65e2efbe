"""Keys divided into parts on interpreted GPU kernels: states of parts, and their merge."""

from __future__ import annotations

import pytest
import torch
from entries import Ragged
from packed_problems import Entries

SPLIT = "forward_split"


def steeper(score, b, h, q_idx, k_idx):
    """Depends on the entry, the head and on positions inside the entry."""
    return score * 0.5 + b * 0.3 + h * 0.2 + (q_idx - k_idx) * 0.01


def odd_keys(b, h, q_idx, k_idx):
    return (k_idx + b + h) % 2 == 0


def slopes(entries: int, heads: int):
    return torch.linspace(0.05, 0.4, entries * heads).reshape(entries, heads)


# One query in each entry; a few; rows of a group around tiles of 64; entries without either.
DECODE = Entries((1, 1, 1, 1), (200, 0, 64, 7), heads=8)
CHUNK = Entries((33, 0, 5), (300, 70, 2), heads=3)
PAIRS = Entries((9, 70), (130, 65), heads=4, kv_heads=2, gap=3)
MANY = Entries((1, 4, 0, 2), (257, 31, 9, 128), heads=16)
EMPTY = Entries((0, 2), (0, 0), heads=2)
# arch, entries, page size (0: packed), parts, variant, fields: pairs of these meet, not all.
CASES = {
    "decode": ("sm_80", DECODE, 16, 3, {"causal": True}, {"head_dim": 64}),
    "decode, one part": ("sm_80", DECODE, 0, 1, {}, {"head_dim": 128}),
    "chunk": ("sm_80", CHUNK, 7, 4, {"causal": True}, {"head_dim": 32, "dtype": "bfloat16"}),
    "window": ("sm_75", CHUNK, 0, 5, {"window_size": (40, 3)}, {"head_dim": 40}),
    "window, capped": (
        "sm_120", MANY, 64, 2, {"window_size": (20, 0), "softcap": 2.0}, {"head_dim": 16},
    ),
    "alibi": (
        "sm_80", MANY, 0, 3, {"alibi_slopes": slopes(4, 16), "causal": True}, {"head_dim": 24},
    ),
    "alibi, pages": ("sm_75", PAIRS, 5, 2, {"alibi_slopes": slopes(2, 4)}, {"head_dim": 64}),
    "score_mod": (
        "sm_80", PAIRS, 0, 4, {"score_mod": steeper}, {"head_dim": 15, "head_dim_v": 48},
    ),
    "score_mod, pages": ("sm_120", CHUNK, 3, 2, {"score_mod": steeper}, {"head_dim": 128}),
    "mask_mod": ("sm_120", MANY, 0, 4, {"mask_mod": odd_keys}, {"head_dim": 16}),
    "capped, heads apart": ("sm_80", PAIRS, 64, 3, {"softcap": 2.0}, {"head_dim": 40}),
    "top left": (
        "sm_80", CHUNK, 0, 3, {"causal": True, "alignment": "top_left"}, {"head_dim": 16},
    ),
    "float32": ("sm_80", PAIRS, 0, 3, {"causal": True}, {"head_dim": 24, "dtype": "float32"}),
    "wide": ("sm_80", DECODE, 0, 2, {}, {"head_dim": 256, "dtype": "bfloat16"}),
    "more parts than tiles": ("sm_75", DECODE, 0, 9, {}, {"head_dim": 16}),
    "no keys": ("sm_80", EMPTY, 0, 3, {"causal": True}, {"head_dim": 16}),
    "no entries": ("sm_80", Entries((), ()), 0, 3, {}, {"head_dim": 16}),
}  # fmt: skip


def problem_of(entries, page_size, variant, fields) -> Ragged:
    return Ragged(entries, variant, page_size=page_size, **{"dtype": "float16", **fields})


@pytest.mark.parametrize("name", CASES)
def test_parts(name):
    arch, entries, page_size, splits, variant, fields = CASES[name]
    problem = problem_of(entries, page_size, variant, fields)
    problem.check(problem.call(SPLIT, arch, {"splits": splits}, unwritten=entries.gap > 0))
