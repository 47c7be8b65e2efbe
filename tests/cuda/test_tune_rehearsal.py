"""`tvm-flash tune --target cuda` from the command to the tuned library, on an interpreted GPU."""

from __future__ import annotations

import re
import shutil

import pytest
from rehearsed_gpu import call, pose, rehearse
from tools import needs

from tvm_flash.artifact.library import verify
from tvm_flash.cli import tune_cuda
from tvm_flash.codegen import toolkit
from tvm_flash.codegen.toolkit import find_toolkit
from tvm_flash.errors import BuildError
from tvm_flash.schedules.record_format import checked

SPEC = "fp16,d=16"


def tune(folder, *more, **options):
    search = ("--directions", "forward", "--strategy", "random", "--trials", 1, "--seconds", 0.01)
    where = ("--target", "cuda:sm_90", "--logs", folder / "logs", "-o", folder / "kernels")
    return call("tune", SPEC, *search, *where, *more, **options)


needs_nvcc = needs(find_toolkit)


def fewer_keys_are_faster(place, numbers):
    return 1e-5 * numbers["block_k"]


@needs_nvcc
@pytest.mark.slow
def test_from_the_command_to_the_library(tmp_path, monkeypatch):
    rehearse(monkeypatch, fewer_keys_are_faster)
    done = tune(tmp_path)
    (log,) = (tmp_path / "logs" / "sm_90").glob("*.jsonl")
    assert not [problem for *_, problems in checked(log) for problem in problems]
    lines = [line for _, line, _ in checked(log) if "stage" in line]
    best = next(line for line in lines if line["stage"] == "final")
    assert best["best"] and best["config"]["block_k"] < 64
    # Every time stands behind the verdict that came before it.
    told = [line for line in done.stderr.splitlines() if " ms, " in line]
    assert len(told) >= 4 and all(re.search(r"error 0\.\d\d of allowed, ", x) for x in told)
    row = next(line.split() for line in done.stdout.splitlines() if "attn_f16_d16 " in line)
    allowed, before, after = map(float, row[3:6])
    assert allowed < 1 and after / before == pytest.approx(best["config"]["block_k"] / 64, rel=0.02)
    # The library holds the config that was measured, and so has one that is built elsewhere.
    command = next(line for line in done.stderr.splitlines() if "tvm-flash build" in line).split()
    assert command[:4] == ["tvm-flash", "build", SPEC, "--forward-only"]
    shutil.copytree(tmp_path / "logs" / "sm_90", tmp_path / "carried" / "sm_90")
    words = [tmp_path / "carried" if word == "LOGS" else word for word in command[1:]]
    call(*words, "-o", tmp_path / "elsewhere")
    for folder in ("kernels", "elsewhere"):
        (kernel,) = verify(tmp_path / folder)[1].kernels
        (variant,) = kernel.config["variants"]
        assert variant.items() >= best["config"].items()
        assert kernel.config_source == f"sm_90: tuning_logs/sm_90/{log.name}:exact"


@needs_nvcc
@pytest.mark.slow
def test_wrong_kernels_get_no_time(tmp_path, monkeypatch):
    def spoil(tensors):
        tensors["out"][0, 0, 0, 0] += 1

    rehearse(monkeypatch, spoil=spoil)
    done = tune(tmp_path, status=1)
    assert "the default config" in done.stderr and "wrong" in done.stderr
    assert " ms, " not in done.stderr and not (tmp_path / "kernels").exists()


REFUSED = {
    "another GPU's": (["--target", "cuda:sm_80"], "this GPU is sm_90"),
    "several": (["--target", "cuda:sm_80,sm_90"], "this GPU is sm_90"),
    "too wide": (["fp16,d=320"], "attn_f16_d320 backward: sm_90: head_dim=320"),
    "logs": (["--logs", "file/logs"], "file/logs cannot be written"),
    "a place": (["-o", "full"], "is not an artifact"),
    "below a file": (["-o", "file/kernels"], "file/kernels"),
    "a preset": (["--preset", "cooking"], "training, serving"),
    "servers": (["--rpc", "a:1"], "--rpc is for CPU targets"),
}


@needs_nvcc
@pytest.mark.parametrize("what", REFUSED)
def test_refused_in_one_line_before_anything_is_compiled(what, tmp_path, monkeypatch):
    pose(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    arguments, part = REFUSED[what]
    done = call("tune", SPEC, "--target", "cuda:sm_90", "--logs", "logs", *arguments, status=2)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error:") and part in line and not done.stdout


def test_a_gpu_without_a_compiler(tmp_path, monkeypatch):
    def missing():
        raise BuildError("no CUDA compiler: no bin/nvcc")

    pose(monkeypatch)
    monkeypatch.setattr(toolkit, "find_toolkit", missing)
    assert "no CUDA compiler" in tune(tmp_path, status=2).stderr


def test_without_a_gpu_it_says_what_was_done_and_what_to_do(tmp_path, monkeypatch):
    ranked = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(tune_cuda, "rank_on_cuda", lambda *known: ranked.append(known[:3]) or [])
    done = call(
        "tune", SPEC, "--preset", "serving", "--target", "cuda:sm_90", "--logs", tmp_path / "logs"
    )
    assert "no CUDA GPU here" in done.stderr and "nothing is timed" in done.stderr
    assert "on a machine with such a GPU and nvcc" in done.stderr
    (own, both), (listed, forward) = ((specs, directions) for specs, directions, _ in ranked)
    assert [spec.name for spec in own] == ["attn_f16_d16"] and both == ("forward", "backward")
    assert len(listed) == 38 and forward == ("forward",)
    assert [target for *_, target in ranked] == ["cuda:sm_90"] * 2


def test_without_a_gpu_there_is_nothing_to_build(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(tune_cuda, "rank_on_cuda", None)
    told = tune(tmp_path, status=2).stderr
    assert "there is no CUDA GPU here" in told and "leave it out" in told
