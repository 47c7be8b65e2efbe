"""Keys divided into parts on interpreted GPU kernels: states of parts, and their merge."""

from __future__ import annotations

import pytest
import torch
from entries import Ragged
from packed_problems import Entries

from tvm_flash.codegen.cuda import ptx_of
from tvm_flash.problem.arguments import arguments, size_values
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.ptx_interpreter import Report
from tvm_flash.runtime.call import completed, new_tensors
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.entries import group_work
from tvm_flash.schedules.cuda.select import cuda_programs
from tvm_flash.schedules.cuda.split_forward import SplitForwardConfig
from tvm_flash.verify.plan import run_program

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
NONE = Entries((), ())
CAUSAL = {"causal": True}
# arch, entries, page size (0: packed), parts, variant, fields: pairs of these meet, not all.
CASES = {
    "decode": ("sm_80", DECODE, 16, 3, CAUSAL, {"head_dim": 64}),
    "more parts than tiles": ("sm_80", PAIRS, 16, 9, CAUSAL, {"head_dim": 64}),
    "no keys": ("sm_80", EMPTY, 16, 3, CAUSAL, {"head_dim": 64}),
    "no entries": ("sm_80", NONE, 16, 3, CAUSAL, {"head_dim": 64}),
    "window": ("sm_75", CHUNK, 0, 5, {"window_size": (40, 3)}, {"head_dim": 40}),
    "capped, pages": ("sm_120", MANY, 64, 2, {"softcap": 2.0}, {"head_dim": 16}),
    "alibi": (
        "sm_80", MANY, 0, 3, {"alibi_slopes": slopes(4, 16), **CAUSAL}, {"head_dim": 24},
    ),
    "score_mod": (
        "sm_80", PAIRS, 0, 4, {"score_mod": steeper}, {"head_dim": 15, "head_dim_v": 48},
    ),
    "float32": ("sm_80", PAIRS, 0, 3, CAUSAL, {"head_dim": 16, "dtype": "float32"}),
}  # fmt: skip
MORE = {
    "one part": ("sm_80", DECODE, 0, 1, {}, {"head_dim": 128, "dtype": "bfloat16"}),
    "chunk": ("sm_80", CHUNK, 7, 4, CAUSAL, {"head_dim": 32, "dtype": "bfloat16"}),
    "window, capped": (
        "sm_120", MANY, 64, 2, {"window_size": (20, 0), "softcap": 2.0}, {"head_dim": 16},
    ),
    "alibi, pages": ("sm_75", PAIRS, 5, 2, {"alibi_slopes": slopes(2, 4)}, {"head_dim": 64}),
    "score_mod, pages": ("sm_120", CHUNK, 3, 2, {"score_mod": steeper}, {"head_dim": 128}),
    "mask_mod": ("sm_120", MANY, 0, 4, {"mask_mod": odd_keys}, {"head_dim": 16}),
    "mask_mod, window, pages": (
        "sm_80", CHUNK, 9, 4, {"mask_mod": odd_keys, "window_size": (90, -1)}, {"head_dim": 40},
    ),
    "capped, alibi": (
        "sm_75", PAIRS, 0, 3, {"softcap": 2.0, "alibi_slopes": slopes(2, 4)}, {"head_dim": 40},
    ),
    "top left": ("sm_80", CHUNK, 0, 3, {**CAUSAL, "alignment": "top_left"}, {"head_dim": 16}),
    "wide": ("sm_80", DECODE, 0, 2, {}, {"head_dim": 256, "dtype": "bfloat16"}),
    "wide, small memory": ("sm_120", DECODE, 48, 2, CAUSAL, {"head_dim": 192, "head_dim_v": 128}),
    "wide float32": ("sm_80", CHUNK, 4, 2, {}, {"head_dim": 128, "dtype": "float32"}),
}  # fmt: skip


def run(arch, entries, page_size, splits, variant, fields) -> None:
    """Hold a call to the error rule."""
    fields = {"dtype": "float16", **fields}
    problem = Ragged(entries, variant, page_size=page_size, **fields)
    problem.check(problem.call(SPLIT, arch, {"splits": splits}, unwritten=entries.gap > 0))


@pytest.mark.parametrize("name", CASES)
def test_parts(name):
    run(*CASES[name])


@pytest.mark.sweep
@pytest.mark.parametrize("name", MORE)
def test_more_parts(name):
    run(*MORE[name])


# Whatever a length leaves of a tile of 64 rows of a group, of one of 64 keys, and of equal parts.
ROWS = (1, 2, 3, 5, 8, 11, 16, 17, 22, 1, 1)
KEYS = (1, 63, 64, 65, 127, 128, 200, 257, 31, 400, 0)


@pytest.mark.parametrize("splits", [1, 3])
def test_residues(splits):
    run("sm_80", Entries(ROWS, KEYS, heads=3), 0, splits, CAUSAL, {"head_dim": 16})


@pytest.mark.sweep
@pytest.mark.parametrize("heads", [1, 8, 16])
@pytest.mark.parametrize("splits", [2, 4, 5, 7])
@pytest.mark.parametrize("variant", [CAUSAL, {"window_size": (70, 5)}], ids=["causal", "window"])
def test_residues_of_groups(heads, splits, variant):
    run("sm_80", Entries(ROWS, KEYS, heads=heads), 0, splits, variant, {"head_dim": 16})


def test_blocks_go_with_rows_entries_and_parts():
    sizes = {"B": 100, "H": 32, "Hk": 8, "total_q": 100, "total_k": 10_000}
    assert group_work(sizes, 64).count == 8 * (100 * 4 // 64 + 100)
    assert group_work(sizes, 64, 5).count == 5 * 8 * (100 * 4 // 64 + 100)
    assert group_work({"B": 2, "H": 6, "Hk": 2, "Sq": 43}, 64, 3).count == 3 * 2 * 2 * 3


def counted(direction: str, keys: int, splits: int = 1) -> Report:
    """Counts of the first launch: one query, four heads that share their keys, tiles of 64."""
    spec, sizes = AttentionSpec(dtype="float16", head_dim=64), (1, 4, 1, 1, keys)
    config = SplitForwardConfig(64, 64).to_json()
    config |= {} if direction == SPLIT else {"schedule": "cuda.forward"}
    ((_, program),) = cuda_programs(spec, direction, (ARCHS["sm_80"],), config)
    q, k, v = (torch.randn(1, n, heads, 64).half() for n, heads in ((1, 4), (keys, 1), (keys, 1)))
    given = {"q": q, "k": k, "v": v, "softmax_scale": 0.125}
    values = {**size_values(spec, sizes, program.meta), "splits": splits}
    call = completed(arguments(spec, direction), given, new_tensors(values))
    return run_program(program, ptx_of(program), call)[0]


def test_keys_are_read_once_for_a_group_and_cost_no_more_than_undivided():
    plain, longer = (counted("forward", keys) for keys in (384, 768))
    found, more = (counted(SPLIT, keys, splits=3) for keys in (384, 768))
    read = 768 * 64 * 2
    for name in "kv":
        assert more.bytes_read[name] == read and longer.bytes_read[name] == 4 * read
    own, other = (
        y.instructions.total() - x.instructions.total() for x, y in ((found, more), (plain, longer))
    )
    assert own <= 1.1 * other / 4, "four blocks of the plain forward do what one does"
    assert more.total_bank_conflicts == found.total_bank_conflicts == 0
