"""The whole stack in seconds: text, definition, schedule, library, PyTorch, gradients."""

import torch

import tvm_flash
from tvm_flash.cli.spec_text import parse_spec
from tvm_flash.codegen.build import build
from tvm_flash.runtime.loader import registered


def dense(q, k, v):
    """Causal attention in float64, every array written out; (B, S, H, D)."""
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
    scores = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).masked_fill(hidden, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2)


def test_from_text_to_gradients(tmp_path):
    spec = parse_spec("fp32,d=16,causal")
    library = tvm_flash.load(build([spec], path=tmp_path / "kernels"))
    assert registered[spec.name, "forward", "cpu", "long"] is library.kernels[0]

    torch.manual_seed(0)
    inputs = [torch.randn(2, 37, 3, 16, requires_grad=True) for _ in range(3)]
    dout = torch.randn(2, 37, 3, 16)
    out = tvm_flash.flash_attn_func(*inputs, causal=True)
    expected = dense(*inputs)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    grads = torch.autograd.grad(out, inputs, dout)
    expected_grads = torch.autograd.grad(expected, inputs, dout.double())
    for ours, theirs in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
