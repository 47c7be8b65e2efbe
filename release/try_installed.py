"""Attention where wheels alone are installed, forward and backward; try_wheels.sh runs it.

The wheels of kernels hold float32: head_dim 64, causal, and head_dim 32, forward; none holds 96.
"""

import shutil
import sys
from importlib.util import find_spec

import torch

import tvm_flash
from tvm_flash.runtime.installed import in_use

# Largest error against float64, relative to the largest value: what float32 sums of 300 keys cost.
ALLOWED = 2e-6


def exact(q, k, v):
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def errors() -> dict[str, float]:
    """The largest of the output and of each gradient, relative to the largest value."""
    torch.manual_seed(0)
    q, k, v, dout = torch.randn(4, 2, 300, 3, 64)
    found, expected = [], []
    for results, run in ((found, ours), (expected, exact)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = run(*leaves)
        out.backward(dout.to(out.dtype))
        results += [out.detach(), *(x.grad for x in leaves)]
    pairs = zip(("out", "dq", "dk", "dv"), found, expected, strict=True)
    return {name: ((a - b).abs().max() / b.abs().max()).item() for name, a, b in pairs}


def ours(q, k, v):
    return tvm_flash.flash_attn_func(q, k, v, causal=True)


def message() -> str:
    """What a call says that no kernel serves."""
    try:
        tvm_flash.flash_attn_func(*torch.randn(3, 1, 5, 1, 96), causal=True)
    except tvm_flash.UnsupportedSpec as error:
        return str(error)
    raise SystemExit("a kernel that nobody built was found")


def main() -> None:
    compilers = [name for name in ("cc", "gcc", "clang") if shutil.which(name)]
    packages = [name for name in ("tvm", "ziglang") if find_spec(name)]
    if compilers or packages:
        raise SystemExit(f"not a clean environment: {compilers}, {packages}")
    found = errors()
    if not all(error <= ALLOWED for error in found.values()):
        raise SystemExit(f"wrong: {found}")
    tvm_flash.attention(*torch.randn(3, 1, 40, 2, 32))  # of the other wheel
    if len(in_use) != 2:
        raise SystemExit(f"of two wheels these are used: {in_use}")
    said = message()
    if "`tvm-flash build fp32,d=96,causal -o kernels`" not in said:
        raise SystemExit(f"the message does not say what to do: {said}")
    worst = max(found.values())
    print(
        f"Python {sys.version.split()[0]}, torch {torch.__version__}: "
        f"right (largest error {worst:.1e}), with {', '.join(in_use)}\n  {said}"
    )


if __name__ == "__main__":
    main()
