"""What is said of a kernel that is not there: its words, what is loaded, what makes it."""

from __future__ import annotations

import re
import shlex

import pytest

from tvm_flash.artifact.manifest import DIRECTIONS
from tvm_flash.cases import CASES
from tvm_flash.cli.build_options import directions_of
from tvm_flash.cli.spec_text import parse_specs
from tvm_flash.problem.arguments import direction_reasons
from tvm_flash.problem.presets import all_pairs
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.problem.text import text_of
from tvm_flash.runtime.loader import load, registered
from tvm_flash.runtime.missing import build_command, missing_kernel

LEARNING = AttentionSpec(dtype="float32", head_dim=64, alibi=True).learning()
SPECS = {
    text_of(spec): spec
    for spec in (
        *(case.spec for case in CASES if not (case.spec.score_mod or case.spec.mask_mod)),
        AttentionSpec(dtype="bfloat16", head_dim=64, causal=True, sequences="paged"),
        AttentionSpec(dtype="bfloat16", head_dim=64, sequences="paged").append_spec,
        AttentionSpec(dtype="float16", head_dim=64, block_mask=(64, 128)),
        LEARNING,
        AttentionSpec(dtype="bfloat16", head_dim=64, head_dim_v=32, computes="linear"),
        AttentionSpec(dtype="bfloat16", head_dim=8, computes="softmax"),
    )
}


def pairs(command: str) -> list[tuple[AttentionSpec, str]]:
    """What `tvm-flash build` makes of a command line with a spec and --directions."""
    words = shlex.split(command)
    assert words[:2] == ["tvm-flash", "build"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    asked = directions_of(options.get("--directions"), False, False, False)
    return all_pairs(parse_specs(words[2]), [], asked)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_command_builds_the_kernel(direction):
    served = [
        spec for spec in SPECS.values()
        if not direction_reasons(spec, direction)
        and bool(spec.learned) == direction.startswith("tables")
        and (direction != "append" or spec == spec.append_spec)
    ]  # fmt: skip
    assert served
    for spec in served:
        assert (spec, direction) in pairs(build_command(spec, direction)), spec.name


def test_functions_are_the_callers():
    spec = next(case.spec for case in CASES if case.spec.score_mod)
    said = str(missing_kernel(spec, "forward", "cuda", "no TVM"))
    assert "score_mod=FILE.py:FUNCTION" in said and "with your FILE.py:FUNCTION" in said
    assert "--target cuda -o kernels`" in said


def test_what_is_loaded_is_named(toy_artifact, monkeypatch):
    before = dict(registered)
    registered.clear()
    said = str(missing_kernel(LEARNING, "tables", "cpu", "no TVM"))
    assert "tables of fp32,d=64,alibi,learned (attn_f32_d64_alibi_grad_0) for CPUs" in said
    assert "; loaded: none; no TVM; or build it elsewhere" in said
    load(toy_artifact)
    said = str(missing_kernel(LEARNING, "tables", "cpu", "no TVM"))
    assert re.search(r"loaded: fp32,d=64 \(backward, forward\), fp32,d=65 \(forward\), ", said)
    assert "loaded: none" in str(missing_kernel(LEARNING, "tables", "cuda", "no TVM"))
    registered.clear()
    registered.update(before)
