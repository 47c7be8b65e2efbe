"""A library for sm_80, sm_90 and sm_90a: its host code encodes tensor maps, and picks by device."""

from __future__ import annotations

import pytest
import torch

from tvm_flash.artifact.library import read_ptx
from tvm_flash.codegen.toolkit import find_toolkit
from tvm_flash.errors import BuildError
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.reference import attention_reference
from tvm_flash.runtime.loader import load, registered
from tvm_flash.verify.rule import allowed_error, largest_error

try:
    find_toolkit()
except BuildError as error:
    pytest.skip(f"no CUDA compiler: {error}", allow_module_level=True)

from tvm_flash.codegen.build import build
from tvm_flash.verify.hook import InterpretedDevice
from tvm_flash.verify.library import verify_library

SPEC = AttentionSpec(dtype="bfloat16", head_dim=64, causal=True)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hopper") / "kernels"
    before = dict(registered)
    yield load(build([SPEC], "cuda:sm_80,sm_90,sm_90a", folder, directions=("forward",)))
    registered.clear()
    registered.update(before)


def call_of(seqlen_q, seqlen_k):
    """Arguments of a call on views of a packed tensor, by name."""
    torch.manual_seed(0)
    q = torch.randn(2, seqlen_q, 4, 64).bfloat16()
    packed = torch.randn(2, seqlen_k, 6, 64).bfloat16()
    call = {"q": q, "k": packed[:, :, :2], "v": packed[:, :, 3:5], "out": torch.empty_like(q)}
    return call | {"lse": torch.empty(2, 4, seqlen_q), "softmax_scale": 64**-0.5}


@pytest.mark.parametrize("capability", [(8, 6), (9, 0)], ids=str)
def test_each_device_takes_the_code_made_for_it(library, capability):
    call, (kernel,) = call_of(70, 200), library.kernels
    with InterpretedDevice(library, capability, seed=1) as device:
        device.call(kernel, call, outputs=("out", "lse"))
    (launched,) = device.launched
    assert ("wgmma" in device.ptx[launched]) == (capability == (9, 0))
    inputs = call["q"], call["k"], call["v"]
    exact, _ = attention_reference(*inputs, causal=True, upcast=torch.float64)
    plain, _ = attention_reference(*inputs, causal=True)
    assert largest_error(call["out"], exact) <= allowed_error("out", "bfloat16", exact, plain)


def test_its_instructions_are_of_one_device(library):
    """No other one may be given that PTX: its name ends with the letter."""
    targets = {
        text.split(".target ")[1].split()[0] for text in read_ptx(library.path.parent).values()
    }
    assert targets == {"sm_80", "sm_90a"}
    call, (kernel,) = call_of(70, 200), library.kernels
    with InterpretedDevice(library, (10, 0)) as device:
        device.call(kernel, call, outputs=("out", "lse"))
    assert "wgmma" not in device.ptx[device.launched[0]]


def test_what_only_later_devices_take_is_verified_too(library):
    """A 9.0 device takes what is for sm_90a, a 10.0 one what is for sm_90, by its PTX."""
    found = verify_library(library.path.parent, archs=["sm_90"], quick=True)
    assert found.ok, [outcome.failure for k in found.kernels for outcome in k.outcomes]


def test_architectures_are_named_as_they_were_asked_for(library):
    call, (kernel,) = call_of(5, 7), library.kernels
    with InterpretedDevice(library, (7, 5)) as device, pytest.raises(Exception, match="sm_90a"):
        device.call(kernel, call, outputs=("out", "lse"))


def test_keys_without_rows_have_no_map(library):
    """The driver refuses an extent of 0, and no kernel asks for what is not there."""
    call, (kernel,) = call_of(5, 0), library.kernels
    with InterpretedDevice(library, (9, 0)) as device:
        device.call(kernel, call, outputs=("out", "lse"))
    assert len(device.launched) == 1
    assert torch.all(call["out"] == 0) and torch.all(call["lse"] == -torch.inf)
