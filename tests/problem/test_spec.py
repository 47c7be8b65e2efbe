"""AttentionSpec: what it accepts, what it calls equal, its name and its JSON."""

import dataclasses
import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tvm_flash.cases import CASES
from tvm_flash.problem.dtype import DTYPES
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.score.program import TableType

specs = st.builds(
    AttentionSpec,
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    head_dim=st.integers(8, 512),
    head_dim_v=st.none() | st.integers(8, 512),
    causal=st.booleans(),
    window_left=st.booleans(),
    window_right=st.booleans(),
    softcap=st.booleans(),
    alibi=st.booleans(),
    dropout=st.booleans(),
    alignment=st.sampled_from(["bottom_right", "top_left"]),
    returns=st.sampled_from(["out_lse", "out"]),
)


@given(specs, specs)
def test_names_are_identifiers_and_differ_when_specs_do(a, b):
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", a.name)
    assert (a.name == b.name) == (a == b)


@given(specs)
def test_json_gives_the_spec_back(spec):
    again = AttentionSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec and hash(again) == hash(spec) and again.name == spec.name


def test_names_are_readable():
    assert AttentionSpec(dtype="bfloat16", head_dim=64).name == "attn_bf16_d64"
    both = {"window_left": True, "window_right": True}
    spec = AttentionSpec(
        dtype="float32", head_dim=64, head_dim_v=80, **both, softcap=True, alibi=True
    )
    assert spec.name == "attn_f32_d64v80_window_softcap_alibi"
    spec = AttentionSpec(dtype="float16", head_dim=8, causal=True, softcap=True, returns="out")
    assert spec.name == "attn_f16_d8_causal_softcap_nolse"
    assert dataclasses.replace(spec, **both).name == "attn_f16_d8_causal_window_softcap_nolse"
    for side in ("left", "right"):
        spec = AttentionSpec(dtype="float16", head_dim=8, **{f"window_{side}": True})
        assert spec.name == f"attn_f16_d8_window{side}"


def test_equal_masks_are_equal_specs():
    causal = AttentionSpec(dtype="float32", head_dim=64, causal=True)
    assert AttentionSpec(dtype="float32", head_dim=64, causal=True, window_right=True) == causal
    numbers = {"window_left": 5, "window_right": 9}
    assert causal.window(numbers) == (None, 0)
    assert dataclasses.replace(causal, window_left=True).window(numbers) == (5, 0)
    assert dataclasses.replace(causal, causal=False, window_right=True).window(numbers) == (None, 9)
    assert AttentionSpec(dtype="float32", head_dim=64, head_dim_v=64) == AttentionSpec(
        dtype="float32", head_dim=64
    )
    assert AttentionSpec(dtype=torch.float32, head_dim=64) == AttentionSpec(
        dtype="float32", head_dim=64
    )


def test_rows_of_a_softmax_have_one_spec():
    """Else kernels would be built that no call asks for."""
    one = AttentionSpec(dtype="float32", head_dim=8, computes="softmax")
    assert AttentionSpec(dtype="float32", head_dim=64, head_dim_v=32, computes="softmax") == one


def test_a_spec_is_frozen_and_hashable():
    spec = AttentionSpec(dtype="float32", head_dim=64)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.head_dim = 32
    assert {spec: 1}[AttentionSpec(dtype="float32", head_dim=64)] == 1


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"dtype": "float64"}, ValueError, "'float64' must be one of float32"),
        ({"head_dim": 7}, ValueError, "head_dim=7 must lie in 8..512"),
        ({"head_dim": 513}, ValueError, "513"),
        ({"head_dim": 64.0}, TypeError, "head_dim=64.0"),
        ({"head_dim_v": 4}, ValueError, "head_dim_v=4"),
        ({"window_left": 128}, TypeError, "window_left=128 .* number itself is given in a call"),
        ({"window_right": None}, TypeError, "window_right=None"),
        ({"softcap": 30.0}, TypeError, "softcap=30.0 .* number itself is given in a call"),
        ({"alignment": "middle"}, ValueError, "bottom_right, top_left"),
        ({"returns": "lse"}, ValueError, "out_lse, out"),
        ({"causal": "yes"}, TypeError, "causal='yes'"),
        ({"alibi": torch.ones(2)}, TypeError, "alibi"),
        ({"score_mod": lambda s, b, h, q, k: s}, TypeError, "AttentionSpec.capture"),
    ],
)
def test_errors_name_the_value_and_the_limit(fields, error, words):
    with pytest.raises(error, match=words):
        AttentionSpec(**{"dtype": "float32", "head_dim": 64, **fields})


