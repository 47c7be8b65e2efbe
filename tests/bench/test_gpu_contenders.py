"""What ours is compared with on GPUs computes the same: as far as it runs on a CPU, uncompiled."""

import pytest
import torch
import torch.nn.functional as F

from tvm_flash import bench
from tvm_flash.bench import contenders
from tvm_flash.bench.contender import Contender, Prepared
from tvm_flash.bench.contenders import contenders_for
from tvm_flash.bench.sequences.problems import CachedProblem, PackedProblem

GROUPED = {"heads": 4, "kv_heads": 2}


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_gpu_contenders_of_packed_sequences(causal, monkeypatch):
    """Uncompiled, and with torch's function replaced by what its documentation says."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", documented_varlen)
    problem = PackedProblem.of([5, 1, 12], "some", "float32", 32, causal=causal, **GROUPED)
    ours, *others = (
        Prepared(c, problem) for c in contenders_for(problem, ("tvm_flash", "torch_varlen", "flex"))
    )
    expected = ours.as_drawn(ours.forward())
    for prepared in others:
        found = prepared.as_drawn(prepared.forward())
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert [one.contender.name for one in others] == ["torch_varlen", "flex"]


def test_gpu_contenders_of_a_cache(monkeypatch):
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", documented_varlen)
    problem = CachedProblem.of([5, 3, 9], "some", "float32", 32, page_size=4, seqlen_q=1, **GROUPED)
    ours, theirs = (
        Prepared(c, problem) for c in contenders_for(problem, ("tvm_flash", "torch_varlen"))
    )
    found = theirs.as_drawn(theirs.forward())
    torch.testing.assert_close(found, ours.forward(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_flex_shares_keys_among_heads(causal, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    problem = bench.Problem("float32", 16, 20, causal, **GROUPED)
    makers = (contenders.flex, contenders.sdpa)
    flex, sdpa = (Prepared(Contender("", make, "bhsd"), problem) for make in makers)
    torch.testing.assert_close(flex.forward(), sdpa.forward(), atol=1e-5, rtol=1e-5)


def documented_varlen(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1),
    enable_gqa=False, seqused_k=None, block_table=None,
):  # fmt: skip
    """torch.nn.attention.varlen.varlen_attn on CPUs, of the options that contenders give."""
    assert window_size in ((-1, -1), (-1, 0)) and max_q >= cu_seq_q.diff().max()
    assert enable_gqa == (query.shape[1] != key.shape[-2])
    found = []
    for n, rows in enumerate(query.split(cu_seq_q.diff().tolist())):
        if block_table is None:
            k, v = (x[cu_seq_k[n] : cu_seq_k[n + 1]] for x in (key, value))
        else:
            k, v = (x[block_table[n]].flatten(0, 1)[: seqused_k[n]] for x in (key, value))
        assert len(k) <= max_k
        parts = (x.transpose(0, 1)[None] for x in (rows, k, v))
        known = {"is_causal": window_size == (-1, 0), "enable_gqa": enable_gqa}
        found.append(F.scaled_dot_product_attention(*parts, **known)[0].transpose(0, 1))
    return torch.cat(found)
