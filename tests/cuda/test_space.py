"""Spaces of GPU configs: the default among them, limits of the architecture, no compiler needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_flash.errors import UnsupportedSpec
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.defaults import BACKWARD, FORWARD
from tvm_flash.schedules.cuda.residence import MOST_REGISTERS, residence_reasons
from tvm_flash.schedules.cuda.space import cuda_space

BF16 = AttentionSpec(dtype="bfloat16", head_dim=128)
DIRECTIONS = ("forward", "backward")


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_86", "sm_90", "sm_120"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("head_dim", [40, 64, 96, 128, 256])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_default_is_a_point_of_its_space(arch, dtype, head_dim, direction):
    try:
        space = cuda_space(AttentionSpec(dtype=dtype, head_dim=head_dim), direction, ARCHS[arch])
    except UnsupportedSpec:
        pytest.skip("no config serves")
    assert space.name == f"cuda.{direction}"
    assert space.point(space.start) in space.points


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_90"])
def test_points_fit_an_sm(direction, arch):
    arch = ARCHS[arch]
    space = cuda_space(BF16, direction, arch)
    assert len(set(space.points)) == len(space.points) > 50
    for config in map(space.config, space.points):
        blocks = max(config.min_blocks, 1)
        assert config.reasons(BF16, arch) == []
        assert blocks * config.shared_bytes(BF16) <= arch.shared_bytes_per_sm
        assert blocks * 32 * config.num_warps * config.registers(BF16) < 64 * 1024
        assert config.registers(BF16) < MOST_REGISTERS


def test_more_shared_memory_makes_a_larger_space():
    sizes = [
        len(cuda_space(BF16, "backward", ARCHS[a]).points) for a in ("sm_86", "sm_80", "sm_90")
    ]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


@pytest.mark.parametrize("arch", ["sm_80", "sm_86"])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_no_config_of_the_tables_is_refused(arch, head_dim):
    spec = AttentionSpec(dtype="float16", head_dim=head_dim)
    for config in (*FORWARD[head_dim], *BACKWARD[head_dim]):
        if not config.reasons(spec, ARCHS[arch]):
            assert residence_reasons(config, spec, ARCHS[arch]) == []


def test_refusals_name_what_there_is_not_enough_of():
    arch = ARCHS["sm_80"]
    start = replace(cuda_space(BF16, "forward", arch).start, stages=1, q_in_registers=False)
    wide = replace(start, block_q=256, block_k=128)
    text = residence_reasons(wide, BF16, arch)[0]
    assert "registers" in text and str(MOST_REGISTERS) in text
    crowded = replace(start, block_q=64, block_k=16, stages=1, num_warps=4, min_blocks=5)
    assert any("registers" in text for text in residence_reasons(crowded, BF16, arch))
    deep = replace(start, block_q=64, block_k=128, stages=2, min_blocks=2)
    assert any("shared memory" in text for text in residence_reasons(deep, BF16, arch))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["float16", "float32"]), st.integers(8, 256), st.sampled_from(DIRECTIONS))
def test_any_head_dim_has_a_space_or_a_reason(dtype, head_dim, direction):
    try:
        space = cuda_space(AttentionSpec(dtype=dtype, head_dim=head_dim), direction, ARCHS["sm_90"])
    except UnsupportedSpec as error:
        assert error.reasons
        return
    assert space.point(space.start) in space
