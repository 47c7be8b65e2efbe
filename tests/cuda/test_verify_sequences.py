"""Problems of packed and paged kernels: the dense ones laid out in another way, and back."""

import pytest
import torch

from tvm_flash.problem.arithmetic import INTS
from tvm_flash.problem.sequences import PackedSequences, PagedSequences
from tvm_flash.verify.layouts import PAGE_SIZE, as_dense, as_sequences

SIZES = (2, 4, 2, 5, 40)  # B, H, Hk, Sq, Sk


def dense():
    random = torch.Generator().manual_seed(0)
    batch, heads, kv_heads, rows, keys = SIZES
    shapes = {
        "q": (batch, rows, heads, 8), "k": (batch, keys, kv_heads, 8),
        "v": (batch, keys, kv_heads, 8), "lse": (batch, heads, rows),
    }  # fmt: skip
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def kind_of(laid, kind, **sizes):
    spans = {name: x for name, x in laid.items() if name.startswith(("starts", "ends", "page"))}
    known = {"B": 2, "total_q": len(laid["q"]), "total_k": 80, **sizes}
    return kind(known, spans, laid["max_seqlen_k"], INTS)


@pytest.mark.parametrize("name", ["packed", "paged"])
def test_every_element_lies_where_the_kind_looks_for_it(name):
    given = dense()
    laid = as_sequences(name, {**given, "softmax_scale": 0.5}, SIZES)
    pages = {"pages": len(laid["k"]), "page_size": PAGE_SIZE, "most_pages": 4}
    kind = {"packed": PackedSequences, "paged": PagedSequences}[name]
    sequences = kind_of(laid, kind, **(pages if name == "paged" else {}))
    assert laid["softmax_scale"] == 0.5 and laid["max_seqlen_k"] == 40
    for entry in range(2):
        assert tuple(map(int, sequences.lengths(entry))) == (5, 40)
        for row in (0, 4):
            assert laid["q"][sequences.query(entry, 3, row, 2)] == given["q"][entry, row, 3, 2]
            assert laid["lse"][sequences.statistic(entry, 3, row)] == given["lse"][entry, 3, row]
        for row in (0, 12, 13, 39):
            for tensor in ("k", "v"):
                found = laid[tensor][sequences.key(entry, 1, row, 2)]
                assert found == given[tensor][entry, row, 1, 2]
    results = {"q": laid["q"], "lse": laid["lse"]}
    for key, x in as_dense(name, results, SIZES).items():
        assert torch.equal(x, given[key])
    others = {"sink": torch.ones(4), "rng": torch.tensor([1, 2])}
    kept = as_sequences(name, {**given, **others}, SIZES)
    assert all(kept[key] is x for key, x in others.items())
    assert laid["k"].isnan().any() == (name == "paged"), "what no entry has is NaN"
