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


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Candidates of a kernel, which are a library too."""
    folder = tmp_path_factory.mktemp("suite") / "candidates"
    search = ("--directions", "forward", "--trials", "2", "--strategy", "random")
    call("tune", "fp16,d=16", "--target", "cuda:sm_90", *search, "--carry", folder)
    return folder


@pytest.fixture
def bench(built, tmp_path, monkeypatch):
    """The command on ``built``, ended with ``status``; and the document that it leaves."""
    before = dict(registered)

    def run(*more, status=0):
        command = ["bench", "--suite", "gpu", "--artifact", built, "--candidates", built]
        where = ["--out", tmp_path / "gpu.json", "--logs", tmp_path / "records", *more]
        done = CliRunner().invoke(app, [*map(str, [*command, *where])], terminal_width=80)
        assert done.exit_code == status, f"{done.output}\n{done.exception!r}"
        return done, json.loads((tmp_path / "gpu.json").read_text())

    yield run
    registered.clear()
    registered.update(before)


@needs_nvcc
@pytest.mark.slow
def test_from_prebuilt_kernels_to_the_overview(bench, built, tmp_path, monkeypatch):
    there, kernels = rehearse_suite(monkeypatch, built)
    done, document = bench("--budget", "600")
    cells = {cell["section"]: cell for cell in document["cells"]}
    assert [cell["section"] for cell in document["cells"]] == [
        *["kernels"] * 3, "lengths", "candidates",
    ]  # fmt: skip
    assert cells["kernels"]["right"] and cells["kernels"]["errors"]["out"]["error"] > 0
    assert kernels.called[:3] == ["forward"] * 3, "results are judged before anything is timed"
    timed = cells["lengths"]
    assert timed["ratio"]["sdpa_flash"] == pytest.approx(1, abs=0.01)
    assert "sdpa_cudnn" in timed["missing"] and timed["of_floor"] > 0
    assert {cell["device"] for cell in document["cells"]} == {"cuda"}
    # The candidates, and what both models had said of them when they were built.
    search = cells["candidates"]["search"]
    assert [one["outcome"] for one in search["candidates"]] == ["ok"] * 3
    assert all(one["predicted"]["analytical"] > 0 for one in search["candidates"])
    assert search["best_seconds"] <= search["default_seconds"]
    (log,) = (tmp_path / "records" / "sm_90").glob("*.jsonl")
    best = next(line["config"] for _, line, _ in checked(log) if line.get("stage") == "final")
    assert best == search["config"]
    # What is said: that nothing was measured, and an overview that fits a terminal.
    assert GPU["gpu"] in done.stderr
    (head,) = (line for line in done.stdout.splitlines() if "TFLOP/s" in line)
    assert "flash" in head and "cudnn" in head
    assert "3 of 3 right" in done.stdout and max(map(len, done.stdout.splitlines())) <= 80
    # All is kept: the same command has nothing left to do.
    calls = len(there.timed)
    bench()
    assert len(there.timed) == calls


@needs_nvcc
@pytest.mark.slow
def test_a_wrong_kernel_is_not_timed(bench, built, monkeypatch):
    def spoil(tensors):
        tensors["out"][0, 0, 0, 0] += 1

    there, _ = rehearse_suite(monkeypatch, built, spoil)
    done, document = bench("--match", "e", status=1)
    states = {cell["section"]: cell for cell in document["cells"]}
    assert "several_tiles: out: error" in states["kernels"]["failure"]
    assert "breaks the error rule" in states["lengths"]["skipped"] and not there.timed
    assert "wrong" in states["candidates"]["error"] and "3 wrong" in done.stdout


@needs_nvcc
def test_no_cell_begins_after_the_budget(bench, built, monkeypatch):
    there, kernels = rehearse_suite(monkeypatch, built)
    command = ["bench", "--suite", "gpu", "--artifact", str(built), "--budget", "0"]
    done = CliRunner().invoke(app, command, terminal_width=80)
    assert done.exit_code == 0 and "4 cells are left" in done.stderr
    assert not kernels.called and not there.timed


@needs_nvcc
def test_what_was_not_built_for_this_gpu(built, tmp_path, monkeypatch):
    def refused(*options):
        done = call("bench", "--suite", "gpu", *options, status=2)
        (line,) = done.stderr.strip().splitlines()
        return line

    pose(monkeypatch, capability=(9, 0))
    nowhere = refused("--artifact", tmp_path / "kernels")
    assert "build --preset benchmark --target cuda:sm_90 -o kernels" in nowhere
    nowhere = refused("--artifact", built, "--candidates", tmp_path / "configs")
    assert "--target cuda:sm_90 --trials 10 --carry configs" in nowhere
    pose(monkeypatch, capability=(12, 0))
    assert "this GPU is sm_120: build it for" in refused("--artifact", built)
    assert "--candidates are of GPUs" in call(
        "bench", "--suite", "quick", "--candidates", built, status=2
    ).stderr  # fmt: skip


def test_neither_kernels_nor_a_compiler(monkeypatch):
    pose(monkeypatch, capability=(9, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = call("bench", "--suite", "gpu", status=2)
    assert "--preset benchmark --target cuda:sm_90 -o kernels" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_suite_says_so():
    done = call("bench", "--suite", "gpu", status=2)
    assert done.stderr.strip() == "error: no CUDA device: torch.cuda.is_available() is False"
