"""The whole of `tvm-flash bench --suite gpu`, from a library and candidates that were built before.

The GPU is the PTX interpreter, and times are made up: what runs, what is kept, what is said.
"""

import json

import pytest
import torch
from rehearsed_gpu import call, pose
from rehearsed_suite import GPU, rehearse_suite
from tools import needs
from typer.testing import CliRunner

from tvm_flash.cli.app import app
from tvm_flash.codegen.toolkit import find_toolkit
from tvm_flash.runtime.loader import registered
from tvm_flash.schedules.record_format import checked

needs_nvcc = needs(find_toolkit)


SPEC = ("fp16,d=16", "--target", "cuda:sm_90")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """One forward kernel."""
    folder = tmp_path_factory.mktemp("suite") / "kernels"
    call("build", *SPEC, "--forward-only", "-o", folder)
    return folder


@pytest.fixture(scope="module")
def candidates(tmp_path_factory):
    """Three configs of it."""
    folder = tmp_path_factory.mktemp("suite") / "candidates"
    search = ("--directions", "forward", "--trials", "2", "--strategy", "random")
    call("tune", *SPEC, *search, "--carry", folder)
    return folder


@pytest.fixture
def bench(tmp_path):
    """The command on a library, ended with ``status``; and the document that it leaves."""
    before, out = dict(registered), tmp_path / "gpu.json"

    def run(artifact, *more, status=0):
        command = ["bench", "--suite", "gpu", "--artifact", artifact, "--out", out, *more]
        done = CliRunner().invoke(app, [*map(str, command)], terminal_width=80)
        assert done.exit_code == status, f"{done.output}\n{done.exception!r}"
        return done, json.loads(out.read_text()) if out.exists() else None

    yield run
    registered.clear()
    registered.update(before)


@needs_nvcc
@pytest.mark.slow
def test_from_prebuilt_kernels_to_the_overview(bench, library, monkeypatch):
    there, kernels = rehearse_suite(monkeypatch, library)
    done, document = bench(library, "--budget", "0")
    assert "2 cells are left" in done.stderr and not kernels.called and not there.timed
    done, document = bench(library, "--budget", "600")
    checked, timed = document["cells"]
    assert checked["right"] and checked["errors"]["out"]["error"] > 0
    assert kernels.called[0] == "forward" and there.timed
    assert timed["ratio"]["sdpa_flash"] == pytest.approx(1, abs=0.01)
    assert "sdpa_cudnn" in timed["missing"] and timed["of_floor"] > 0
    # What is said: that nothing was measured, and an overview that fits a terminal.
    assert GPU["gpu"] in done.stderr and "1 of 1 right" in done.stdout
    (head,) = (line for line in done.stdout.splitlines() if "TFLOP/s" in line)
    assert "flash" in head and "cudnn" in head and len(head) <= 80
    # All is kept: the same command has nothing left to do.
    calls = len(there.timed)
    bench(library)
    assert len(there.timed) == calls
    # Kernels that are wrong are not timed.
    kernels.spoil = lambda tensors: tensors["out"].add_(1)
    done, document = bench(library, "--rerun", status=1)
    checked, timed = document["cells"]
    assert "several_tiles: out: error" in checked["failure"] and "1 wrong" in done.stdout
    assert "breaks the error rule" in timed["skipped"] and len(there.timed) == calls


@needs_nvcc
@pytest.mark.sweep
def test_candidates_are_searched_and_models_judged(bench, candidates, tmp_path, monkeypatch):
    """Three configs, which are the library too."""
    _, kernels = rehearse_suite(monkeypatch, candidates)
    searched = ("--candidates", candidates, "--logs", tmp_path / "records")
    done, document = bench(candidates, *searched)
    assert [c["section"] for c in document["cells"]] == [*["kernels"] * 3, "lengths", "candidates"]
    search = document["cells"][-1]["search"]
    assert [one["outcome"] for one in search["candidates"]] == ["ok"] * 3
    assert all(one["predicted"]["analytical"] > 0 for one in search["candidates"])
    assert -1 <= search["agreement"]["analytical"] <= 1
    assert search["best_seconds"] <= search["default_seconds"]
    (log,) = (tmp_path / "records" / "sm_90").glob("*.jsonl")
    best = next(line["config"] for _, line, _ in checked(log) if line.get("stage") == "final")
    assert best == search["config"] and "attn_f16_d16_fwd" in done.stdout
    kernels.spoil = lambda tensors: tensors["out"].add_(1)
    done, document = bench(candidates, *searched, "--rerun", status=1)
    assert all("failure" in cell for cell in document["cells"][:3])


@needs_nvcc
def test_what_was_not_built_for_this_gpu(library, tmp_path, monkeypatch):
    def refused(*options):
        done = call("bench", "--suite", "gpu", *options, status=2)
        (line,) = done.stderr.strip().splitlines()
        return line

    pose(monkeypatch, capability=(9, 0))
    nowhere = refused("--artifact", tmp_path / "kernels")
    assert "build --preset benchmark --target cuda:sm_90a -o kernels" in nowhere
    nowhere = refused("--artifact", library, "--candidates", tmp_path / "configs")
    assert "--target cuda:sm_90a --trials 10 --carry configs" in nowhere
    assert "holds no candidates" in refused("--artifact", library, "--candidates", library)
    pose(monkeypatch, capability=(12, 0))
    assert "this GPU is sm_120: build it for" in refused("--artifact", library)


def test_candidates_are_of_gpus(tmp_path):
    done = call("bench", "--suite", "quick", "--candidates", tmp_path, status=2)
    assert "--candidates are of GPUs" in done.stderr


def test_neither_kernels_nor_a_compiler(monkeypatch):
    pose(monkeypatch, capability=(9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = call("bench", "--suite", "gpu", status=2)
    assert "--preset benchmark --target cuda:sm_90a -o kernels" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "cuda, cause", [(None, "install torch's CUDA build"), ("13.0", "is_available() is False")]
)
def test_without_a_gpu_the_suite_says_so(cuda, cause, monkeypatch):
    monkeypatch.setattr("torch.version.cuda", cuda)
    done = call("bench", "--suite", "gpu", status=2)
    assert done.stderr.startswith(f"error: no CUDA device for torch {torch.__version__}: ")
    assert cause in done.stderr
