"""Kernels beside attention in libraries: built ahead of time, verified, loaded."""

import pytest
import torch

from tvm_flash import AttentionSpec, build, linear_attention
from tvm_flash.errors import UnsupportedSpec
from tvm_flash.runtime import loader
from tvm_flash.runtime.kernels import resolve
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.kernels import SCHEDULES
from tvm_flash.verify.library import verify_library


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    specs = [AttentionSpec(dtype="bfloat16", head_dim=24, head_dim_v=16, causal=True)]
    path = tmp_path_factory.mktemp("linear") / "kernels"
    build(specs, path=path, directions=("linear",))
    rows = build([AttentionSpec(dtype="float16", head_dim=8)], path=path.with_name("rows"),
                 directions=("softmax",))  # fmt: skip
    return path, rows


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
    q, k = (torch.rand(1, 5, 2, 24, dtype=torch.bfloat16) for _ in range(2))
    assert linear_attention(q, k, q[..., :16], causal=True).isfinite().all()


def test_what_gpus_lack():
    spec = AttentionSpec(dtype="float16", head_dim=64)
    with pytest.raises(UnsupportedSpec, match="multiplied in tf32, which begins with sm_80"):
        SCHEDULES.defaults(spec, "linear", ARCHS["sm_75"])
