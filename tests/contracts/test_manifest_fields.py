"""Whatever a field of a manifest holds, a wrong one is an ArtifactError that names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_artifact import SPEC, copied, edit

from tvm_flash.artifact.library import MANIFEST
from tvm_flash.errors import ArtifactError
from tvm_flash.problem.arguments import arguments
from tvm_flash.runtime.loader import load


@pytest.fixture
def kernels(tmp_path) -> Path:
    return copied(tmp_path / "kernels")


_HUGE = 10**400
_WRONG = [
    {"format": True},
    {"format": 1.0},
    {"library": 3},
    {"library": None},
    {"library": ["kernels.so"]},
    {"sha256": 5},
    {"sha256": "A" * 64},
    {"target": "cpu"},
    {"target": {"name": 3}},
    {"target": {"system": {"deep": []}}},
    {"cpu_features": "avx2"},
    {"cpu_features": [1]},
    {"cpu_features": [["avx2"]]},
    {"versions": []},
    {"versions": {"tvm_ffi": 1}},
    {"versions": {"tvm_ffi": None}},
    {"kernels": {}},
    {"kernels": [None]},
    {"ptx_sha256": True},
]
_WRONG_RECORDS = [
    {"symbol": None},
    {"symbol": "a b"},
    {"symbol": "f" * 5000},
    {"spec": None},
    {"spec": {"version": True, "dtype": "float32", "head_dim": 16}},
    {"direction": 1},
    {"direction": ["forward"]},
    {"config": None},
    {"config": []},
    {"arguments": {}},
    {"arguments": []},
    {"arguments": [{"name": "q"}]},
    {"launches": {}},
    {"launches": [1]},
    {
        "launches": [
            {"name": "f", "archs": "sm_80", "threads": 1, "shared_bytes": 0, "resources": {}}
        ]
    },
    {"buckets": "long"},
    {"buckets": [1]},
    {"buckets": ["long", "long"]},
    {"buckets": ["longest"]},
    {"config_source": 1},
    {"block_q": 0},
    {"block_q": True},
    {"block_q": "64"},
    {"block_k": -64},
    {"block_k": 32.5},
    {"head_dim_pad": _HUGE},
    {"head_dim_pad": None},
]


@pytest.mark.parametrize("changes", _WRONG, ids=lambda changes: f"{changes!r:.40}")
def test_a_manifest_field_of_a_wrong_type_is_an_artifact_error(kernels, changes):
    with pytest.raises(ArtifactError, match=r"not a manifest.*ValueError"):
        load(edit(kernels, **changes))


def test_a_manifest_of_the_form_before_is_refused_and_says_what_to_do(kernels):
    for found in (1, 2):
        message = rf"format={found}, of an older version.*reads format 3.*build it again"
        with pytest.raises(ArtifactError, match=message):
            load(edit(kernels, format=found))


@pytest.mark.parametrize("changes", _WRONG_RECORDS, ids=lambda changes: f"{changes!r:.40}")
def test_a_record_field_of_a_wrong_type_is_an_artifact_error(kernels, changes):
    (record,) = json.loads((kernels / MANIFEST).read_text())["kernels"]
    with pytest.raises(ArtifactError, match=r"not a manifest.*ValueError"):
        load(edit(kernels, kernels=[{**record, **changes}]))


def test_a_symbol_of_two_records_is_an_artifact_error(kernels):
    (record,) = json.loads((kernels / MANIFEST).read_text())["kernels"]
    with pytest.raises(ArtifactError, match=r"symbol='attn_f32_d16_fwd\w*' stands in 2 kernels"):
        load(edit(kernels, kernels=[record, {**record, "buckets": ["long"]}]))


@pytest.mark.parametrize(
    "config", [{}, {"variants": []}, {"variants": 3}, {"variants": [{"archs": [], "meta": {}}]}]
)
def test_variants_of_a_gpu_kernel_are_checked(kernels, config):
    (record,) = json.loads((kernels / MANIFEST).read_text())["kernels"]
    changes = {"kernels": [{**record, "config": config}], "target": {"name": "cuda"}}
    with pytest.raises(ArtifactError, match=r"variants|archs"):
        load(edit(kernels, **changes))


@pytest.mark.parametrize(
    ("spec", "direction"), [({}, "append"), ({"sequences": "paged"}, "backward")]
)
def test_a_direction_that_the_spec_lacks_is_an_artifact_error(kernels, spec, direction):
    (record,) = json.loads((kernels / MANIFEST).read_text())["kernels"]
    changes = {"direction": direction, "spec": {**record["spec"], **spec}}
    with pytest.raises(ArtifactError, match=rf"direction='{direction}' of .*keys in pages"):
        load(edit(kernels, kernels=[{**record, **changes}]))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"computes": "fft"}, "computes='fft' must be one of attention, linear"),
        ({"computes": 3}, "computes=3 must be one of"),
        ({"computes": "softmax"}, "direction='forward' of .*its directions are softmax"),
        ({"fft": 16}, "fft"),
    ],
    ids=str,
)
def test_what_a_kernel_computes_is_known_or_refused(kernels, spec, message):
    (record,) = json.loads((kernels / MANIFEST).read_text())["kernels"]
    changes = {"spec": {**record["spec"], **spec}}
    with pytest.raises(ArtifactError, match=message):
        load(edit(kernels, kernels=[{**record, **changes}]))


def test_a_backward_without_its_tile_is_an_artifact_error(kernels):
    (record,) = json.loads((kernels / MANIFEST).read_text())["kernels"]
    known = {name: value for name, value in record.items() if name != "block_q"}
    called_with = [argument.to_json() for argument in arguments(SPEC, "backward")]
    changes = {"direction": "backward", "arguments": called_with}
    with pytest.raises(ArtifactError, match="gives no block_q"):
        load(edit(kernels, kernels=[{**known, **changes}]))


def test_numbers_that_json_does_not_have_are_refused(kernels):
    text = (kernels / MANIFEST).read_text()
    (kernels / MANIFEST).write_text(text.replace('"block_q": ', '"other": NaN, "block_q": '))
    with pytest.raises(ArtifactError, match="NaN is not JSON"):
        load(kernels)
