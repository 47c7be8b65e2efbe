"""The table of a kernel's arguments, and what is made of it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tvm_flash.frontend.ops  # noqa: F401  registers the operators
from tvm_flash.frontend.schemas import schema
from tvm_flash.problem.arguments import (
    NUMBERS,
    ROLES,
    TABLE,
    Argument,
    Up,
    arguments,
    missing_sizes,
    names,
    numbers_of,
    shape_of,
    size_values,
)
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.runtime.call import completed, new_tensors

SPEC = AttentionSpec(dtype="bfloat16", head_dim=64, head_dim_v=48)
BIASED, _ = AttentionSpec.capture(
    dtype="float32", head_dim=16, score_mod=lambda s, b, h, i, j: s + 1, alibi=True
)
SIZES = (2, 4, 1, 70, 100)  # B, H, Hk, Sq, Sk
META = {"block_q": 32, "block_k": 64, "head_dim_pad": 80}
HEADER = Path(__file__).resolve().parents[2] / "examples" / "cpp" / "tvm_flash.h"


def called(spec, direction):
    return [argument.name for argument in arguments(spec, direction)]


def test_the_order_of_calls():
    assert called(SPEC, "forward") == ["q", "k", "v", "out", "lse", "softmax_scale"]
    out_only = replace(SPEC, returns="out")
    assert called(out_only, "forward") == ["q", "k", "v", "out", "softmax_scale"]
    backward = "q k v out dout lse dlse dq dk dv delta dq_acc softmax_scale".split()
    assert called(SPEC, "backward") == called(out_only, "backward") == backward
    split = "q k v out lse part_out part_m part_l softmax_scale".split()
    assert called(SPEC, "forward_split") == split
    backward.remove("dq_acc")
    assert called(SPEC, "backward_deterministic") == backward


def test_a_score_mod_adds_what_lse_lost_and_tables_stand_before_the_numbers():
    assert called(BIASED, "forward")[4:] == ["lse", "lse_low", "table0", "softmax_scale"]
    assert called(BIASED, "backward")[5:8] == ["lse", "lse_low", "dlse"]
    assert arguments(BIASED, "forward")[-2].shape == ("B", "H")


def test_a_call_has_the_numbers_of_its_spec():
    spec = replace(BIASED, window_left=True, softcap=True)
    assert called(spec, "forward")[-4:] == ["table0", "softmax_scale", "window_left", "softcap"]
    assert called(replace(spec, window_right=True), "backward")[-3:] == [
        "window_left", "window_right", "softcap",
    ]  # fmt: skip
    assert numbers_of(SPEC) == NUMBERS[:1]
    assert {a.name: a.dtype for a in NUMBERS if a.dtype != "float32"} == dict.fromkeys(
        ("window_left", "window_right"), "int32"
    )


def test_shapes():
    values = size_values(SPEC, SIZES, META, threads=4)
    shapes = {a.name: shape_of(a, values) for a in arguments(SPEC, "backward")}
    assert shapes["q"] == shapes["dq"] == (2, 70, 4, 64)
    assert shapes["v"] == shapes["dv"] == (2, 100, 1, 48)
    assert shapes["out"] == (2, 70, 4, 48) and shapes["lse"] == (2, 4, 70)
    assert shapes["dq_acc"] == (2, 2, 4, 96, 80), "two tiles of keys can run at once"
    assert size_values(SPEC, SIZES, META)["copies"] == 1, "on a GPU"
    values = {**size_values(SPEC, SIZES, META), "splits": 3}
    shapes = {a.name: shape_of(a, values) for a in arguments(SPEC, "forward_split")}
    assert shapes["part_out"] == (3, 2, 4, 70, 80)
    assert shapes["part_m"] == shapes["part_l"] == (3, 2, 4, 70)


def test_what_a_tile_must_say():
    assert missing_sizes("forward", {}) == missing_sizes("backward_deterministic", {}) == []
    assert missing_sizes("backward", {"block_k": 64}) == ["block_q", "head_dim_pad"]


def test_a_row_of_the_table_says_all_that_a_row_may():
    for direction, table in TABLE.items():
        assert len({argument.name for argument in table}) == len(table)
        for argument in (*table, *NUMBERS):
            assert argument.role in ROLES, (direction, argument)
            sizes = [str(size) for size in argument.shape]
            assert argument.to_json().get("shape", []) == sizes
            assert not argument.zeroed or argument.role == "workspace"
            assert argument.like in ("", *names(table, "input"))
    assert str(Up("Sq", "block_q")) == "Up(Sq, block_q)"


def test_what_only_the_caller_has_is_not_made():
    given = {name: torch.zeros(1) for name in ("q", "k", "v", "out", "dout")}
    make, table = new_tensors(size_values(SPEC, SIZES, META)), arguments(SPEC, "backward")
    with pytest.raises(ValueError, match="lse is missing"):
        completed(table, given, make)
    given["lse"] = torch.zeros(1)
    with pytest.raises(ValueError, match="softmax_scale is missing"):
        completed(table, given, make)
    call = completed(table, {**given, "softmax_scale": 0.5, "softcap": 2.0}, make)
    assert list(call) == called(SPEC, "backward")
    assert not call["dlse"].any() and not call["dq_acc"].any()
    assert call["dk"].dtype == torch.bfloat16 and call["delta"].dtype == torch.float32


def test_schemas_are_those_of_the_operators():
    for direction in ("forward", "backward"):
        operator = getattr(torch.ops.tvm_flash, f"attention_{direction}").default
        text = schema(f"tvm_flash::attention_{direction}", TABLE[direction])
        assert str(operator._schema) == str(torch._C.parse_schema(text))


def test_a_schema_can_say_that_an_argument_is_appended_to_in_place():
    cache = ("B", "Sk", "Hk", "D")
    table = (
        TABLE["forward"][0],
        Argument("k_cache", cache, "updated"),
        Argument("v_cache", cache, "updated"),
        Argument("seqlens_k", ("B",), "input", "int32", dense=True, optional=True),
        TABLE["forward"][3],
    )
    parsed = torch._C.parse_schema(schema("append", table))
    written = {a.name: a.alias_info for a in parsed.arguments if a.alias_info}
    assert set(written) == {"k_cache", "v_cache"}
    assert all(info.is_write for info in written.values())
    assert parsed.is_mutable
    (optional,) = (a for a in parsed.arguments if a.name == "seqlens_k")
    assert optional.default_value is None and str(optional.type) == "Optional[Tensor]"


def test_the_c_header_names_every_argument_in_order():
    text = HEADER.read_text(encoding="utf-8")

    def enum(name, prefix):
        (body,) = re.findall(rf"enum {name} {{(.*?)}};", text, re.DOTALL)
        found = [entry.split()[0].strip(",") for entry in body.strip().splitlines()]
        return [entry.removeprefix(prefix).lower() for entry in found]

    def expected(direction):
        return [*called(SPEC, direction)[:-1], "scale"]

    forward = enum("tvm_flash_forward", "TVM_FLASH_")
    assert [name.removeprefix("forward_") for name in forward] == expected("forward")
    *backward, ordered = enum("tvm_flash_backward", "TVM_FLASH_BACKWARD_")
    assert backward == expected("backward") and ordered == "tvm_flash_deterministic_scale"
    assert "TVM_FLASH_DETERMINISTIC_SCALE = TVM_FLASH_BACKWARD_DQ_ACC" in text
    assert expected("backward_deterministic").index("scale") == backward.index("dq_acc")
