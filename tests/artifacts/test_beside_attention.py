"""Kernels beside attention in libraries: built ahead of time, verified, loaded."""

import json
import re

import pytest
import torch
from typer.testing import CliRunner

from tvm_flash import AttentionSpec, linear_attention
from tvm_flash.artifact.library import KernelRecord
from tvm_flash.cli.app import app
from tvm_flash.errors import UnsupportedSpec
from tvm_flash.runtime import kernels, loader
from tvm_flash.runtime.kernels import resolve
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.kernels import SCHEDULES
from tvm_flash.verify.library import verify_library


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """As the command builds them."""
    path = tmp_path_factory.mktemp("linear") / "kernels"
    paths = path, path.with_name("rows")
    for words, one in zip(
        ("bf16,d=24,dv=16,causal,linear", "fp16,row_softmax"), paths, strict=True
    ):
        done = CliRunner().invoke(app, ["build", words, "-o", str(one)])
        assert done.exit_code == 0, done.output
    return paths


def test_a_built_library_is_verified(library):
    for path in library:
        found = verify_library(path)
        assert found.ok, [o.failure for k in found.kernels for o in k.outcomes]


def test_a_wrong_kernel_is_found(library, monkeypatch):
    def off(self, *args):
        self.function(*args)
        args[10 if self.direction == "linear" else 1].mul_(1.05)

    monkeypatch.setattr(loader.Kernel, "__call__", off)
    assert not any(verify_library(path).ok for path in library)


def test_the_operator_takes_a_loaded_kernel(library, monkeypatch):
    monkeypatch.setattr(loader, "registered", loader.registered)
    kernel = loader.load(library[0]).kernels[0]
    assert resolve(kernel.spec, "linear") is kernel

    def refuse(*_):
        raise AssertionError("a kernel is missing")

    monkeypatch.setattr(kernels, "_compiler", refuse)
    q, k = (torch.rand(1, 5, 2, 24, dtype=torch.bfloat16).requires_grad_() for _ in range(2))
    linear_attention(q, k, q[..., :16], causal=True).sum().backward()
    assert q.grad.isfinite().all() and k.grad.isfinite().all()


@pytest.mark.parametrize(
    ("spec", "direction", "device", "command"),
    [
        ({"causal": True, "computes": "linear"}, "linear", "cpu", "bf16,d=16,causal,linear"),
        pytest.param({"computes": "linear"}, "linear", "cuda", "bf16,d=16,linear",
                     marks=pytest.mark.sweep),
        pytest.param({"alibi": True, "learned": (0,)}, "tables_deterministic", "cuda",
                     "bf16,d=16,alibi,learned", marks=pytest.mark.sweep),
    ],
)  # fmt: skip
def test_what_is_missing_names_its_command(spec, direction, device, command, monkeypatch, tmp_path):
    monkeypatch.setattr(kernels, "find_spec", lambda _: None)
    spec = AttentionSpec(dtype="bfloat16", head_dim=16, **spec)
    with pytest.raises(UnsupportedSpec) as error:
        resolve(spec, direction, device)
    found = re.search("`tvm-flash (build .*)`", str(error.value)).group(1)
    assert found.startswith(f"build {command} ") and found.endswith(" -o kernels")
    monkeypatch.undo()
    words = found.removesuffix("kernels").split()
    build = CliRunner().invoke(app, [*words, str(tmp_path / "kernels"), "--json"])
    assert build.exit_code == 0, build.output
    held = [KernelRecord.from_json(kernel) for kernel in json.loads(build.stdout)["kernels"]]
    assert (spec, direction) in [(kernel.spec, kernel.direction) for kernel in held]


def test_what_gpus_lack():
    spec = AttentionSpec(dtype="float32", head_dim=64, computes="linear")
    with pytest.raises(UnsupportedSpec, match="no float32 products on its tensor cores"):
        SCHEDULES.defaults(spec, "linear", ARCHS["sm_75"])
