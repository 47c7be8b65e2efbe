"""Gradients of softmax and logsumexp: of extreme rows, of gradients, of views, of nothing."""

import pytest
import torch

from tvm_flash import logsumexp, softmax
from tvm_flash.frontend import row_softmax

INF, NAN = float("inf"), float("nan")


def gradient(function, x, upstream, **options):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x, -1), x, upstream, **options)[0]


@pytest.mark.parametrize("columns", [2, 300])
def test_rows_with_infinities_are_torchs(columns):
    """But for rows of -inf, which have no gradient."""
    first = [[0.0, INF], [INF, INF], [-INF, INF], [INF, NAN], [NAN, INF], [-INF, NAN], [-INF, 1.0]]
    x = torch.full((len(first), columns), -2.0)
    x[:, : 2 if columns == 2 else 1] = torch.tensor(first)[:, : 2 if columns == 2 else 1]
    x[:, -1] = torch.tensor(first)[:, 1]
    for dtype in (torch.float32, torch.float16):
        given = x.to(dtype)
        torch.testing.assert_close(
            logsumexp(given), torch.logsumexp(given.float(), -1), equal_nan=True
        )
        torch.testing.assert_close(softmax(given), torch.softmax(given, -1), equal_nan=True)
        ones = torch.ones(len(x))
        got = gradient(logsumexp, given, ones)
        want = gradient(torch.logsumexp, given.float(), ones).to(dtype)
        torch.testing.assert_close(got, want, equal_nan=True)
    none = torch.full((2, columns), -INF)
    assert not softmax(none).any() and (logsumexp(none) == -INF).all()
    for function, upstream in ((softmax, torch.ones_like(none)), (logsumexp, torch.ones(2))):
        assert not gradient(function, none, upstream).any()


@pytest.mark.parametrize("function", [softmax, logsumexp])
def test_upstream_gradients_of_any_stride(function):
    x = torch.randn(4, 6, 20)
    rows = x if function is softmax else x[..., 0]
    theirs = {softmax: torch.softmax, logsumexp: torch.logsumexp}[function]
    for upstream in (
        torch.randn(1, 1, *rows.shape[2:]).expand(rows.shape),
        torch.randn(rows.shape[::-1]).permute(*reversed(range(rows.dim()))),
    ):
        torch.testing.assert_close(
            gradient(function, x, upstream), gradient(theirs, x, upstream), rtol=1e-5, atol=1e-6
        )
    assert gradient(function, x[:0], rows[:0]).shape == (0, 6, 20)


@pytest.mark.parametrize("function", [softmax, logsumexp])
def test_gradients_of_gradients_are_torchs(function):
    """By x and by the upstream gradient; a third one too."""
    theirs = {softmax: torch.softmax, logsumexp: torch.logsumexp}[function]
    found = []
    for f in (function, theirs):
        x = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).requires_grad_()
        upstream = f(x, -1).detach().sin().requires_grad_()
        (first,) = torch.autograd.grad(f(x, -1), x, upstream, create_graph=True)
        second = torch.autograd.grad(first.square().sum(), (x, upstream), create_graph=True)
        third = torch.autograd.grad(sum(y.sum() for y in second), (x, upstream))
        found.append([first, *second, *third])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("columns", [1, 7, 255, 1000])
@pytest.mark.parametrize("function", [softmax, logsumexp])
def test_kernels_compute_them(function, columns, monkeypatch):
    """Also that of a softmax, which operators leave to torch on CPUs."""
    x, called = torch.randn(3, columns, dtype=torch.float16), []
    upstream = torch.randn_like(function(x))
    want = gradient(function, x.float(), upstream.float())

    def resolve(spec, direction, *place):
        called.append(direction)
        return kernels(spec, direction, *place)

    kernels = row_softmax.resolve
    monkeypatch.setattr(row_softmax, "resolve", resolve)
    monkeypatch.setattr(row_softmax, "_is_torchs", lambda shares: False)
    got = gradient(function, x, upstream)
    assert called == ["softmax", "softmax_backward"]
    torch.testing.assert_close(got.float(), want, rtol=2e-2, atol=2e-3)
