"""The shared list of cases through the operators, forward and backward: FlashAttention's rule."""

import pytest
import torch
from case_factors import sweeping
from error_rule import check_case

from tvm_flash.cases import CORRECTNESS


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fill uninitialised tensors with NaN: what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("case", sweeping(CORRECTNESS))
def test_case(case):
    check_case(case)
