"""Running needs torch, numpy and tvm_ffi: proved in an environment that has nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

import tvm_flash
from tvm_flash.problem.spec import AttentionSpec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps"),
]

ALLOWED = ("torch", "numpy", "apache-tvm-ffi")


def requirements(names: tuple[str, ...]) -> set[str]:
    """``names`` and everything installed that they require, extras left out."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            todo += [re.match(r"[\w.-]+", need)[0] for need in needs if "extra ==" not in need]
    return found


def top_level_files(name: str) -> set[Path]:
    """What the distribution ``name`` put into site-packages itself."""
    dist = distribution(name)
    site = Path(str(dist.locate_file("")))
    tops = {
        file.parts[0] for file in dist.files or [] if file.parts[0] not in ("..", "__pycache__")
    }
    return {site / top for top in tops}


@pytest.fixture(scope="module")
def runtime_python(tmp_path_factory) -> Path:
    """Python of a virtual environment with links to the allowed packages and to tvm_flash alone."""
    home = tmp_path_factory.mktemp("runtime") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    site = next(home.glob("lib/python*/site-packages"))
    for name in requirements(ALLOWED):
        for path in top_level_files(name):
            if not (site / path.name).exists():
                (site / path.name).symlink_to(path)
    # The package itself, without the folders beside it that build: schedules and codegen.
    (site / "tvm_flash").symlink_to(Path(tvm_flash.__file__).parent)
    return home / "bin" / "python"


def run(python: Path, program: str) -> dict:
    """The JSON that ``program`` prints last, with what the process had loaded by then."""
    epilogue = """
        import json, sys
        maps = open("/proc/self/maps").read().split()
        result["libraries"] = sorted({w.rpartition("/")[2] for w in maps if "libtvm" in w})
        names = [n for n in sys.modules if n.partition(".")[0] == "tvm"]
        result["modules"] = names + [n for n in sys.modules if "codegen" in n or "schedules" in n]
        print(json.dumps(result))
    """
    text = textwrap.dedent(program) + textwrap.dedent(epilogue)
    command = [str(python), "-I", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_runtime_alone(result: dict) -> None:
    assert result["modules"] == []
    assert result["libraries"]
    allowed = {"libtvm_ffi.so", "libtvm_ffi_testing.so"}
    assert set(result["libraries"]) <= allowed


def test_the_environment_has_no_tvm(runtime_python):
    program = """
        from importlib.util import find_spec
        import tvm_flash, torch, tvm_ffi
        result = {"tvm": find_spec("tvm") is not None, "where": tvm_flash.__file__}
    """
    result = run(runtime_python, program)
    assert not result["tvm"]
    assert result["where"].startswith(str(runtime_python.parents[1]))
    assert_runtime_alone(result)


def test_artifact_runs(runtime_python, toy_artifact):
    program = f"""
        import torch
        from tvm_flash.runtime.loader import load
        from tvm_flash.runtime.openmp import torch_openmp
        kernel = load({str(toy_artifact)!r}).kernels[0]
        a = torch.randn(1000, 64)
        b = torch.empty_like(a)
        kernel(a, b, 2.0)
        result = dict(equal=torch.equal(b, a.flip(1) * 2), openmp=torch_openmp() is not None)
    """
    result = run(runtime_python, program)
    assert result["equal"]
    assert result["openmp"]
    assert_runtime_alone(result)


@pytest.fixture(scope="module")
def attention_artifact(tmp_path_factory) -> Path:
    """Causal float32 attention, forward and backward."""
    from tvm_flash.codegen.build import build

    spec = AttentionSpec(dtype="float32", head_dim=32, causal=True)
    return build([spec], "llvm", tmp_path_factory.mktemp("attention") / "kernels")


def test_attention_trains(runtime_python, attention_artifact):
    program = f"""
        import torch, tvm_flash
        tvm_flash.load({str(attention_artifact)!r})
        q, k, v, dout = torch.randn(4, 2, 70, 3, 32)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        exact = [x.detach().double().transpose(1, 2).requires_grad_() for x in leaves]
        out = tvm_flash.attention(*leaves, causal=True)
        out.backward(dout)
        sdpa = torch.nn.functional.scaled_dot_product_attention
        expected = sdpa(*exact, is_causal=True).transpose(1, 2)
        expected.backward(dout.double())
        pairs = [(a.grad, b.grad.transpose(1, 2)) for a, b in zip(leaves, exact)]
        result = dict(errors=[(a - b).abs().max().item() for a, b in [(out, expected), *pairs]])
    """
    result = run(runtime_python, program)
    assert max(result["errors"]) < 1e-5
    assert_runtime_alone(result)


def test_kernel_that_was_not_loaded_says_what_to_do(runtime_python, toy_jobs):
    program = f"""
        from tvm_flash.errors import UnsupportedSpec
        from tvm_flash.runtime.kernels import resolve
        from tvm_flash.problem.spec import AttentionSpec
        try:
            resolve(AttentionSpec.from_json({toy_jobs[0].spec.to_json()!r}), "forward")
        except UnsupportedSpec as error:
            result = {{"message": str(error)}}
    """
    result = run(runtime_python, program)
    said = result["message"]
    assert "forward of fp32,d=64 (attn_f32_d64) for CPUs; loaded: none" in said
    assert "compiles none" in said and "`tvm-flash build fp32,d=64 -o kernels`" in said
    assert_runtime_alone(result)


def test_doctor_needs_no_more(runtime_python):
    command = [str(runtime_python), "-I", "-m", "tvm_flash"]
    done = subprocess.run([*command, "doctor"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "works here, run: yes\nworks here, compile: no: tvm" in done.stdout
    assert "pip install 'tvm-flash[compile]'" in done.stdout
    done = subprocess.run([*command, "cache", "path"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: the command line needs") and "doctor" in done.stderr
