"""One CUDA library: variants by architecture, resources, the spill gate, errors without a GPU."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from tvm_flash.artifact.library import MANIFEST, PTX, read_ptx, symbol_name, verify
from tvm_flash.cli.app import app
from tvm_flash.codegen.toolkit import find_toolkit
from tvm_flash.errors import ArtifactError, BuildError, UnsupportedSpec
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.runtime import kernels
from tvm_flash.runtime.loader import load, opened, registered

try:
    find_toolkit()
except BuildError as error:
    pytest.skip(f"no CUDA compiler: {error}", allow_module_level=True)

from cuda_toys import PARAMETERS, TOY, program, spilling_job, toy_job

from tvm_flash.codegen import cuda, jit
from tvm_flash.codegen.build import build_pairs
from tvm_flash.codegen.cuda_build import CudaJob, build_cuda
from tvm_flash.codegen.report import blocks_per_sm, instruction_mix, reports
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.backward_config import BackwardConfig
from tvm_flash.schedules.cuda.select import cuda_programs
from tvm_flash.verify.hook import InterpretedDevice
from tvm_flash.verify.library import verify_library
from tvm_flash.verify.plan import run_program
from tvm_flash.verify.pose import as_cuda

BUILT_FOR = (ARCHS["sm_80"], ARCHS["sm_90"])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """The toy's artifact: read only."""
    return build_cuda([toy_job()], BUILT_FOR, tmp_path_factory.mktemp("cuda") / "toy")


@pytest.fixture(scope="module")
def library(artifact):
    before = dict(registered)
    yield load(artifact)
    registered.clear()
    registered.update(before)


@pytest.fixture
def tensors():
    """A problem in the order of PARAMETERS: q is a slice of a wider tensor."""
    torch.manual_seed(0)
    q = torch.randn(2, 5, 3, 80, dtype=torch.float16)[..., :64]
    k = torch.randn(2, 7, 3, 64, dtype=torch.float16)
    out, lse = torch.empty(2, 5, 3, 64, dtype=torch.float16), torch.empty(2, 3, 5)
    return dict(zip(PARAMETERS, (q, k, k.clone(), out, lse), strict=False))


def assert_scaled(tensors, scale):
    want = (tensors["q"].float() * scale).half()
    assert torch.equal(tensors["out"], want)
    assert torch.equal(tensors["lse"], want[..., 0].float().transpose(1, 2))


def test_program_runs_from_its_ptx(tensors):
    toy = program("toy", "a", 64)
    assert len(run_program(toy, cuda.ptx_of(toy), {**tensors, PARAMETERS[-1]: 0.5})) == 2
    assert_scaled(tensors, 0.5)


@pytest.mark.parametrize(
    ("capability", "variant"),
    [((8, 0), "a"), ((8, 9), "a"), ((9, 0), "b"), ((10, 3), "b"), ((12, 0), "b")],
    ids=str,
)
def test_library_runs_the_variant_of_the_device(library, tensors, capability, variant):
    with InterpretedDevice(library, capability) as device:
        device.call(library.kernels[0], {**tensors, PARAMETERS[-1]: 0.25}, outputs=("out", "lse"))
    assert [name.rsplit("_", 3)[1] for name in device.launched] == [variant, variant]
    assert_scaled(tensors, 0.25)


def test_device_that_is_too_old(library, tensors):
    with (
        InterpretedDevice(library, (7, 5)) as device,
        pytest.raises(RuntimeError, match=r"7\.5: build for target cuda:sm_75.*sm_80, sm_90"),
    ):
        device.call(library.kernels[0], {**tensors, PARAMETERS[-1]: 1.0}, outputs=())


