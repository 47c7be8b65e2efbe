"""The main loops that docs/cuda.md lists are those of the kernels that a build makes."""

from __future__ import annotations

import json

import pytest
from main_loops import ARCH, RESULTS, ours
from tools import needs

from tvm_flash.codegen.build import build
from tvm_flash.codegen.toolkit import find_nvdisasm, find_toolkit
from tvm_flash.problem.spec import AttentionSpec

ROWS = json.loads(RESULTS.read_text(encoding="utf-8"))["now"]["rows"]
# What ptxas keeps in registers decides which of the default configs a build takes.
CUDA = "13.0"
SPECS = [
    pytest.param(head_dim, causal, marks=[pytest.mark.sweep] if head_dim > 64 else [])
    for head_dim, causal in sorted({(row["head_dim"], row["causal"]) for row in ROWS})
]


@needs(find_nvdisasm, find_toolkit)
@pytest.mark.slow
@pytest.mark.parametrize(("head_dim", "causal"), SPECS)
def test_a_build_makes_the_kernels_of_the_table(head_dim, causal, tmp_path):
    if not find_toolkit().version.startswith(CUDA):
        pytest.skip(f"the table is of CUDA {CUDA}")
    spec = AttentionSpec(dtype="bfloat16", head_dim=head_dim, causal=causal)
    path = build([spec], f"cuda:{ARCH.name}", tmp_path / "kernels")
    listed = [row for row in ROWS if (row["head_dim"], row["causal"]) == (head_dim, causal)]
    found = {kernel.direction: (kernel.tile, kernel.warps, kernel.blocks) for kernel in ours(path)}
    assert found == {row["direction"]: (row["tile"], row["warps"], row["blocks"]) for row in listed}
