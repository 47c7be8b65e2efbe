"""The weights that interpreted GPU kernels drop: bit for bit those of CPUs and the reference."""

import pytest
import torch
from dropout_bits import assert_same, expected, found
from interpreted import aligned_rows, resolver

from tvm_flash.errors import UnsupportedSpec
from tvm_flash.frontend import ops, placement
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.select import cuda_programs

SPEC = AttentionSpec(dtype="float16", head_dim=64, dropout=True)


@pytest.mark.parametrize(
    ("arch", "dtype", "deterministic"),
    [
        ("sm_80", torch.float16, True),
        pytest.param("sm_80", torch.bfloat16, False, marks=pytest.mark.sweep),
        pytest.param("sm_75", torch.float16, False, marks=pytest.mark.sweep),
        pytest.param("sm_75", torch.float16, True, marks=pytest.mark.sweep),
        pytest.param("sm_90", torch.bfloat16, False, marks=pytest.mark.sweep),
        pytest.param("sm_80", torch.float32, False, marks=pytest.mark.sweep),
    ],
)
def test_bits(arch, dtype, deterministic, monkeypatch):
    monkeypatch.setattr(placement, "has_readable_rows", aligned_rows)
    monkeypatch.setattr(ops, "resolve", resolver(arch))
    assert_same(found(dtype, deterministic=deterministic), expected())


def test_keys_in_parts_are_refused():
    with pytest.raises(UnsupportedSpec, match="dropout is of training"):
        cuda_programs(SPEC, "forward_split", (ARCHS["sm_80"],))
