"""Features at once by interpreted GPU kernels: the rule for out and every gradient."""

import pytest
import torch
from combined import Combined, pairs
from interpreted import aligned_rows, resolver

from tvm_flash.frontend import ops, placement, ragged_ops, table_ops

SHORT = [
    Combined(True, "bk", True, "sink", kv_heads=1, dtype="bfloat16"),
    Combined(True, "bhqk", packed=True, dtype="float16", deterministic=True),
]


@pytest.fixture
def on(monkeypatch):
    """Operators on CPU tensors run interpreted kernels of an architecture."""
    monkeypatch.setattr(placement, "has_readable_rows", aligned_rows)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 0)

    def use(arch):
        for module in (ops, ragged_ops, table_ops):
            monkeypatch.setattr(module, "resolve", resolver(arch))

    return use


@pytest.mark.parametrize("problem", SHORT, ids=str)
def test_few(problem, on):
    on("sm_80")
    problem.check()


@pytest.mark.sweep
@pytest.mark.parametrize("problem", pairs(("bfloat16", "float16", "float32")), ids=str)
def test_all_pairs(problem, on):
    on("sm_80")
    problem.check()


def test_turing(on):
    on("sm_75")
    Combined(True, "head", True, "sigmoid", kv_heads=1, causal=True, dtype="float16").check()


@pytest.mark.sweep
@pytest.mark.parametrize("problem", pairs(("float16",)), ids=str)
def test_all_pairs_on_turing(problem, on):
    on("sm_75")
    problem.check()
