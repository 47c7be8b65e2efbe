"""Calls of linear attention's kernels with everything drawn at random, against the definition."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import tvm

from tvm_flash import AttentionSpec
from tvm_flash.definition.linear import plain_linear
from tvm_flash.definition.signature import as_module
from tvm_flash.verify.rule import largest_error

B, H = 1, 2
# What rounding operands to tf32, and results, does, in units of the largest number of a result.
ALLOWED = {"float32": 2e-6, "float16": 2e-3}


@cache
def definition(spec: AttentionSpec) -> Callable:
    """The plain definition of ``spec``, on torch tensors."""
    function = tvm.compile(as_module(plain_linear(spec)), target="llvm")[f"{spec.name}_fwd"]

    def as_tvm(x):
        is_tensor = isinstance(x, torch.Tensor)
        return tvm.runtime.from_dlpack(x.contiguous()) if is_tensor else x

    return lambda *call: function(*map(as_tvm, call))


def check(spec: AttentionSpec, call: tuple[int, ...], kernel: Callable) -> None:
    """Raise unless ``kernel`` gives what the definition does.

    call: queries, keys, key/value heads, parts, reverse, normalize, age of the state; one of age 1
    has no row for what is beside q and k.
    """
    sq, sk, hk, parts, *numbers, age = call
    beside, rows = 1 - age, spec.head_dim + 1 - age
    d, dv, dtype = spec.head_dim, spec.head_dim_v, spec.element.torch
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, generator=generator) + 0.1

    inputs = [
        rand(B, H, sq, d).transpose(1, 2).to(dtype), rand(B, sk, hk, d).to(dtype),
        (rand(B, sk, hk, dv) - 0.5).to(dtype), rand(B, H, sq) * beside,
        rand(B, hk, sk) * beside, rand(B, hk, sk),
        rand(B, hk, sk), rand(B, H, sq),
        torch.tensor([0.9, 1e-38]) if spec.causal else torch.ones(H), rand(B, H, rows, dv + 1),
    ]  # fmt: skip
    found = []
    for function in (kernel, definition(spec)):
        shapes = (B, H, sq), (B, H, rows, dv + 1), (parts, B, H, d + 1, dv + 1)
        results = [torch.full((B, sq, H, dv), float("nan"), dtype=dtype)]
        results += [torch.full(shape, float("nan")) for shape in shapes]
        function(*inputs, *results, *numbers, age)
        found.append(results[:3])
    for name, got, want in zip(("out", "out_extra", "state_out"), *found, strict=True):
        error = largest_error(got, want.double())
        allowed = ALLOWED[spec.dtype] * max(1.0, want.abs().amax().item() if want.numel() else 0)
        assert error <= allowed, f"{name}: error {error:.3g} exceeds {allowed:.3g}"
