"""Presets: what is in them, how they are named, printed, combined and built."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tvm_flash.cli.app import app
from tvm_flash.cli.spec_options import grouped, listing
from tvm_flash.cli.spec_text import parse_spec, parse_specs
from tvm_flash.codegen.build import build
from tvm_flash.problem import presets
from tvm_flash.problem.presets import PRESETS, Preset, Use, all_pairs
from tvm_flash.problem.spec import ALIGNMENTS, RETURNS, AttentionSpec
from tvm_flash.problem.text import text_of
from tvm_flash.schedules import select
from tvm_flash.schedules.cuda.arch import ARCHS, DEFAULT_ARCHS
from tvm_flash.schedules.cuda.kernels import SCHEDULES
from tvm_flash.schedules.target import host_target

EVERY = ("forward", "backward", "backward_deterministic")
SERVING = {"forward", "forward_split"}


def test_no_kernel_is_listed_twice():
    for preset in PRESETS.values():
        assert len(set(preset.specs)) == len(preset.specs)
        assert all(use.why for use in preset.uses)
    training = {spec for spec, _ in PRESETS["training"].pairs(("forward",))}
    assert training < set(PRESETS["serving"].specs), "what was trained can be served"


def test_directions():
    serving = PRESETS["serving"].pairs(EVERY)
    assert {d for _, d in serving} == {*SERVING, "append"}
    assert {d for _, d in PRESETS["serving"].pairs(("forward",))} == {*SERVING, "append"}
    assert not PRESETS["serving"].pairs(("backward",))
    assert {spec.append_spec for spec in PRESETS["serving"].specs if spec.sequences == "paged"} == {
        spec for spec, d in serving if d == "append"
    }, "who loads it can append to every cache that it attends to"
    assert {d for _, d in PRESETS["training"].pairs(EVERY)} == set(EVERY)
    assert {d for _, d in PRESETS["training"].pairs(("forward",))} == {"forward"}


def test_with_specs_and_with_one_another():
    spec = PRESETS["training"].specs[0]
    other = AttentionSpec(dtype="float32", head_dim=16)
    pairs = all_pairs([other, spec], ["serving"], EVERY[:2])
    assert pairs[:2] == [(other, "forward"), (other, "backward")] and len(set(pairs)) == len(pairs)
    assert (spec, "backward") in pairs and (PRESETS["serving"].specs[-1], "backward") not in pairs
    both = all_pairs([], list(PRESETS), EVERY[:2])
    assert set(both) == {p for preset in PRESETS.values() for p in preset.pairs(EVERY[:2])}
    groups = grouped([other], ["serving"], EVERY[:2])
    assert groups == [([other], EVERY[:2]), (list(PRESETS["serving"].specs), ("forward",))]


def test_what_goes_back_through_linear_attention():
    """dQ and dK are linear attention of other dimensions; dV is of the spec itself."""
    known = {"dtype": "float16", "causal": True, "computes": "linear"}
    spec = AttentionSpec(head_dim=16, head_dim_v=24, **known)
    other = AttentionSpec(head_dim=24, head_dim_v=16, **known)
    assert all_pairs([spec], [], EVERY[:1]) == [(spec, "linear")]
    assert all_pairs([spec], [], EVERY[:2]) == [(spec, "linear"), (other, "linear")]


def test_keys_are_divided_where_queries_may_be_few():
    divided = {spec for spec, direction in all_pairs([], ["serving"], ("forward",))
               if direction == "forward_split"}  # fmt: skip
    assert divided == {s for s in PRESETS["serving"].specs if s.sequences != "packed"}


def test_a_preset_that_there_is_not(tmp_path):
    with pytest.raises(ValueError, match="preset 'cooking' must be one of training, serving"):
        build(presets=["cooking"], path=tmp_path / "kernels")


@pytest.mark.parametrize("name", PRESETS)
def test_every_target_has_schedules_for_it(name):
    for spec, direction in PRESETS[name].pairs(EVERY):
        for arch in DEFAULT_ARCHS:
            default = SCHEDULES.defaults(spec, direction, ARCHS[arch])[0]
            assert not default.reasons(spec, ARCHS[arch])
        if direction != "backward_deterministic":
            assert not select.choose(spec, direction, host_target()).config.reasons(spec)


def test_a_list_is_a_file_of_specs(tmp_path):
    for name, preset in PRESETS.items():
        done = CliRunner().invoke(app, ["build", "--preset", name, "--list"])
        (tmp_path / "specs.txt").write_text(done.stdout)
        assert tuple(parse_specs(str(tmp_path / "specs.txt"))) == preset.specs
        assert all(f"# {use.why}" in done.stdout for use in preset.uses)
    assert listing(None) == [line for name in PRESETS for line in listing([name])]


def test_a_list_of_what_is_no_preset_is_refused():
    words = ["build", "bf16,d=64", "--list", "--target", "cuda", "--preset", "serving"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and not done.stdout
    assert "--list reads no SPEC, --target" in done.stderr


@given(
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    widths=st.tuples(st.integers(8, 512), st.integers(8, 512)),
    flags=st.fixed_dictionaries(
        dict.fromkeys(("causal", "window_left", "window_right", "softcap", "alibi"), st.booleans())
    ),
    alignment=st.sampled_from(ALIGNMENTS),
    returns=st.sampled_from(RETURNS),
)
def test_text_is_read_back(dtype, widths, flags, alignment, returns):
    head_dim, head_dim_v = widths
    known = {"dtype": dtype, "head_dim": head_dim, "head_dim_v": head_dim_v}
    spec = AttentionSpec(**known, **flags, alignment=alignment, returns=returns)
    assert parse_spec(text_of(spec)) == spec


def test_a_build_of_both(tmp_path, monkeypatch):
    small = Preset("small", ("forward",), (Use({"causal": True}, (16,), "a test"),))
    monkeypatch.setitem(presets.PRESETS, "small", small)
    words = ["build", "bf16,d=16,causal", "--preset", "small", "--buckets", "long", "--json"]
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "kernels")])
    assert done.exit_code == 0, done.output
    found = {(k["spec"]["dtype"], k["direction"]) for k in json.loads(done.stdout)["kernels"]}
    assert found == {("bfloat16", "forward"), ("bfloat16", "backward"), ("float16", "forward")}