def test_wrong_arguments(library, tensors):
    kernel = library.kernels[0]
    with pytest.raises(ValueError, match="argument 0 must be a CUDA tensor"):
        kernel(*tensors.values(), 1.0)
    with pytest.raises(TypeError, match="takes 6 arguments, was given 2"):
        kernel(as_cuda(tensors["q"]), 1.0)
    tensors["lse"] = tensors["lse"].half()
    with InterpretedDevice(library, (8, 0)) as device, pytest.raises(Exception, match="float32"):
        device.call(kernel, {**tensors, PARAMETERS[-1]: 1.0}, outputs=("out", "lse"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_error_says_so(library, tensors):
    with pytest.raises(RuntimeError, match="CUDA cannot be used"):
        library.kernels[0](*map(as_cuda, tensors.values()), 1.0)


def test_manifest(artifact):
    manifest = verify(artifact)[1]
    assert manifest.device == "cuda"
    assert manifest.target["archs"] == ["sm_80", "sm_90"]
    assert manifest.cpu_features == () and manifest.versions["nvcc"]
    launches = {launch["name"]: launch for launch in manifest.kernels[0].launches}
    scale = launches["attn_f16_d64_fwd_a_scale"]
    assert scale["resources"]["sm_80"]["registers"] > 0
    assert (scale["threads"], scale["archs"]) == (64, ["sm_80"])
    assert set(read_ptx(artifact)) == {f"{name}_kernel" for name in launches}


def test_kernel_of_a_cuda_library(library):
    kernel = registered[TOY.name, "forward", "cuda", "long"]
    assert kernel is library.kernels[0] and kernel.device == "cuda"
    shapes = replace(kernel, direction="backward_deterministic").shapes((2, 3, 1, 70, 9), threads=8)
    assert shapes["delta"] == (2, 3, 70) and "dq_acc" not in shapes


def test_workspaces_of_variants_that_pad_differently(tmp_path):
    """Callers make the widest; the variant of each device takes what it needs of it."""
    spec = AttentionSpec(dtype="float16", head_dim=40)
    configs = {"sm_80": BackwardConfig(64, 64), "sm_86": BackwardConfig(64, 64, 8, 2)}

    def programs(archs, choice):
        return [
            pair
            for arch in archs
            for pair in cuda_programs(spec, "backward", [arch], configs[arch.name].to_json())
        ]

    archs = tuple(ARCHS[name] for name in configs)
    job = CudaJob(symbol_name(spec, "backward"), spec, "backward", archs, programs)
    path = build_cuda([job], archs, tmp_path / "widths")
    (kernel,) = opened(path).kernels
    widths = [variant["meta"]["head_dim_pad"] for variant in kernel.config["variants"]]
    assert sorted(widths) == [48, 64]
    assert kernel.shapes((1, 2, 1, 65, 9), threads=8)["dq_acc"] == (1, 1, 2, 128, 64)
    found = verify_library(path, quick=True)
    assert len(found.kernels) == 2 and found.ok, [k.worst for k in found.kernels]


def test_corrupt_ptx_is_refused_when_it_is_read_only(artifact, tmp_path):
    copy = shutil.copytree(artifact, tmp_path / "copy")
    (copy / PTX).write_bytes(b"nonsense")
    verify(copy)
    with pytest.raises(ArtifactError, match="sha256"):
        read_ptx(copy)


def test_artifact_of_another_system_is_refused(artifact, tmp_path):
    copy = shutil.copytree(artifact, tmp_path / "copy")
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["target"]["system"] = "plan9"
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="plan9"):
        load(copy)


def test_the_same_programs_give_the_same_library(artifact, tmp_path):
    again = build_cuda([toy_job()], BUILT_FOR, tmp_path / "again")
    assert (again / "kernels.so").read_bytes() == (artifact / "kernels.so").read_bytes()
    assert (again / PTX).read_bytes() == (artifact / PTX).read_bytes()


def test_spilling_kernel_is_refused_unless_it_may(tmp_path):
    job = spilling_job()
    with pytest.raises(BuildError, match=r"attn_f16_d64_fwd_spill .*sm_80: .*spill.*allow_spills"):
        build_cuda([job], BUILT_FOR[:1], tmp_path / "spill")
    assert list(tmp_path.iterdir()) == []
    allowed = ["attn_f16_d64_fwd_spill"]
    path = build_cuda([job], BUILT_FOR[:1], tmp_path / "spill", allow_spills=allowed)
    assert reports(path)[0].resources.in_local_memory > 0


def test_where_the_best_config_spills_the_next_is_taken(tmp_path):
    path = build_cuda([spilling_job(better=True)], BUILT_FOR[:1], tmp_path / "better")
    names = [launch["name"] for launch in verify(path)[1].kernels[0].launches]
    assert names == ["attn_f16_d64_fwd_a_scale", "attn_f16_d64_fwd_a_first"]


@pytest.mark.sweep
def test_some_backward_of_wide_float32_drops_without_spills(tmp_path):
    spec = AttentionSpec(dtype="float32", head_dim=128, dropout=True)
    build_pairs([(spec, "backward")], "cuda:sm_90", tmp_path / "kernels")


def test_report(artifact):
    report = reports(artifact)[0]
    assert report.to_json()["instructions"]["st.global"] >= 1
    assert 0 < report.occupancy <= 1


def test_occupancy_of_known_kernels():
    # 128 registers x 128 threads fill a quarter of the register file; 64 KiB fit 3 times in 228.
    assert blocks_per_sm(ARCHS["sm_90"], 128, 128, 24 * 1024) == (4, "registers")
    assert blocks_per_sm(ARCHS["sm_90"], 128, 128, 64 * 1024) == (3, "shared memory")
    assert blocks_per_sm(ARCHS["sm_86"], 32, 512, 0) == (3, "threads")


def test_instruction_mix():
    ptx = """
        ld.global.u32 %r1, [%rd1];
        @%p1 bra $L1;
        mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f1}, {%r1}, {%r2}, {%f1};
        ex2.approx.ftz.f32 %f2, %f1;
    """
    mix = instruction_mix(ptx)
    assert mix == {"mma": 1, "ld.global": 1, "ex2": 1, "branch": 1, "all": 4}


def test_progress_and_failures(tmp_path):
    seen = []
    build_cuda([toy_job()], BUILT_FOR, tmp_path / "toy", lambda *step: seen.append(step))
    assert seen == [(1, 1, "attn_f16_d64_fwd")]
    with pytest.raises(BuildError, match="no kernels"):
        build_cuda([], BUILT_FOR, tmp_path / "none")


@pytest.fixture
def toys_for_schedules(monkeypatch, tmp_path):
    """The toy takes the place of what schedules give; no kernel is in memory or on disk."""
    asked = []

    def cuda_programs(spec, direction, archs, choice, folders):
        asked.append((direction, [arch.name for arch in archs]))
        symbol = f"{spec.name}_{direction}"
        return [(archs, program(symbol, "a", 64))]

    name = "tvm_flash.schedules.cuda.select"
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(cuda_programs=cuda_programs))
    monkeypatch.setattr(kernels, "registered", {})
    monkeypatch.setattr("tvm_flash.runtime.loader.registered", kernels.registered)
    return asked


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TVM_FLASH_CACHE_DIR", str(tmp_path / "cache"))


