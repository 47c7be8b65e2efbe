"""``tvm-flash verify``: right kernels pass, changed files are refused, errors found."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from rehearsed_gpu import pose
from tools import needs
from typer.testing import CliRunner

from tvm_flash.artifact.library import PTX, read_ptx, write_manifest, write_ptx
from tvm_flash.artifact.library import verify as read_artifact
from tvm_flash.cases import CASES
from tvm_flash.cli.app import app
from tvm_flash.codegen.toolkit import find_nvdisasm, find_toolkit
from tvm_flash.errors import ArtifactError, BuildError
from tvm_flash.problem.arguments import WRITTEN, names
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.runtime.loader import opened, registered
from tvm_flash.verify import library
from tvm_flash.verify.hook import InterpretedDevice
from tvm_flash.verify.problems import problems
from tvm_flash.verify.question import ask
from tvm_flash.verify.rule import Deviation, deviations
from tvm_flash.verify.score_function import as_function

try:
    find_toolkit()
except BuildError as error:
    pytest.skip(f"no CUDA compiler: {error}", allow_module_level=True)

from tvm_flash.codegen.build import build, build_pairs
from tvm_flash.tune.simulation.artifact import predicted_loops
from tvm_flash.verify import verify_library, verify_spec

needs_nvdisasm = needs(find_nvdisasm)

SPEC = AttentionSpec(dtype="bfloat16", head_dim=32, causal=True)


def call(*arguments, status=0):
    result = CliRunner().invoke(app, ["verify", *map(str, arguments)], terminal_width=160)
    assert result.exit_code == status, f"{result.output}\n{result.exception!r}"
    return result


def _found(*arguments, status=0):
    return json.loads(call(*arguments, "--json", status=status).stdout)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """The forward and backward of SPEC for two architectures: read only."""
    return build([SPEC], "cuda:sm_80,sm_90", tmp_path_factory.mktemp("verify") / "kernels")


@pytest.fixture
def copy(artifact, tmp_path):
    return shutil.copytree(artifact, tmp_path / "copy")


def test_spec_passes():
    document = _found("bf16,d=32,causal", "--arch", "sm_80")
    (verified,) = document["verified"]
    assert document["ok"] and verified["subject"] == SPEC.name
    kernels = {kernel["direction"]: kernel for kernel in verified["kernels"]}
    assert set(kernels) == {"forward", "forward_split", "backward", "backward_deterministic"}
    assert sum(len(kernel["problems"]) for kernel in kernels.values()) == 4 * len(problems(64, 64))
    tall = {run["problem"]["name"]: run for run in kernels["backward"]["problems"]}["tall"]
    assert tall["rows_without_keys"] > 0 and set(tall["errors"]) == {"dq", "dk", "dv"}
    assert tall["instructions"] > 0 and tall["device_bytes"] > 0


@pytest.mark.parametrize(
    ("name", "direction"),
    [("everything", "forward"), ("bf16_relative_bias", "forward"), ("bf16_document", "backward")],
)
def test_captured_tables(name, direction):
    (spec,) = {case.spec for case in CASES if case.name == name}
    found = verify_spec(spec, [direction], ["sm_80"], quick=True)
    assert found.ok, [outcome.failure for k in found.kernels for outcome in k.outcomes]


def test_gradients_of_tables(tmp_path):
    """Those of a library that knows no score function, on CPUs; of a spec, interpreted."""
    (spec,) = {case.spec for case in CASES if case.name == "relative_bias"}
    spec = dataclasses.replace(spec.learning(), head_dim=16, head_dim_v=16)
    path = build_pairs([(spec, "tables")], "llvm", tmp_path / "tables")
    assert verify_library(path, quick=True).ok
    given = ("fp16,d=16,alibi,learned", "--arch", "sm_80", "--direction", "tables", "--quick")
    assert "1 run, nothing wrong" in call(*given).stdout


@pytest.mark.parametrize("sequences", ["packed", "paged"])
def test_other_sequences(sequences):
    spec = dataclasses.replace(SPEC, sequences=sequences)
    found = verify_spec(spec, ["forward"], ["sm_80"], quick=True)
    assert found.ok, [outcome.failure for k in found.kernels for outcome in k.outcomes]


def test_library_passes_and_is_forgotten(artifact):
    before = dict(registered)
    steps = []
    found = verify_library(artifact, quick=True, progress=lambda *step: steps.append(step))
    assert found.ok and found.device == "cuda" and registered == before
    assert [kernel.direction for kernel in found.kernels] == ["forward", "backward"]
    assert [step[:2] for step in steps] == [(0, 2), (1, 2)]


def test_selection(artifact):
    found = verify_library(artifact, directions=["forward"], archs=["sm_90"], quick=True)
    (kernel,) = found.kernels
    assert kernel.direction == "forward" and "sm_90" in kernel.archs
    assert "ask for others" in call(artifact, "--arch", "sm_75", status=2).stderr


@needs_nvdisasm
def test_main_loops_are_predicted(artifact):
    narrow = ("--quick", "--direction", "forward", "--arch", "sm_80")
    done = call(artifact, *narrow, "--time")
    assert "predicted, not measured" in done.stdout and "share of peak" in done.stdout
    predicted = _found(artifact, *narrow, "--time")["predicted"]
    (entry,) = predicted["loops"]
    loop = entry["loop"]
    assert predicted["kind"] == "predicted, not measured" and entry["arch"] == "sm_80"
    assert entry["kernel"].startswith("attn_bf16_d32_causal_fwd") and entry["registers"] > 40
    share, least, most = loop["tensor_share"]
    assert 0 < least <= share <= most <= 1
    assert max(loop["parts"].values()) <= loop["clocks"] and loop["instructions"]["products"] > 0
    assert "predicted" not in _found(artifact, *narrow)


@needs_nvdisasm
def test_kernels_without_products_are_named(artifact):
    found = predicted_loops(artifact, ["sm_90"], ["backward"])
    reasons = {kernel.name.rpartition("_")[2]: kernel.reason for kernel in found}
    assert reasons == {"delta": "no loop of matrix products", "dkdv": "", "dq": reasons["delta"]}


def test_cpu_library_is_run(tmp_path):
    spec, buckets = AttentionSpec(dtype="float32", head_dim=16), ("tiny", "long")
    path = build([spec], "llvm", tmp_path / "kernels", buckets=buckets)
    assert "28 runs, nothing wrong" in call(path).stdout, "two forwards and two backwards"
    with pytest.raises(ValueError, match="library for CPUs"):
        predicted_loops(path)


def test_changed_ptx_is_refused(copy):
    (copy / PTX).write_bytes(b"nonsense")
    assert "sha256" in call(copy, status=2).stderr
    with pytest.raises(ArtifactError, match="sha256"):
        verify_library(copy)


def rewrite(path, pattern, replacement):
    """The PTX of ``path`` with the last match in the forward kernel replaced, and its hash."""
    texts, (_, manifest) = read_ptx(path), read_artifact(path)
    name = next(name for name in texts if "_fwd" in name)
    last = list(re.finditer(pattern, texts[name], re.MULTILINE))[-1]
    texts[name] = texts[name][: last.start()] + replacement + texts[name][last.end() :]
    write_manifest(path, replace(manifest, ptx_sha256=write_ptx(path, texts)))
    return texts[name]


def test_on_a_gpu(artifact, monkeypatch):
    """The interpreter in its place: what runs, and that what it wrote comes back."""
    pose(monkeypatch, capability=(9, 0))
    ran = []

    def interpreted(kernel, placed):
        ran.append(kernel.direction)
        with InterpretedDevice(opened(artifact), (9, 0)) as device:
            written = names(kernel.arguments, *WRITTEN)
            device.call(kernel, placed, outputs=written)

    monkeypatch.setattr(library, "_run_on_gpu", interpreted)
    monkeypatch.setattr(library, "_to_gpu", lambda tensor: tensor)
    assert "2 runs, nothing wrong" in call(artifact, "--gpu", "--quick").stdout
    assert ran == ["forward", "forward", "backward"]
    monkeypatch.setattr(library, "_run_on_gpu", lambda kernel, placed: None)
    assert "wrong" in call(artifact, "--gpu", "--quick", status=1).stdout, "nothing was written"


def test_gpus_that_a_library_does_not_serve(artifact, monkeypatch):
    pose(monkeypatch, capability=(12, 0))
    assert "this GPU is sm_120: build it for" in call(artifact, "--gpu", status=2).stderr
    assert "--gpu takes a library" in call("bf16,d=32", "--gpu", status=2).stderr
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA GPU here" in call(artifact, "--gpu", status=2).stderr


def test_missing_barrier_is_found(copy):
    rewrite(copy, r"^\s*bar(rier)?\.(cta\.)?sync.*?;$", "")
    done = call(copy, "--quick", status=1)
    found = re.search(r"fwd several_tiles: \w+: .*line \d+: .*thread \(\d+, 0, 0\)", done.stdout)
    assert found and "bwd several_tiles: ForwardFailed" in done.stdout
    document = _found(copy, "--quick", "--direction", "forward", status=1)
    run = document["verified"][0]["kernels"][0]["problems"][0]
    assert not document["ok"] and "PTX line" in run["failure"] and not run["errors"]


def test_wrong_number_is_found(copy):
    """Every access is right and the result is not."""
    rewrite(copy, r"ex2\.approx\.ftz\.f32", "tanh.approx.f32")
    done = call(copy, "--quick", "--direction", "forward", status=1)
    assert re.search(r"several_tiles: .*out: error \S+ exceeds", done.stdout)


def test_main_loops_of_a_spec_are_not_predicted():
    assert "needs a built library" in call("bf16,d=32", "--time", status=2).stderr


def test_a_bad_argument_is_explained():
    assert "sm_12345" in call("bf16,d=32", "--arch", "sm_12345", status=2).stderr
    assert "hexagonal" in call("bf16,hexagonal", status=2).stderr


def test_error_without_bound_is_valid_json():
    got = torch.tensor([torch.nan])
    exact = {"out": torch.zeros(1).double()}
    (held,) = deviations("float32", {"out": got}, exact, {"out": torch.zeros(1)})
    assert not held.ok and held.share == torch.inf
    assert not Deviation("out", 0.0, torch.nan).ok


@pytest.mark.parametrize("name", ["relative_bias", "tanh_gate", "document", "some_rows"])
def test_programs_are_the_functions_they_were_traced_from(name):
    (case,) = (case for case in CASES if case.name == name)
    functions = case.functions(torch.Generator().manual_seed(0))
    spec, tables = AttentionSpec.capture(dtype="float32", head_dim=16, **functions)
    kind = "score_mod" if spec.score_mod else "mask_mod"
    indices = [torch.randint(0, 2, (50,)), torch.randint(0, 2, (50,))]
    indices += [torch.randint(0, 60, (50,)), torch.randint(0, 60, (50,))]
    score = [torch.randn(50).double()] if spec.score_mod else []
    found = as_function(getattr(spec, kind), tables)(*score, *indices)
    torch.testing.assert_close(found, functions[kind](*score, *indices), atol=1e-6, rtol=1e-6)


def test_questions_are_equal_for_equal_seeds():
    first, again, other = (ask(SPEC, problems(16, 16)[0], seed) for seed in (0, 0, 1))
    assert torch.equal(first.exact["dq"], again.exact["dq"])
    assert not torch.equal(first.inputs.q, other.inputs.q)


def test_libraries_are_verified_without_tvm(artifact):
    code = (
        "import sys; sys.modules['tvm'] = None\n"
        "from tvm_flash.verify import verify_library\n"
        "assert verify_library(sys.argv[1], quick=True).ok"
    )
    command = [sys.executable, "-c", code, str(artifact)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
