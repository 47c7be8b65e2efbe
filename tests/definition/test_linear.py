"""Linear attention on CPUs against its plain definition, argument by argument."""

import pytest
import torch
import tvm

from tvm_flash import AttentionSpec
from tvm_flash.definition.linear import plain_linear
from tvm_flash.definition.signature import as_module
from tvm_flash.problem.lengths import buckets_of
from tvm_flash.runtime.kernels import resolve

D, DV, H = 16, 24, 4
# Queries, keys, key/value heads, parts.
SIZES = [(0, 0, 4, 1), (64, 64, 4, 1), (100, 100, 2, 1), (200, 200, 4, 3), (70, 130, 2, 2)]


@pytest.fixture(scope="module", params=[True, False], ids=["causal", "all"])
def pair(request):
    spec = AttentionSpec(
        dtype="float32", head_dim=D, head_dim_v=DV, causal=request.param, computes="linear"
    )
    kernels = [resolve(spec, "linear", bucket=bucket) for bucket in buckets_of("linear")]
    return tvm.compile(as_module(plain_linear(spec)), target="llvm"), kernels


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("reverse", "normalize", "age"), [(0, 1, 0), (1, 0, 1), (0, 0, 1)])
def test_kernels_are_the_definition(pair, sizes, reverse, normalize, age):
    """In chunks and row by row; a state of age 1 has no row for what is beside q and k."""
    plain, kernels = pair
    spec = kernels[0].spec
    sq, sk, hk, parts = sizes
    sk = sq if spec.causal else sk
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, generator=generator) + 0.1

    beside, rows = 1 - age, D + 1 - age
    inputs = [
        rand(2, sq, H, D), rand(2, sk, hk, D), rand(2, sk, hk, DV) - 0.5, rand(2, H, sq) * beside,
        rand(2, hk, sk) * beside, rand(2, hk, sk), rand(2, hk, sk), rand(2, H, sq),
        torch.tensor([1.0, 0.97, 0.5, 0.1]) if spec.causal else torch.ones(H),
        rand(2, H, rows, DV + 1),
    ]  # fmt: skip
    found = []
    definition = plain[f"{spec.name}_fwd"]
    for function in (lambda *x: definition(*map(to_tvm, x)), *kernels):
        shapes = (2, sq, H, DV), (2, H, sq), (2, H, rows, DV + 1), (parts, 2, H, D + 1, DV + 1)
        results = [torch.full(shape, float("nan")) for shape in shapes]
        function(*inputs, *results, reverse, normalize, age)
        found.append(results[:3])
    for results in found[1:]:
        for got, want in zip(results, found[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


def to_tvm(x):
    return tvm.runtime.from_dlpack(x) if isinstance(x, torch.Tensor) else x