def test_compiled_at_first_use_for_the_gpu_at_hand(toys_for_schedules, empty_cache):
    first = kernels.resolve(TOY, "forward", "cuda", (8, 9))
    assert first.device == "cuda"
    assert kernels.resolve(TOY, "forward", "cuda", (8, 9)) is first
    other = kernels.resolve(TOY, "forward", "cuda", (9, 0))
    assert other is not first and kernels.resolve(TOY, "forward", "cuda", (8, 9)) is first
    kernels._of_capability.clear()
    assert kernels.resolve(TOY, "forward", "cuda", (8, 9)) is not first
    assert toys_for_schedules == [("forward", ["sm_89"]), ("forward", ["sm_90a"])]


@pytest.mark.parametrize(
    ("capability", "arch"),
    [
        ((8, 0), "sm_80"),
        ((8, 7), "sm_86"),
        ((9, 0), "sm_90a"),
        ((10, 3), "sm_100"),
        ((11, 0), "sm_100"),
    ],
    ids=str,
)
def test_arch_to_build_for(capability, arch):
    assert jit.arch_for(capability).name == arch


def test_what_cannot_be_compiled_at_first_use(toys_for_schedules, monkeypatch):
    with pytest.raises(UnsupportedSpec, match=r"6\.1: kernels need 7\.5"):
        kernels.resolve(TOY, "forward", "cuda", (6, 1))
    with pytest.raises(ValueError, match="capability"):
        kernels.resolve(TOY, "forward", "cuda")

    def no_toolkit():
        raise BuildError("no CUDA compiler; `pip install tvm-flash[cuda]`")

    monkeypatch.setattr("tvm_flash.codegen.toolkit.find_toolkit", no_toolkit)
    with pytest.raises(UnsupportedSpec, match=r"tvm-flash\[cuda\].*tvm_flash\.load"):
        kernels.resolve(TOY, "forward", "cuda", (8, 0))


def test_cpu_takes_one_kernel_for_both_backwards(monkeypatch):
    kernel = object()
    monkeypatch.setattr(kernels, "registered", {(TOY.name, "backward", "cpu", "long"): kernel})
    assert kernels.resolve(TOY, "backward_deterministic") is kernel


def test_command_line(toys_for_schedules, tmp_path):
    (tmp_path / "specs.txt").write_text("fp16,d=64\n")
    command = ["build", "--specs", str(tmp_path / "specs.txt"), "--deterministic"]
    command += ["--target", "cuda:sm_80,sm_90", "-o", str(tmp_path / "kernels")]
    done = CliRunner().invoke(app, [*command, "--verbose"], terminal_width=200)
    assert done.exit_code == 0, done.output
    assert "3 kernels for cuda sm_80 sm_90" in done.output
    assert "registers" in done.output and "ldmatrix" in done.output
    directions = ["forward", "backward", "backward_deterministic"]
    assert toys_for_schedules == [(d, ["sm_80", "sm_90"]) for d in directions]
    document = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert document["report"][0]["resources"]["registers"] > 0


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs binutils")
def test_library_needs_and_exports_little(library):
    def readelf(flag):
        command = ["readelf", "-W", flag, str(library.path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    allowed = r"libtvm_ffi|libstdc\+\+|libgcc_s|libc\.|libm\.|libdl|librt|libpthread|ld-linux"
    needed = re.findall(r"NEEDED.*\[(.*?)\]", readelf("-d"))
    assert [name for name in needed if not re.match(allowed, name)] == []
    defined = re.findall(r"(?:FUNC|OBJECT)\s+GLOBAL\s+DEFAULT\s+\d+ (\S+)", readelf("--dyn-syms"))
    ours = ["__tvm_ffi_tvm_flash_arranged", "tvm_flash_set_launch_hook"]
    assert sorted(defined) == ["__tvm_ffi_attn_f16_d64_fwd", *ours]
    assert not hasattr(ctypes.CDLL(str(library.path)), "cudaLaunchKernelExC")
