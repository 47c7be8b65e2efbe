"""Attention from a library as it ships, on an interpreted GPU: host code, dispatch and kernels."""

from __future__ import annotations

import pytest
import torch

from tvm_flash.codegen.toolkit import find_toolkit
from tvm_flash.errors import BuildError
from tvm_flash.problem.arguments import WRITTEN, names, values_before
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.reference import attention_reference
from tvm_flash.runtime.arranged import arranged
from tvm_flash.runtime.call import completed, new_tensors
from tvm_flash.runtime.loader import load, registered
from tvm_flash.verify.rule import allowed_error, largest_error

try:
    find_toolkit()
except BuildError as error:
    pytest.skip(f"no CUDA compiler: {error}", allow_module_level=True)

from tvm_flash.codegen.build import build
from tvm_flash.verify.hook import InterpretedDevice

SPEC = AttentionSpec(dtype="bfloat16", head_dim=64, causal=True)
SCALE = 64**-0.5
DIRECTIONS, SPLIT = ("forward", "backward", "backward_deterministic"), "forward_split"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """(library, its kernels by direction) for two architectures."""
    folder = tmp_path_factory.mktemp("attention") / "kernels"
    before = dict(registered)
    library = load(build([SPEC], "cuda:sm_80,sm_90", folder, directions=(*DIRECTIONS, SPLIT)))
    yield library, {kernel.direction: kernel for kernel in library.kernels}
    registered.clear()
    registered.update(before)


@pytest.fixture(scope="module")
def problem():
    """q, k, v as views of packed tensors, dout, and the exact results."""
    torch.manual_seed(0)
    packed = torch.randn(1, 100, 8, 64).bfloat16()
    q = torch.randn(1, 70, 4, 64).bfloat16()
    dout = torch.randn_like(q)
    inputs = (q, packed[:, :, :2], packed[:, :, 4:6])
    exact = [x.double().requires_grad_() for x in inputs]
    out, lse = attention_reference(*exact, causal=True, upcast=torch.float64)
    grads = torch.autograd.grad(out, exact, dout.double())
    return inputs, dout, out.detach(), lse.detach(), grads


@pytest.fixture(scope="module")
def bounds(problem):
    """Twice the error of torch's own arithmetic in bfloat16, for out and the gradients."""
    inputs, dout, out, _, grads = problem
    plain = [x.clone().requires_grad_() for x in inputs]
    plain_out, _ = attention_reference(*plain, causal=True)
    plain_grads = torch.autograd.grad(plain_out, plain, dout)
    pairs = zip((out, *grads), (plain_out.detach(), *plain_grads), strict=True)
    # A gradient is held to an output's factor of 2, not to the rule's 3.
    return [allowed_error("out", "bfloat16", want, got) for want, got in pairs]


@pytest.mark.parametrize("capability", [(8, 6), (9, 0)], ids=str)
def test_forward_and_both_backwards(kernels, problem, bounds, capability):
    library, by_direction = kernels
    (q, k, v), dout, want_out, want_lse, want_grads = problem
    forward = {"q": q, "k": k, "v": v, "out": torch.empty_like(q), "lse": torch.empty(1, 4, 70)}
    forward |= {"softmax_scale": SCALE}
    with InterpretedDevice(library, capability) as device:
        device.call(by_direction["forward"], forward, outputs=("out", "lse"))
        assert largest_error(forward["out"], want_out) <= bounds[0]
        torch.testing.assert_close(forward["lse"].double(), want_lse, atol=1e-5, rtol=1e-5)
        for direction in DIRECTIONS[1:]:
            kernel = by_direction[direction]
            grads = call_backward(device, kernel, forward, dout)
            for got, want, bound in zip(grads, want_grads, bounds[1:], strict=True):
                assert largest_error(got, want) <= bound


