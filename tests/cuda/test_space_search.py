"""Searches on a GPU that answers made-up times: what they propose, record and promote."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from rehearsed_gpu import pose

from tvm_flash.cli.tune_cuda import request_on_gpu
from tvm_flash.codegen.toolkit import find_toolkit
from tvm_flash.errors import BuildError, UnsupportedSpec
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.kernels import SCHEDULES
from tvm_flash.schedules.record_format import checked
from tvm_flash.tune.cuda_hardware import Built, CudaHardware
from tvm_flash.tune.cuda_search import gpu_at_hand, gpu_tasks
from tvm_flash.tune.trial import Trial
from tvm_flash.workers import Failure

SPEC = AttentionSpec(dtype="float16", head_dim=64)


@pytest.fixture
def h100(monkeypatch):
    pose(monkeypatch)


def test_without_a_gpu_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_at_hand("cuda") is None and request_on_gpu([], "cuda", ()) is None


@pytest.mark.parametrize(
    ("target", "arch"),
    [("cuda", "sm_90a"), ("cuda:sm_90a", "sm_90a"), ("cuda:sm_90", "sm_90")],
)
def test_which_targets_are_measured(h100, target, arch):
    assert gpu_at_hand(target) == ARCHS[arch]


@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_80,sm_90"])
def test_other_architectures_are_refused(h100, target):
    with pytest.raises(UnsupportedSpec, match="this GPU is sm_90 or sm_90a; CUDA_VISIBLE_DEVICES="):
        gpu_at_hand(target)


def test_a_gpu_that_no_architecture_names(monkeypatch):
    pose(monkeypatch, capability=(8, 7))
    with pytest.raises(UnsupportedSpec, match=r"8\.7, records are kept for sm_75"):
        gpu_at_hand("cuda")


def test_tasks():
    tasks = gpu_tasks([SPEC, SPEC], ["forward", "backward"], ARCHS["sm_90"])
    assert [(t.direction, t.target, t.bucket) for t in tasks] == [
        ("forward", "sm_90", "long"), ("backward", "sm_90", "long"),
    ]  # fmt: skip
    with pytest.raises(UnsupportedSpec, match="tune backward"):
        gpu_tasks([SPEC], ["backward_deterministic"], ARCHS["sm_90"])
    wide = [replace(SPEC, head_dim=n, head_dim_v=n) for n in (300, 512)]
    with pytest.raises(UnsupportedSpec) as error:
        gpu_tasks([wide[0], SPEC, wide[1]], ["forward"], ARCHS["sm_90"])
    assert [reason.split(":")[0] for reason in error.value.reasons] == [
        "attn_f16_d300 forward", "attn_f16_d512 forward",
    ]  # fmt: skip


class Answers:
    """Instead of worker processes: what each item is answered by."""

    jobs = 1

    def __init__(self, answer):
        self.answer = answer

    def map(self, items, timeout):
        yield from ((n, self.answer(*item)) for n, item in enumerate(items))

    def renew(self):
        pass

    start = close = renew


def build(spec, direction, arch, config):
    if config["block_q"] == 32:
        return Failure("spill", "8 bytes")
    return Built(json.dumps(config), {"registers": 128})


def measure(ours, best, sizes, seconds):
    """Fewer keys in a tile are faster."""
    times = [tuple(1e-5 * json.loads(path)["block_k"] + n * 1e-9 for n in range(9))
             for path in (ours, best)]  # fmt: skip
    return Trial("ok", 1e-4, 1e-3, *times)


def test_a_search_leaves_records_that_builds_take(h100, tmp_path):
    try:
        find_toolkit()
    except BuildError as error:
        pytest.skip(f"no CUDA compiler: {error}")
    searched = ("random", None, 0, 20, 0.1, tmp_path, None)
    request = request_on_gpu([([SPEC], ["forward"])], "cuda:sm_90", searched)
    with CudaHardware(jobs=1, timeout=60) as hardware:
        hardware._builders, hardware._measurer = Answers(build), Answers(measure)
        (session,) = request.sessions(hardware, lambda state, event: None)
        session.run()
    (path,) = tmp_path.glob("sm_90/*.jsonl")
    found = list(checked(path))
    lines = [line for _, line, _ in found]
    assert [problem for *_, problems in found for problem in problems] == []
    assert {"ok", "spill"} <= {line["outcome"] for line in lines}
    assert {line["cpu"] for line in lines} == {"NVIDIA H100"}
    best = SCHEDULES.measured(SPEC, "forward", ARCHS["sm_90"], folders=[tmp_path])
    tried = [line["config"]["block_k"] for line in lines if line["outcome"] == "ok"]
    assert best.config.block_k == min(tried) < 64
    assert best.source == "tuning_logs/sm_90/float16_d64.jsonl:exact"
