"""The chunked form of linear attention against its plain definition, argument by argument."""

import pytest
import torch
import tvm

from tvm_flash import AttentionSpec
from tvm_flash.definition.linear import plain_linear
from tvm_flash.definition.signature import as_module
from tvm_flash.runtime.kernels import resolve

D, DV, H = 16, 24, 4
# Queries, keys, key/value heads, parts.
SIZES = [(64, 64, 4, 1), (100, 100, 2, 1), (200, 200, 4, 3), (70, 130, 2, 2)]


@pytest.fixture(scope="module", params=[True, False], ids=["causal", "all"])
def pair(request):
    spec = AttentionSpec(dtype="float32", head_dim=D, head_dim_v=DV, causal=request.param)
    return tvm.compile(as_module(plain_linear(spec)), target="llvm"), resolve(spec, "linear")


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("reverse", "normalize"), [(0, 1), (1, 0), (0, 0)])
def test_chunks_are_the_definition(pair, sizes, reverse, normalize):
    plain, kernel = pair
    causal = kernel.spec.causal
    sq, sk, hk, parts = sizes
    sk = sq if causal else sk
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, generator=generator) + 0.1

    inputs = [
        rand(2, sq, H, D), rand(2, sk, hk, D), rand(2, sk, hk, DV) - 0.5, rand(2, H, sq),
        rand(2, hk, sk), rand(2, hk, sk), rand(2, hk, sk), rand(2, H, sq),
        torch.tensor([1.0, 0.97, 0.5, 0.1]) if causal else torch.ones(H),
        rand(2, H, D + 1, DV + 1),
    ]  # fmt: skip
    found = []
    for function in (kernel, lambda *x: plain[f"{kernel.spec.name}_linear"](*map(to_tvm, x))):
        shapes = (2, sq, H, DV), (2, H, sq), (2, H, D + 1, DV + 1), (parts, 2, H, D + 1, DV + 1)
        results = [torch.full(shape, float("nan")) for shape in shapes]
        function(*inputs, *results, reverse, normalize)
        found.append(results[:3])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


def to_tvm(x):
    return tvm.runtime.from_dlpack(x) if isinstance(x, torch.Tensor) else x
