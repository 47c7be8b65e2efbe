"""What several contracts look at: which kernels are called, and on which device."""

import pytest
from interpreted import aligned_rows, resolver

from tvm_flash.frontend import ops, placement


@pytest.fixture
def asked(monkeypatch):
    """The directions of all calls of a kernel so far."""
    resolve, directions = ops.resolve, []
    monkeypatch.setattr(ops, "resolve", lambda *x: directions.append(x[1]) or resolve(*x))
    return directions


@pytest.fixture(params=["cpu", "sm_80"])
def device(request, monkeypatch):
    """CPU kernels, and interpreted GPU kernels on CPU tensors."""
    if request.param != "cpu":
        monkeypatch.setattr(placement, "has_readable_rows", aligned_rows)
        monkeypatch.setattr(ops, "resolve", resolver(request.param))
    return request.param