def test_programs_of_the_wrong_kind():
    spec, _ = AttentionSpec.capture(
        dtype="float32", head_dim=64, mask_mod=lambda b, h, q, k: q >= k
    )
    with pytest.raises(ValueError, match="score_mod is a mask program"):
        AttentionSpec(dtype="float32", head_dim=64, score_mod=spec.mask_mod)


def test_capture_orders_the_tables():
    bias, ids = torch.randn(9), torch.zeros(2, 9, dtype=torch.int64)
    spec, tables = AttentionSpec.capture(
        dtype="float32", head_dim=64, alibi=True,
        score_mod=lambda s, b, h, q, k: s + bias[q],
        mask_mod=lambda b, h, q, k: ids[b, q] == ids[b, k],
    )  # fmt: skip
    assert spec.table_types == (
        TableType("float32", 2), TableType("float32", 1), TableType("int64", 2),
    )  # fmt: skip
    assert tables[0].data_ptr() == bias.data_ptr() and tables[1].data_ptr() == ids.data_ptr()


def test_capture_without_functions():
    assert AttentionSpec.capture(dtype="float32", head_dim=64, causal=True) == (
        AttentionSpec(dtype="float32", head_dim=64, causal=True), [],
    )  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99}, {"version": 99}, {"hexagonal": True}, {"head_dim": "64"},
        {"score_mod": {"instructions": []}}, {"score_mod": 3}, {"window_size": 5},
        {"softcap": 30.0}, {"window_left": 5}, {"version": 2.0}, {"version": True},
    ],
)  # fmt: skip
def test_json_that_is_not_a_spec(change):
    data = {**AttentionSpec(dtype="float32", head_dim=64).to_json(), **change}
    with pytest.raises((ValueError, TypeError)):
        AttentionSpec.from_json(data)


def test_json_of_version_1_is_read_where_it_has_no_numbers():
    def old(window, softcap=0.0, causal=False):
        fields = {"causal": causal, "window_size": window, "softcap": softcap}
        return {"version": 1, "dtype": "float32", "head_dim": 64, **fields}

    plain = AttentionSpec(dtype="float32", head_dim=64)
    assert AttentionSpec.from_json(old([-1, -1])) == plain
    causal = dataclasses.replace(plain, causal=True)
    for also in (True, False):  # the two said the same
        assert AttentionSpec.from_json(old([-1, 0], causal=also)) == causal
    for numbers in (([128, 0],), ([-1, 5],), ([-1, -1], 30.0), (5,), ([-1, -1], "30")):
        with pytest.raises(ValueError, match=r"numbers of a call now.*version 2"):
            AttentionSpec.from_json(old(*numbers))


def test_json_of_another_layout_is_refused():
    """The one layout stands in the JSON of a spec, and nowhere else."""
    data = AttentionSpec(dtype="float32", head_dim=64).to_json()
    assert data["layout"] == "strided"
    with pytest.raises(ValueError, match="strided"):
        AttentionSpec.from_json({**data, "layout": "tiled"})


def test_numbers_of_tables_have_one_form():
    spec = AttentionSpec(dtype="float32", head_dim=64, alibi=True, learned=(0, 0))
    assert spec == dataclasses.replace(spec, learned=[0]) and spec.learned == (0,)
    for numbers in (5, "0", [[0]], (0.0,)):
        with pytest.raises(TypeError, match=r"learned=.* must be numbers of tables"):
            dataclasses.replace(spec, learned=numbers)


def test_fields_are_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        AttentionSpec("float32", 64)


def test_rows_of_dtypes_say_what_torch_says():
    for name, row in DTYPES.items():
        spec = AttentionSpec(dtype=row.torch, head_dim=64)
        assert spec.element is row and spec.dtype == name and row.short in spec.name
        assert row.bytes == row.torch.itemsize and row.torch.is_floating_point


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_listed_case_has_a_spec(case):
    spec = case.spec
    assert spec == AttentionSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert spec is case.spec and spec.head_dim == case.head_dim
