"""Operators that divide keys on GPUs: what is chosen, given and fixed, on interpreted kernels."""

from __future__ import annotations

import pytest
import torch
from error_rule import check_case
from interpreted import aligned_rows, resolver
from packed_problems import Entries, cumulative

from tvm_flash import attention, flash_attn_with_kvcache
from tvm_flash.cases import Case
from tvm_flash.frontend import ops, placement, ragged_ops
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.runtime import kernels
from tvm_flash.verify.rule import deviations, results

SMS = 108


@pytest.fixture
def chosen(monkeypatch):
    """The directions that were asked for, while CPU tensors pose as those of a GPU."""
    found: list[str] = []

    def resolve(spec, direction, *where):
        found.append(direction)
        return resolver()(spec, direction)

    monkeypatch.setattr(placement, "has_readable_rows", aligned_rows)
    monkeypatch.setattr(placement, "processors_of", lambda x: SMS)
    for module in (ops, ragged_ops):
        monkeypatch.setattr(module, "place_of", lambda x: ("cuda", (8, 0)))
        monkeypatch.setattr(module, "resolve", resolve)
    return found


@pytest.mark.parametrize(
    ("fields", "direction"),
    [
        ({"seqlen_q": 1, "seqlen_k": 1000, "heads": 4, "kv_heads": 2}, "forward_split"),
        ({"seqlen_q": 70, "seqlen_k": 90}, "forward"),
        ({"seqlen_q": 4, "seqlen_k": 70, "heads": 8}, "forward_split"),
    ],
)
def test_dense(fields, direction, chosen):
    check_case(Case("few queries", "float16", 16, **fields), backward=False)
    assert set(chosen) == {direction}


PROBLEM = Entries((1, 5, 1, 2), (700, 90, 33, 0), heads=4)
INPUTS = PROBLEM.inputs(16, dtype=torch.float16)


def packed(numbers, **options):
    """out and lse of these entries of the problem, in this order, each as rows of its own."""
    q, k, v = (
        torch.cat([x[PROBLEM.slices(axis)[n]] for n in numbers])
        for x, axis in zip(INPUTS[:3], "qkk", strict=True)
    )
    rows, keys = ([lengths[n] for n in numbers] for lengths in (PROBLEM.rows, PROBLEM.keys))
    spans = {"cu_seqlens_q": cumulative(rows), "cu_seqlens_k": cumulative(keys)}
    return attention(q, k, v, **spans, causal=True, return_lse=True, **options)


@pytest.mark.parametrize(
    ("num_splits", "direction"), [(0, "forward_split"), (1, "forward"), (3, "forward_split")]
)
def test_packed(num_splits, direction, chosen):
    out, lse = packed(range(4), num_splits=num_splits)
    exact, plain = (
        results(PROBLEM.alone, INPUTS._replace(variant={"causal": True}), dtype, backward=False)
        for dtype in (torch.float64, None)
    )
    held = deviations("float16", {"out": out, "lse": lse}, exact, plain)
    assert all(deviation.ok for deviation in held), held
    assert chosen == [direction]


@pytest.mark.parametrize("num_splits", [1, 4, 100])
def test_bits_do_not_depend_on_the_batch(num_splits, chosen):
    whole, _ = packed(range(4), num_splits=num_splits)
    rows = dict(enumerate(whole.split(PROBLEM.rows)))
    for order in ([3, 2, 1, 0], [1], [2, 0]):
        out, _ = packed(order, num_splits=num_splits)
        for number, own in zip(order, out.split([PROBLEM.rows[n] for n in order]), strict=True):
            assert torch.equal(own, rows[number]), (order, number)


def test_a_cache_in_pages(chosen):
    """In which order blocks run changes no bit, and neither do pages that nobody uses."""
    problem = Entries((1, 1), (300, 20), heads=8, kv_heads=2)
    q, k, v, *_ = problem.inputs(16, dtype=torch.float16)
    laid = problem.in_pages(k, v, 16, left=(0, 0))

    def decoded(table):
        return flash_attn_with_kvcache(
            q[:, None], laid["k"], laid["v"], cache_seqlens=laid["ends_k"], block_table=table,
            num_splits=5,
        )  # fmt: skip

    table = laid["page_table"]
    out = decoded(table)
    exact = problem.alone(q.double(), k.double(), v.double())[0]
    assert (out[:, 0] - exact).abs().max() < 2e-3
    wider = torch.cat([table, torch.full((2, 40), -1, dtype=torch.int32)], dim=1)
    assert torch.equal(decoded(wider), out)
    assert set(chosen) == {"forward_split"}


def test_a_library_without_it_takes_its_forward(monkeypatch):
    spec = AttentionSpec(dtype="float16", head_dim=64, causal=True)
    built = {(spec.name, "forward", "cuda", "long"): "forward"}
    monkeypatch.setattr(kernels, "registered", built)
    assert kernels.resolve(spec, "forward_split", "cuda", (8, 0)) == "forward"
    built[spec.name, "forward_split", "cuda", "long"] = "divided"
    assert kernels.resolve(spec, "forward_split", "cuda", (8, 0)) == "divided"
    built[spec.name, "forward", "cpu", "long"] = "of the CPU"
    assert kernels.resolve(spec, "forward_split") == "of the CPU"
