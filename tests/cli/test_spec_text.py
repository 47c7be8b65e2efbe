"""Specs written on the command line."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tvm_flash.cases import CASES
from tvm_flash.cli.spec_text import SpecTextError, parse_spec, parse_specs
from tvm_flash.problem.sequences import KINDS
from tvm_flash.problem.spec import SOFTMAXES, AttentionSpec
from tvm_flash.problem.text import text_of
from tvm_flash.score.trace import trace_score_mod


def test_every_word():
    assert parse_spec(
        "bf16, d=64, dv=80, window, softcap, alibi, top_left, no_lse"
    ) == AttentionSpec(
        dtype="bfloat16",
        head_dim=64,
        head_dim_v=80,
        window_left=True,
        window_right=True,
        softcap=True,
        alibi=True,
        alignment="top_left",
        returns="out",
    )


@pytest.mark.parametrize("sequences", KINDS)
def test_kinds_of_sequences(sequences):
    spec = AttentionSpec(dtype="float16", head_dim=64, causal=True, sequences=sequences)
    assert parse_spec(text_of(spec)) == spec
    assert (sequences in text_of(spec)) == (sequences != "dense")


def test_tables_that_learn():
    spec = parse_spec("fp32,d=64,alibi,learned")
    assert spec.learned == (0,) and spec.forward_spec == parse_spec("fp32,d=64,alibi")
    assert parse_spec(text_of(spec)) == spec
    with pytest.raises(SpecTextError, match="no table that could learn"):
        parse_spec("fp32,d=64,learned")


def test_blocks_of_a_block_mask():
    spec = parse_spec("bf16,d=64,causal,blocks=64x128")
    assert spec.block_mask == (64, 128) and parse_spec(text_of(spec)) == spec
    for text in ("blocks=64", "blocks=x64", "blocks=64x-1", "blocks=7x64"):
        with pytest.raises(SpecTextError, match="block"):
            parse_spec(f"bf16,d=64,{text}")


def test_some_of_the_tables_learn():
    score_mod, _ = trace_score_mod(lambda s, b, h, i, j: s * torch.ones(4)[h] + torch.ones(9)[j])
    spec = AttentionSpec(dtype="float32", head_dim=64, alibi=True, score_mod=score_mod)
    assert len(spec.differentiable_tables) == 3
    assert text_of(replace(spec, learned=(0, 2))).endswith(",learned=0+2")
    assert text_of(spec.learning()).endswith(",learned")
    assert parse_spec("fp32,d=64,alibi,learned=0") == parse_spec("fp32,d=64,alibi,learned")
    with pytest.raises(SpecTextError, match="learned="):
        parse_spec("fp32,d=64,alibi,learned=3")


@pytest.mark.parametrize("text", ["bf16,d=64,dv=32,causal,linear", "fp32,row_softmax"])
def test_what_is_no_attention(text):
    spec = parse_spec(text)
    assert spec.computes in ("linear", "softmax") and text_of(spec) == text
    assert AttentionSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("kind", SOFTMAXES)
def test_kinds_of_softmax(kind):
    spec = AttentionSpec(dtype="float16", head_dim=64, causal=True, softmax=kind)
    assert parse_spec(text_of(spec)) == spec
    assert (kind in text_of(spec)) == (kind != "softmax")


@given(
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    head_dim=st.integers(8, 512),
    window=st.sampled_from(["", ",window", ",window=left", ",window=right"]),
    causal=st.booleans(),
)
def test_text_and_fields_agree(dtype, head_dim, window, causal):
    text = f"{dtype},d={head_dim}{window}" + ",causal" * causal
    expected = AttentionSpec(
        dtype=dtype,
        head_dim=head_dim,
        window_left=window in (",window", ",window=left"),
        window_right=window in (",window", ",window=right"),
        causal=causal,
    )
    assert parse_spec(text) == expected


def test_the_name_of_a_listed_case():
    spec = CASES[-1].spec
    assert parse_spec(spec.name) == spec


def test_files(tmp_path):
    spec = AttentionSpec(dtype="float32", head_dim=59, causal=True)
    as_json, as_text = tmp_path / "specs.json", tmp_path / "specs.txt"
    as_json.write_text(json.dumps([spec.to_json(), "fp32,d=64"]))
    as_text.write_text("# what we serve\nfp32,d=59,causal\n\nfp32,d=64  # and this\n")
    assert parse_specs(str(as_json)) == parse_specs(str(as_text)) != []


def test_functions_of_a_file(tmp_path):
    (tmp_path / "mods.py").write_text(
        "def near(b, h, q_idx, k_idx):\n    return abs(q_idx - k_idx) < 16\n"
    )
    spec = parse_spec(f"fp32,d=64,mask_mod={tmp_path}/mods.py:near")
    assert spec.mask_mod is not None and spec.score_mod is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("d=64", "names no dtype"),
        ("bf16", "names no head_dim"),
        ("bf16,d=64,hexagonal", "'hexagonal'"),
        ("bf16,d=sixty", "'d=sixty'"),
        ("bf16,d=64,d=32", "twice"),
        ("bf16,d=64,window=128:0", "in a call; write window, window=left or window=right"),
        ("bf16,d=64,window,window=left", "window twice"),
        ("bf16,d=64,softcap=30", "in a call; write softcap"),
        ("bf16,d=4000", "4000"),
        ("missing.json", "not a file"),
        ("fp32,d=64,mask_mod=missing.py:near", "missing.py:near"),
    ],
)
def test_errors_name_the_word(text, words):
    with pytest.raises(SpecTextError, match=words):
        parse_spec(text)
