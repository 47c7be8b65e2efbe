"""softmax and logsumexp of rows on interpreted GPU kernels, with all checks."""

import pytest
import torch
from interpreted import interpreted, resolver

from tvm_flash import AttentionSpec, logsumexp, softmax
from tvm_flash.codegen.nvcc import assemble
from tvm_flash.errors import UnsupportedSpec
from tvm_flash.frontend import row_softmax
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.select import cuda_programs
from tvm_flash.verify.compiled import verify_spec

KINDS = [
    ("float32", "sm_80"), ("bfloat16", "sm_90"),
    *(pytest.param(dtype, arch.name, marks=pytest.mark.sweep)
      for dtype in ("float32", "bfloat16", "float16") for arch in ARCHS.values()
      if arch.bf16 or dtype != "bfloat16"),
]  # fmt: skip


def spec_of(dtype):
    return AttentionSpec(dtype=dtype, head_dim=8, computes="softmax")


@pytest.mark.parametrize("direction", ["softmax", "softmax_backward"])
@pytest.mark.parametrize(("dtype", "arch"), KINDS)
def test_rows_of_any_length_keep_the_error_rule(dtype, arch, direction):
    found = verify_spec(spec_of(dtype), (direction,), (arch,))
    assert found.ok, [one.failure for kernel in found.kernels for one in kernel.outcomes]
    kernel = interpreted(spec_of(dtype), direction, arch)
    (ptx,), name = kernel.ptx, kernel.program.launches[0].name
    assert assemble(ptx, name, arch).resources.in_local_memory == 0


def test_the_front_calls_them(monkeypatch):
    """Beside CPU kernels: views, rows without a share, gradients."""
    x = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(0)) * 4
    x[0, 1] = -torch.inf
    views = [x, x[:, ::2, 3:], x.transpose(1, 2)]

    def results(given):
        leaf = given.detach().requires_grad_()
        out, lse = softmax(leaf), logsumexp(leaf)
        (gradient,) = torch.autograd.grad((out.square().sum(-1) + lse.clamp(-9)).sum(), leaf)
        return out.detach(), lse.detach(), gradient

    want = [results(view) for view in views]
    monkeypatch.setattr(row_softmax, "resolve", resolver())
    monkeypatch.setattr(row_softmax, "_is_torchs", lambda shares: False)
    for view, expected in zip(views, want, strict=True):
        torch.testing.assert_close(results(view), expected)


def test_rows_with_infinities_are_torchs(monkeypatch):
    monkeypatch.setattr(row_softmax, "resolve", resolver())
    inf, nan = torch.inf, torch.nan
    for columns in (2, 1030):
        x = torch.full((7, columns), -3e38)
        x[:, 0] = torch.tensor([0.0, 0.0, inf, inf, -inf, nan, 3e38])
        x[:, -1] = torch.tensor([nan, inf, 1.0, nan, inf, -inf, -3e38])
        torch.testing.assert_close(softmax(x), torch.softmax(x, -1), equal_nan=True)
        torch.testing.assert_close(logsumexp(x), torch.logsumexp(x, -1), equal_nan=True)


def test_turing_does_not_convert_to_bfloat16():
    with pytest.raises(UnsupportedSpec, match="sm_75: no conversion to bfloat16"):
        cuda_programs(spec_of("bfloat16"), "softmax", (ARCHS["sm_75"],))


@pytest.mark.parametrize(
    ("columns", "read"), [(1024, 1024), (8192, 8192), (8196, 8196 + 8192)], ids=str
)
def test_rows_are_read_once_where_registers_hold_them(columns, read):
    """1024 elements by a warp, 8192 by a block; of longer rows the last part is held."""
    kernel, x = interpreted(spec_of("float32"), "softmax"), torch.zeros(1, columns)
    kernel.function(x, torch.empty_like(x), torch.empty(1))
    (report,) = kernel.reports
    assert report.bytes_read["x"] == 4 * read
    assert report.bytes_written["shares"] == 4 * columns


@pytest.mark.parametrize(("columns", "read"), [(4096, 4096), (4100, 4100 + 4096)], ids=str)
def test_gradients_read_as_much_of_each_tensor(columns, read):
    """And those through a logsumexp, of which nothing is summed, every element once."""
    kernel = interpreted(spec_of("float32"), "softmax_backward")
    shares, upstream, x = (torch.rand(1, columns) for _ in range(3))
    kernel.function(shares, upstream, x, *torch.ones(2, 1), torch.empty(2, columns))
    (report,) = kernel.reports
    found = [report.bytes_read[name] for name in ("shares", "dshares", "x")]
    assert found == [4 * read, 4 * read, 4 * columns]
    assert report.bytes_written["dx"] == 8 * columns
