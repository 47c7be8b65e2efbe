"""GPU builds take measured records of their architecture, and the manifest says which."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tvm_flash.artifact.library import verify
from tvm_flash.codegen.toolkit import find_toolkit
from tvm_flash.codegen.versions import records_digest
from tvm_flash.errors import BuildError
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules import record_format, records
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.backward_config import BackwardConfig
from tvm_flash.schedules.cuda.defaults import forward_configs
from tvm_flash.schedules.cuda.forward import ForwardConfig
from tvm_flash.schedules.cuda.kernels import SCHEDULES
from tvm_flash.schedules.cuda.select import cuda_programs
from tvm_flash.schedules.table import Candidate

SPEC = AttentionSpec(dtype="float16", head_dim=64)
SM_80, SM_90 = ARCHS["sm_80"], ARCHS["sm_90"]
# One that spills on neither architecture: a build would leave a record that does for the default.
MEASURED = ForwardConfig(64, 32, stages=2, q_in_registers=True)
PLACE = "tuning_logs/sm_90/float16_d64.jsonl:exact"


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """A folder of logs instead of the package's own, and a function that adds a best line to it."""
    monkeypatch.setattr(records, "log_folders", lambda: (tmp_path,))

    def add(config, spec=SPEC, target="sm_90", direction="forward", bucket="long"):
        fields = config if isinstance(config, dict) else config.to_json()
        line = {
            "format": 1, "target": target, "cpu": "a GPU", "spec": spec.to_json(),
            "direction": direction, "bucket": bucket, "config": fields, "outcome": "ok",
            "problem": dict.fromkeys(record_format.SIZES, 2), "seconds": [1e-3, 1.1e-3],
            "incumbent_seconds": [1.2e-3, 1.3e-3], "error": 1e-4, "allowed": 1e-3,
            "strategy": "random", "seed": 0, "trial": 1, "date": "2026-11-20T12:00:00+00:00",
            "versions": {"tvm": "0"}, "machine": {"cores": 4}, "best": True,
        }  # fmt: skip
        return record_format.append(tmp_path, line)

    return add


def sources(direction="forward", spec=SPEC, archs=(SM_80, SM_90), **options):
    found = {}
    for _, program in cuda_programs(spec, direction, archs, **options):
        found |= program.sources
    return found


def test_without_records_the_defaults():
    assert SCHEDULES.measured(SPEC, "forward", SM_80) == Candidate(None, "default")
    assert sources() == {"sm_80": "default", "sm_90": "default"}
    assert sources(config=MEASURED.to_json()) == {"sm_80": "given", "sm_90": "given"}


def test_a_record_serves_its_architecture_alone(logs):
    logs(MEASURED)
    by_arch = {
        a.name: p for archs, p in cuda_programs(SPEC, "forward", (SM_80, SM_90)) for a in archs
    }
    assert by_arch["sm_90"].config == MEASURED.to_json()
    assert by_arch["sm_80"].config == forward_configs(SPEC, SM_80)[0].to_json()
    assert sources() == {"sm_80": "default", "sm_90": PLACE}


def test_records_of_sm_90_serve_sm_90a_where_it_has_no_schedule_of_its_own(logs):
    logs(MEASURED)
    numbers, packed = BackwardConfig(32, 64), replace(SPEC, sequences="packed")
    logs(numbers, direction="backward")
    archs = (SM_90, ARCHS["sm_90a"])
    assert sources(archs=archs) == {"sm_90": PLACE, "sm_90a": "default"}
    assert sources("backward", packed, archs) == {"sm_90": PLACE, "sm_90a": PLACE}
    logs(BackwardConfig(64, 64), direction="backward", target="sm_90a")
    found = SCHEDULES.measured(packed, "backward", archs[1])
    assert found.config == BackwardConfig(64, 64) and "sm_90a" in found.source


def test_the_nearest_record_serves(logs):
    logs(MEASURED, bucket="medium")
    assert sources(archs=(SM_90,))["sm_90"].startswith("nearest: tuning_logs/sm_90/float16_d64")
    wide = replace(SPEC, head_dim=72, head_dim_v=72)
    assert SCHEDULES.measured(wide, "forward", SM_90).config == MEASURED


def test_what_spills_gives_way_to_the_defaults(logs):
    logs(MEASURED)
    assert sources(archs=(SM_90,), choice=1) == {"sm_90": "default"}
    ((_, program),) = cuda_programs(SPEC, "forward", (SM_90,), choice=1)
    assert program.config == forward_configs(SPEC, SM_90)[0].to_json()


def test_a_record_that_equals_a_default_is_tried_once(logs):
    first, second = forward_configs(SPEC, SM_90)[:2]
    logs(first)
    ((_, program),) = cuda_programs(SPEC, "forward", (SM_90,), choice=1)
    assert program.config == second.to_json()


@pytest.mark.parametrize(
    "config",
    [
        {"schedule": "cuda.forward", "invented": 3},
        {"schedule": "cpu.forward", "block_q": 64},
        {**MEASURED.to_json(), "num_warps": 3},
        ForwardConfig(128, 2048).to_json(),
    ],
    ids=str,
)
def test_records_that_cannot_serve(logs, config):
    logs(config)
    assert sources(archs=(SM_90,)) == {"sm_90": "default"}


def test_each_direction_has_its_own_records(logs):
    numbers = BackwardConfig(32, 64)
    logs(numbers, direction="backward")
    assert sources(archs=(SM_90,)) == {"sm_90": "default"}
    assert sources("backward", archs=(SM_90,)) == {"sm_90": PLACE}
    assert sources("backward_deterministic", archs=(SM_90,)) == {"sm_90": "default"}


def test_rankings_beside_the_records_change_no_digest(tmp_path, monkeypatch, logs):
    from tvm_flash.codegen import versions

    root = tmp_path / "x"
    monkeypatch.setattr(versions.tvm_flash, "__path__", [str(root)])
    folder = root / "tuning_logs" / "sm_90"
    folder.mkdir(parents=True)
    before = records_digest("sm_90")
    (folder / "attn_f16_d64_fwd.static.json").write_text("{}")
    assert records_digest("sm_90") == before
    (folder / "float16_d64.jsonl").write_text("{}\n")
    assert records_digest("sm_90") != before


@pytest.mark.slow
def test_the_manifest_says_which_record(logs, tmp_path):
    try:
        find_toolkit()
    except BuildError as error:
        pytest.skip(f"no CUDA compiler: {error}")
    from tvm_flash.codegen.cuda_build import build_cuda, cuda_job

    logs(MEASURED)
    archs = (SM_80, SM_90)
    path = build_cuda([cuda_job(SPEC, "forward", archs)], archs, tmp_path / "k")
    (record,) = verify(path)[1].kernels
    assert record.config_source == f"sm_80: default; sm_90: {PLACE}"
    by_arch = {a: v for v in record.config["variants"] for a in v["archs"]}
    assert by_arch["sm_90"]["stages"] == 2 and by_arch["sm_90"]["block_k"] == 32