def test_keys_in_parts(kernels, problem, bounds):
    library, by_direction = kernels
    (q, k, v), _, want_out, want_lse, _ = problem
    kernel = by_direction[SPLIT]
    sizes = kernel.sizes((1, 4, 2, 70, 100), threads=1)
    given = {"q": q, "k": k, "v": v, "softmax_scale": SCALE}
    with InterpretedDevice(library, (9, 0)) as device:
        none = completed(kernel.arguments, given, new_tensors({**sizes, "splits": 0}))
        with pytest.raises(ValueError, match="part_out must have at least one part"):
            device.call(kernel, none, outputs=("out", "lse"))
        call = completed(kernel.arguments, given, new_tensors({**sizes, "splits": 2}))
        device.call(kernel, call, outputs=names(kernel.arguments, *WRITTEN))
    assert largest_error(call["out"], want_out) <= bounds[0]
    torch.testing.assert_close(call["lse"].double(), want_lse, atol=1e-5, rtol=1e-5)


def call_backward(device, kernel, forward, dout, dq_acc=lambda shape: shape):
    """dq, dk, dv of a backward kernel; dq_acc: what its shape is changed to."""
    values = kernel.sizes((1, 4, 2, 70, 100), threads=1)
    tensors = completed(kernel.arguments, {**forward, "dout": dout}, new_tensors(values))
    if "dq_acc" in tensors:
        tensors["dq_acc"] = torch.zeros(dq_acc(tensors["dq_acc"].shape))
    device.call(kernel, tensors, outputs=names(kernel.arguments, *WRITTEN))
    return [tensors[name] for name in ("dq", "dk", "dv")]


def test_in_another_order_a_library_zeroes_its_workspace(kernels, problem, bounds):
    """As XLA calls: what is read, what is written, numbers; memory of any content."""
    library, by_direction = kernels
    (q, k, v), dout, out, lse, want_grads = problem
    kernel = by_direction["backward"]
    given = {"q": q, "k": k, "v": v, "out": out.bfloat16(), "lse": lse.float(), "dout": dout}
    values = kernel.sizes((1, 4, 2, 70, 100), threads=1)
    tensors = completed(kernel.arguments, given | {"softmax_scale": SCALE}, new_tensors(values))
    written = names(kernel.arguments, *WRITTEN)
    order = sorted(tensors, key=lambda name: (name == "softmax_scale", name in written))
    tensors["dq_acc"].fill_(torch.nan)
    function = arranged(kernel, order)
    with InterpretedDevice(library, (8, 0)) as device:
        call = {name: tensors[name] for name in order}
        # By memset, which the interpreter does not see.
        device.call(function, call, outputs=written, zeroed=values_before(kernel.arguments))
        with pytest.raises(TypeError, match="too few arguments"):
            function(*list(tensors.values())[:3])
    for name, want, bound in zip(("dq", "dk", "dv"), want_grads, bounds[1:], strict=True):
        assert largest_error(tensors[name], want) <= bound


def test_shapes_that_do_not_fit_launch_nothing(kernels):
    library, by_direction = kernels
    q, lse = torch.zeros(1, 70, 4, 64).bfloat16(), torch.zeros(1, 4, 70)
    # As many rows as q has, not rounded up to whole tiles of any variant.
    short = {"dq_acc": lambda shape: (*shape[:3], q.shape[1], shape[4])}
    with InterpretedDevice(library, (8, 0)) as device:
        for heads in (0, 3, 8):
            k = torch.zeros(1, 100, heads, 64).bfloat16()
            tensors = {"q": q, "k": k, "v": k, "out": torch.empty_like(q), "lse": lse}
            tensors |= {"softmax_scale": SCALE}
            with pytest.raises(ValueError, match="multiple of num_kv_heads"):
                device.call(by_direction["forward"], tensors, outputs=("out", "lse"))
        assert not device.launched
        k = torch.zeros(1, 100, 2, 64).bfloat16()
        forward = {"q": q, "k": k, "v": k, "out": q, "lse": lse, "softmax_scale": SCALE}
        with pytest.raises(ValueError, match="dq_acc must have as many rows"):
            call_backward(device, by_direction["backward"], forward, q, **short)


def test_an_empty_grid_launches_nothing(kernels):
    library, by_direction = kernels
    q, lse = torch.zeros(0, 70, 4, 64).bfloat16(), torch.zeros(0, 4, 70)
    tensors = {"q": q, "k": q, "v": q, "out": torch.empty_like(q), "lse": lse}
    tensors |= {"softmax_scale": SCALE}
    with InterpretedDevice(library, (8, 0)) as device:
        device.call(by_direction["forward"], tensors, outputs=())
        assert not device.launched
