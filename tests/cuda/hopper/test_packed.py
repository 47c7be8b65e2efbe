"""Packed sequences on the forward for sm_90a: boxes that end in the next entry's rows."""

import pytest
import torch
from entries import Ragged
from interpreted import interpreted
from packed_problems import Entries

from tvm_flash.ptx_interpreter import Checks

ARCH = "sm_90a"
# Lengths around a consumer's 64 rows and tiles of 128, none at all, one entry inside another's box.
MIXED = Entries((33, 0, 200, 1, 64), (45, 9, 130, 0, 300))
# Rows of none between them, which are NaN.
GAPS = Entries((20, 190), (129, 3), heads=4, kv_heads=2, gap=3)
PROBLEMS = {
    "causal": (MIXED, {"causal": True}, {"head_dim": 64, "dtype": "float16"}),
    "full, gaps": (GAPS, {}, {"head_dim": 128, "dtype": "bfloat16"}),
    "window, capped": (
        GAPS, {"window_size": (90, 3), "softcap": 2.0}, {"head_dim": 40, "dtype": "float16"},
    ),
    "widths": (MIXED, {}, {"head_dim": 96, "head_dim_v": 64, "dtype": "bfloat16"}),
    "no rows": (Entries((0, 0), (0, 5)), {}, {"head_dim": 64, "dtype": "float16"}),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[] if x == "full, gaps" else [pytest.mark.sweep]) for x in PROBLEMS],
)
def test_packed(name):
    entries, variant, fields = PROBLEMS[name]
    problem = Ragged(entries, variant, **fields)
    served = interpreted(problem.spec, "forward", ARCH).program
    assert served.config["schedule"] == "cuda.hopper_forward"
    for which, tensors in (("q", "q"), ("k", "kv")):
        for tensor in tensors:
            problem.inputs[tensor][entries.outside(which)] = torch.nan
    problem.check(problem.found(ARCH, "", unwritten=entries.gap > 0, seed=len(name)))


@pytest.mark.sweep
@pytest.mark.parametrize("span", [(-9, 7, 40, 2**31 - 1), (30, 20, 10, 0)], ids=str)
def test_wrong_spans_reach_nothing_outside(span):
    """Wrong results are the caller's; an access outside is an error of the interpreter."""
    problem = Ragged(Entries((70, 64), (70, 90)), {}, head_dim=64, dtype="float16")
    wrong = torch.tensor(span, dtype=torch.int32)
    spans = {name: wrong[n].repeat(2) for n, name in enumerate(problem.entries.spans)}
    checks = Checks(global_races=False)
    problem.call("forward", ARCH, spans, unwritten=True, checks=checks)
