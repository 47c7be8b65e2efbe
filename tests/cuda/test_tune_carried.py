"""Candidates built on one machine and timed on another, where TVM and nvcc are missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rehearsed_gpu import call, pose
from tools import needs

from tvm_flash.artifact.library import verify
from tvm_flash.codegen.toolkit import find_toolkit
from tvm_flash.schedules.record_format import checked

pytestmark = needs(find_toolkit)

SUPPORT = Path(__file__).resolve().parents[1] / "support"
SPEC = "fp16,d=16"
# The other machine: its GPU is the interpreter, the times are made up.
ELSEWHERE = """
import sys
sys.modules["tvm"] = None
sys.path.insert(0, sys.argv[1])
import pytest
from rehearsed_gpu import rehearse
from tvm_flash.cli import main
from tvm_flash.codegen import toolkit
rehearse(pytest.MonkeyPatch(), lambda place, numbers: 1e-5 * numbers["block_k"])
toolkit.find_toolkit = None
sys.argv = ["tvm-flash", "tune", *sys.argv[2:]]
main()
"""


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("carried") / "candidates"
    options = ("--target", "cuda:sm_90", "--directions", "forward", "--trials", 2)
    options += ("--strategy", "random")
    done = call("tune", SPEC, *options, "--carry", folder)
    assert "tune --carried candidates --logs LOGS" in done.stderr
    return folder


@pytest.mark.slow
def test_timed_elsewhere_and_built_here(candidates, tmp_path):
    kernels = {kernel.symbol: kernel for kernel in verify(candidates)[1].kernels}
    assert list(kernels) == [f"attn_f16_d16_fwd_00{n}" for n in range(3)]
    options = ["--carried", candidates, "--logs", tmp_path / "logs", "--seconds", "0.01"]
    command = [sys.executable, "-c", ELSEWHERE, SUPPORT, *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "logs" / "sm_90").glob("*.jsonl")
    found = list(checked(log))
    assert not [problem for *_, problems in found for problem in problems]
    lines = [line for _, line, _ in found if "stage" in line]
    tried = [line["config"] for line in lines if line["stage"] == "trial"]
    carried = [kernel.config["variants"][0] for kernel in kernels.values()]
    assert [config["block_k"] for config in tried] == [c["block_k"] for c in carried[1:]]
    best = next(line["config"] for line in lines if line["stage"] == "final")
    assert best["block_k"] == min(config["block_k"] for config in carried)
    assert {line["versions"]["nvcc"] for line in lines} == {find_toolkit().version}
    built = ("-o", tmp_path / "kernels", "--target", "cuda:sm_90", "--forward-only")
    call("build", SPEC, *built, "--logs", tmp_path / "logs")
    (kernel,) = verify(tmp_path / "kernels")[1].kernels
    assert kernel.config["variants"][0].items() >= best.items()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_cannot_be_opened_ends_the_search(candidates, tmp_path, monkeypatch):
    """Real processes; torch was told to see a GPU that there is not."""
    pose(monkeypatch)
    done = call("tune", "--carried", candidates, "--logs", tmp_path, status=1)
    assert "a worker process did not start" in done.stderr
    assert not list(tmp_path.rglob("*.jsonl")), "nothing was measured, nothing is recorded"


def test_refused_in_one_line(candidates, tmp_path, monkeypatch):
    def refused(*arguments):
        (line,) = call("tune", *arguments, status=2).stderr.strip().splitlines()
        return line

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA GPU here" in refused("--carried", candidates)
    assert "nowhere" in refused("--carried", tmp_path / "nowhere")
    several = ("--target", "cuda", "--carry", tmp_path / "several")
    assert "--carry is for one GPU" in refused(SPEC, *several)
    call("build", SPEC, "--forward-only", "--target", "cuda:sm_90", "-o", tmp_path / "kernels")
    assert "holds no candidates" in refused("--carried", tmp_path / "kernels")
    pose(monkeypatch, capability=(8, 0))
    assert "this GPU is sm_80" in refused("--carried", candidates)
