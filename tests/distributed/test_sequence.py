"""Attention that ranks share is attention of one process: the error rule on whole sequences."""

import pytest
import torch
from rank_tasks import HEADS, KV_HEADS, dense_inputs, documents_of, variant_of

from tvm_flash.reference import attention_reference
from tvm_flash.verify.rule import deviations, results

FP32, BF16 = torch.float32, torch.bfloat16
GQA = (HEADS, KV_HEADS)
# Lengths of documents, and rows of padding: with two and with four ranks they cross parts.
DOCUMENTS = ((1, 30, 5, 0, 60), 0)
PADDED = ((70, 3, 9), 14)


def assert_rule(found, exact, plain, dtype):
    """Every rank's results are one another's, and held to the rule."""
    for other in found[1:]:
        assert all(torch.equal(found[0][name], x) for name, x in other.items())
    for deviation in deviations(str(dtype).removeprefix("torch."), found[0], exact, plain):
        assert deviation.ok, str(deviation)


def check_dense(group, how, layout="zigzag", sizes=(96, 96), heads=GQA, dtype=FP32, **options):
    more = {name: options.pop(name) for name in ("deterministic",) if name in options}
    inputs = dense_inputs(*sizes, heads, dtype, options)
    found = group.run("rank_tasks.dense", how, layout, sizes, heads, dtype, options, more)
    exact = results(attention_reference, inputs, torch.float64)
    assert_rule(found, exact, results(attention_reference, inputs), dtype)


def check_documents(group, how, case, layout="zigzag", heads=GQA, dtype=FP32, **options):
    lengths, padding = case
    entries, task = documents_of(lengths, padding, heads), "rank_tasks.documents"
    inputs = entries.inputs(32, dtype=dtype, **variant_of(options))
    found = group.run(task, how, layout, lengths, padding, heads, dtype, options, {})
    tables = [
        {name: _without(padding, name, x) for name, x in table.items()}
        for table in (
            results(entries.alone, inputs, torch.float64),
            results(entries.alone, inputs),
        )
    ]
    found = [{name: _without(padding, name, x) for name, x in one.items()} for one in found]
    assert_rule(found, *tables, dtype)


def _without(padding, name, x):
    """Without rows of padding, to which the reference attends as to a document."""
    axis = 1 if name == "lse" else 0
    rows = x.shape[axis] - padding if name != "dsink" else x.shape[0]
    return x.narrow(axis, 0, rows)


@pytest.mark.parametrize("causal", [False, True])
def test_ring_attention(pair, causal):
    check_dense(pair, "ring", causal=causal)


def test_documents_that_cross_ranks(pair):
    check_documents(pair, "ring", DOCUMENTS, causal=True)


def test_exchanged_heads(pair):
    check_dense(pair, "ulysses", "contiguous", causal=True)


@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
def test_rows_go_to_ranks_and_come_back(pair, layout):
    found = pair.run("rank_tasks.positions", 24, layout)
    assert all(is_same for _, is_same in found)
    assert sorted(n for own, _ in found for n in own) == list(range(24))
    first = {"zigzag": [*range(6), *range(18, 24)], "contiguous": [*range(12)]}
    assert found[0][0] == first[layout]


WINDOWS = {
    "left": {"causal": True, "window_size": (9, 0)},
    "both": {"window_size": (7, 25)},
    "open": {"window_size": (40, -1)},
}
VARIANTS = {
    "full": {},
    "causal": {"causal": True},
    **WINDOWS,
    "softcap": {"causal": True, "softcap": 5.0},
    "sink": {"causal": True, "sink": True},
    "score": {"causal": True, "score_mod": "leaning"},
    "mask": {"window_size": (50, 3), "mask_mod": "striped"},
}


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("ranks", ["pair", "four"])
def test_every_variant(ranks, variant, layout, dtype, request):
    group = request.getfixturevalue(ranks)
    check_dense(group, "ring", layout, dtype=dtype, **VARIANTS[variant])
    for case in (DOCUMENTS, PADDED):
        if "sink" not in VARIANTS[variant]:
            check_documents(group, "ring", case, layout, dtype=dtype, **VARIANTS[variant])


@pytest.mark.sweep
@pytest.mark.parametrize("ranks", ["pair", "four"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1), (12, 3)], ids=str)
def test_every_variant_by_heads(ranks, variant, heads, request):
    if heads[0] != 4 and {"sink", "score_mod"} & {*VARIANTS[variant]}:
        pytest.skip("slopes and sinks here are of four heads")
    group = request.getfixturevalue(ranks)
    check_dense(group, "ulysses", "contiguous", heads=heads, **VARIANTS[variant])
    if "sink" not in VARIANTS[variant]:
        check_documents(group, "ulysses", DOCUMENTS, "contiguous", heads, **VARIANTS[variant])


@pytest.mark.sweep
@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
def test_heads_within_a_ring(four, layout):
    check_dense(four, "both", layout, causal=True)
    check_documents(four, "both", DOCUMENTS, layout, causal=True)


@pytest.mark.sweep
@pytest.mark.parametrize("sizes", [(32, 96), (96, 32)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_other_lengths_of_keys(four, sizes, causal):
    check_dense(four, "ring", sizes=sizes, causal=causal)
    check_dense(four, "ulysses", "contiguous", sizes=sizes, causal=causal)
