"""A backward for sm_80 and sm_90a in one library, whose callers make one dq_acc for both."""

from __future__ import annotations

import pytest
import torch

from tvm_flash.codegen.toolkit import find_toolkit
from tvm_flash.errors import BuildError
from tvm_flash.problem.arguments import arguments, shape_of, size_values
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

SIZES = (2, 4, 2, 150, 200)  # batch, heads, kv_heads, seqlen_q, seqlen_k
GRADIENTS = ("dq", "dk", "dv")


def call_of(spec, direction, meta):
    """(arguments of a call by name, gradients in float64 and in plain torch)."""
    torch.manual_seed(0)
    b, h, hk, sq, sk = SIZES
    shapes = (sq, h), (sk, hk), (sk, hk)
    leaves = [torch.randn(b, *s, spec.head_dim).bfloat16().requires_grad_() for s in shapes]
    dout = torch.randn(b, sq, h, spec.head_dim).bfloat16()
    exact, plain = (
        (out, lse, *torch.autograd.grad(out, leaves, dout.to(out.dtype)))
        for out, lse in (
            attention_reference(*leaves, causal=True, upcast=torch.float64),
            attention_reference(*leaves, causal=True),
        )
    )
    q, k, v = (x.detach() for x in leaves)
    call = {"q": q, "k": k, "v": v, "out": exact[0].detach().bfloat16(), "dout": dout,
            "lse": exact[1].detach().float(), "dlse": torch.zeros(b, h, sq),
            "softmax_scale": spec.head_dim**-0.5}  # fmt: skip
    values = size_values(spec, SIZES, meta)
    for argument in arguments(spec, direction):
        if argument.name not in call:
            dtype = torch.float32 if argument.name in ("delta", "dq_acc") else torch.bfloat16
            call[argument.name] = torch.zeros(shape_of(argument, values), dtype=dtype)
    ordered = {argument.name: call[argument.name] for argument in arguments(spec, direction)}
    return ordered, exact[2:], plain[2:]


@pytest.mark.parametrize("dim", [64, 80])
@pytest.mark.parametrize("direction", ["backward", "backward_deterministic"])
@pytest.mark.sweep
def test_each_device_takes_its_own(dim, direction, tmp_path):
    spec, before = AttentionSpec(dtype="bfloat16", head_dim=dim, causal=True), dict(registered)
    library = load(build([spec], "cuda:sm_80,sm_90a", tmp_path / "k", directions=(direction,)))
    (kernel,) = library.kernels
    for capability in ((8, 0), (9, 0)):
        call, exact, plain = call_of(spec, direction, kernel.meta)
        with InterpretedDevice(library, capability, seed=1) as device:
            device.call(kernel, call, outputs=("delta", "dq_acc", *GRADIENTS))
        by_groups = [name for name in device.launched if "wgmma" in device.ptx[name]]
        assert len(by_groups) == (capability == (9, 0)) * (1 + (direction != "backward"))
        for name, right, torchs in zip(GRADIENTS, exact, plain, strict=True):
            allowed = allowed_error(name, "bfloat16", right, torchs)
            assert largest_error(call[name], right) <= allowed, (capability, name)
    registered.clear()
    registered.update(before)
