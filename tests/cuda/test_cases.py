"""The shared list of cases through the operators on interpreted CUDA kernels, by the same rule."""

import pytest

from interpreted import aligned_rows, resolver
from error_rule import check_case
from tvm_flash import ops
from tvm_flash.cases import CORRECTNESS


@pytest.fixture(autouse=True)
def interpreted_cuda(monkeypatch):
    monkeypatch.setattr(ops, "resolve", resolver())
    monkeypatch.setattr(ops, "has_readable_rows", aligned_rows)


@pytest.mark.parametrize("case", CORRECTNESS, ids=lambda case: case.name)
def test_case(case):
    check_case(case)
