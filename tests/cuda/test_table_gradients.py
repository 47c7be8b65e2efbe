"""Gradients of captured tensors by interpreted GPU kernels: the same rule, and determinism."""

import dataclasses

import pytest
import torch
from interpreted import aligned_rows, resolver, shuffled
from table_problems import BIASES, OTHERS

from tvm_flash import attention
from tvm_flash.frontend import ops, placement, table_ops

KNOWN = {x.name: dataclasses.replace(x, dtype=torch.float16) for x in (*BIASES, *OTHERS)}
SHORT = ("bias_hqk", "bias_k", "t5")
NAMES = [pytest.param(name, marks=[] if name in SHORT else pytest.mark.sweep) for name in KNOWN]


@pytest.fixture
def on(monkeypatch):
    """Operators on CPU tensors run interpreted kernels of an architecture."""
    monkeypatch.setattr(placement, "has_readable_rows", aligned_rows)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 0)

    def use(arch):
        for module in (ops, table_ops):
            monkeypatch.setattr(module, "resolve", resolver(arch))

    return use


@pytest.mark.parametrize("name", NAMES)
def test_rule(name, on):
    on("sm_80")
    KNOWN[name].check(attention)


def test_turing(on):
    on("sm_75")
    KNOWN["bias_k"].check(attention)


def test_a_captured_number(on):
    """TIRx has no way to read a parameter without dimensions."""
    on("sm_80")
    q, k, v = torch.randn(3, 1, 20, 1, 16, generator=torch.Generator().manual_seed(0)).half()
    temperature = torch.tensor(3.0)
    out = attention(q, k, v, score_mod=lambda score, b, h, q_idx, k_idx: score * temperature)
    torch.testing.assert_close(out, attention(q, k, v, softmax_scale=0.75), rtol=0, atol=2e-3)


@pytest.mark.sweep
def test_integer_sums_do_not_depend_on_the_order_of_blocks(on):
    on("sm_80")
    problem = KNOWN["t5"]
    problem.check(attention, deterministic=True)
    runs = []
    for seed in (1, 2):
        with shuffled(seed):
            runs.append(problem.gradients(lambda *x, **o: attention(*x, **o, deterministic=True)))
    for name in ("dtable0", "dtable1"):
        assert torch.equal(runs[0][name], runs[1][name])
