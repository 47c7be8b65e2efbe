"""The folder that Hugging Face's kernels library loads: all that it needs, and nothing else."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import small_artifact

from tvm_flash.codegen import shipped
from tvm_flash.codegen.kernels_repo import runtime_sources, write_kernels_repo
from tvm_flash.errors import BuildError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="repositories are made on Linux")

# As kernels.importer does: the folder becomes a package, under the name that metadata.json says.
LOADED = """
import importlib.util, json, sys, torch
from pathlib import Path
path = Path(sys.argv[1])
name = json.loads((path / "metadata.json").read_text())["id"]
spec = importlib.util.spec_from_file_location(name, path / "__init__.py")
module = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
"""
# SPEC of small_artifact: a forward alone.
USED = """
q, k, v = torch.randn(3, 2, 20, 3, 16)
out = module.flash_attn_func(q, k, v)
exact = torch.softmax(torch.einsum("bihd,bjhd->bhij", q, k).double() / 4, -1)
error = (out - torch.einsum("bhij,bjhd->bihd", exact, v.double())).abs().max().item()
try:
    module.flash_attn_func(q, k, v, causal=True)
except NotImplementedError as refused:
    said = str(refused)
names = sorted({name.partition(".")[0] for name in sys.modules if "tvm" in name})
print(json.dumps({"error": error, "said": said, "names": names, "public": module.__all__}))
"""


@pytest.fixture
def variant(tmp_path, monkeypatch) -> Path:
    """The variant for CPUs, with one kernel, linked by whatever compiler there is."""
    monkeypatch.setattr(shipped, "require_portable", lambda *_: None)
    (path,) = write_kernels_repo([small_artifact.compiled()], tmp_path / "repo")
    return path


def test_it_runs_alone(variant):
    command = [sys.executable, "-I", "-c", LOADED + USED, str(variant)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["error"] < 1e-5
    assert not {"tvm", "tvm_flash"} & {*found["names"]}
    assert "forward of fp32,d=16,causal" in found["said"] and "compiles none" in found["said"]
    functions = {"flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"}
    assert functions <= set(found["public"])


def test_metadata_says_what_the_files_are(variant):
    metadata = json.loads((variant / "metadata.json").read_text())
    assert metadata["id"].isidentifier() and metadata["backend"] == {"type": "cpu"}
    files = {
        path.relative_to(variant).as_posix(): base64.b64encode(
            hashlib.sha256(path.read_bytes()).digest()
        ).decode()
        for path in variant.rglob("*")
        if path.is_file() and path.name != "metadata.json"
    }
    assert metadata["digest"] == {"algorithm": "sha256", "files": files}


def test_a_variant_is_not_replaced(variant):
    with pytest.raises(BuildError, match="exists: remove it"):
        write_kernels_repo([small_artifact.compiled()], variant.parents[1])


def test_every_file_that_is_imported_is_there():
    """Inside functions too; but for what compiles, which is asked for only where it is."""
    sources = runtime_sources()
    modules = {tuple(name.removesuffix(".py").split("/")) for name in sources}
    modules |= {parts[:-1] for parts in modules if parts[-1] == "__init__"}
    missing = set()
    for name, path in sources.items():
        package = tuple(name.split("/")[:-1])
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = package[: len(package) - node.level + 1]
                target = (*base, *(node.module.split(".") if node.module else ()))
                asked = {(*target, alias.name) for alias in node.names} - {("__version__",)}
                missing |= {found for found in asked if not {target, found} & modules}
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("tvm_flash") for alias in node.names), name
    assert {parts[0] for parts in missing} <= {"codegen"}, missing


@pytest.mark.slow
@pytest.mark.sweep
def test_kernels_loads_it(tmp_path):
    """With the kernels that its functions call, linked for an old glibc."""
    kernels = pytest.importorskip("kernels")
    pytest.importorskip("ziglang")
    specs = ["fp32,d=16,causal", "fp32,d=16,causal,packed", "fp32,d=16,causal,paged"]
    options = [
        "--kernels-repo",
        "--target",
        "llvm",
        "--buckets",
        "long",
        "-o",
        str(tmp_path / "repo"),
    ]
    command = [sys.executable, "-m", "tvm_flash", "build", *specs, *options]
    subprocess.run(command, check=True)
    module = kernels.get_local_kernel(tmp_path / "repo")
    import torch

    q, k, v, dout = torch.randn(4, 2, 70, 3, 16)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = module.flash_attn_func(*leaves, causal=True)
    out.backward(dout)
    exact = [x.double().transpose(1, 2).requires_grad_() for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(*exact, is_causal=True)
    expected.backward(dout.double().transpose(1, 2))
    expected = expected.detach().transpose(1, 2)
    assert (out - expected).abs().max() < 1e-5
    for leaf, right in zip(leaves, exact, strict=True):
        assert (leaf.grad - right.grad.transpose(1, 2)).abs().max() < 1e-5
    ends = torch.tensor([0, 70, 140], dtype=torch.int32)
    rows = [x.flatten(0, 1) for x in (q, k, v)]
    packed = module.flash_attn_varlen_func(*rows, ends, ends, 70, 70, causal=True)
    assert (packed.view_as(expected) - expected).abs().max() < 1e-5
    caches = torch.zeros(2, 2, 128, 3, 16)
    lengths = torch.zeros(2, dtype=torch.int32)
    cached = module.flash_attn_with_kvcache(q, *caches, k, v, cache_seqlens=lengths, causal=True)
    assert (cached - expected).abs().max() < 1e-5
