"""TVM_FLASH_CHECK=1: numbers in tensors of a GPU are read and refused as those of a CPU are."""

from types import SimpleNamespace

import pytest
import torch
from packed_problems import DIM, HEADS, KV_HEADS, int32, random

from tvm_flash import attention, flash_attn_varlen_func, flash_attn_with_kvcache
from tvm_flash.frontend import packed_rows

CU_Q, CU_K = int32(0, 10, 10, 30), int32(0, 5, 20, 40)
PACKED = {
    "q": random(30, HEADS, DIM), "k": random(40, KV_HEADS, DIM), "v": random(40, KV_HEADS, DIM),
    "cu_seqlens_q": CU_Q, "cu_seqlens_k": CU_K, "max_seqlen_q": 20, "max_seqlen_k": 20,
}  # fmt: skip
OF_PACKED = [
    ({"cu_seqlens_q": int32(5, 10, 10, 30)}, "cu_seqlens_q begins with 5"),
    ({"cu_seqlens_q": int32(0, 20, 10, 30)}, "cu_seqlens_q decreases, by 10"),
    ({"cu_seqlens_k": int32(0, 5, 20, 41)}, "cu_seqlens_k ends with 41, but there are 40 rows"),
    ({"max_seqlen_q": 19}, "max_seqlen_q=19 is too small: a sequence has 20 rows"),
    ({"max_seqlen_k": torch.tensor(19)}, "max_seqlen_k=19 is too small"),
    ({"seqused_k": int32(6, 15, 20)}, r"seqused_k\[0\]=6"),
]
PAGES, TABLE = random(8, 5, KV_HEADS, DIM), int32(0, 1, 2, 3, 4, 5).reshape(3, 2)
PAGED = {
    "q": PACKED["q"], "k": PAGES, "v": PAGES, "cu_seqlens_q": CU_Q, "block_table": TABLE,
    "seqused_k": int32(3, 0, 9),
}  # fmt: skip
OF_PAGES = [
    ({"block_table": TABLE + 3}, RuntimeError, r"block_table\[2, 1\]=8"),
    ({"seqused_k": int32(3, 0, 11)}, ValueError, "seqused_k and leftpad_k must stay"),
    ({"leftpad_k": int32(4, 0, 0)}, ValueError, "seqused_k and leftpad_k must stay"),
]


class LookedFor(Exception):
    """A kernel was: no check refused the call before."""


@pytest.fixture
def on_gpu(monkeypatch):
    """All tensors say that a GPU holds them; no kernel runs."""

    def looked_for(*_, **__):
        raise LookedFor

    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda x: False), raising=False)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda x: True), raising=False)
    monkeypatch.setattr("tvm_flash.frontend.ragged_ops.place_of", lambda x: ("cuda", (8, 0)))
    monkeypatch.setattr("tvm_flash.frontend.ragged_ops.resolve", looked_for)
    monkeypatch.setattr("tvm_flash.frontend.placement.processors_of", lambda x: 108)
    monkeypatch.setattr(packed_rows, "is_current_stream_capturing", lambda: False)


@pytest.fixture
def switched_on(monkeypatch):
    monkeypatch.setattr(packed_rows, "_READS_GPUS", True)


@pytest.mark.parametrize(("changes", "message"), OF_PACKED)
def test_packed(changes, message, on_gpu, switched_on):
    with pytest.raises(LookedFor):
        flash_attn_varlen_func(**PACKED)
    with pytest.raises(ValueError, match=message):
        flash_attn_varlen_func(**{**PACKED, **changes})


@pytest.mark.parametrize(("changes", "error", "message"), OF_PAGES)
def test_pages(changes, error, message, on_gpu, switched_on):
    with pytest.raises(error, match=message):
        attention(**{**PAGED, **changes})


def test_caches(on_gpu, switched_on):
    q, cache = random(4, 1, HEADS, DIM), random(4, 16, KV_HEADS, DIM)
    with pytest.raises(RuntimeError, match=r"sequence 2 needs 17 positions"):
        rows = random(4, 1, KV_HEADS, DIM)
        flash_attn_with_kvcache(q, cache, cache, rows, rows, cache_seqlens=int32(3, 0, 16, 2))


def test_without_it_nothing_is_read(on_gpu, monkeypatch):
    """As kernels clamp what they are given (tests/cuda/test_entries.py), they may run."""
    monkeypatch.setattr(packed_rows, "read", None)
    for changes, _ in OF_PACKED:
        if "max_seqlen_k" not in changes:
            with pytest.raises(LookedFor):
                flash_attn_varlen_func(**{**PACKED, **changes})
    with pytest.raises(LookedFor):
        attention(**{**PAGED, "block_table": TABLE + 3})


def test_what_was_read_chooses_no_kernel(on_gpu, switched_on, monkeypatch):
    """Else a search for a mistake would look at other kernels than those that have it."""
    asked = []
    monkeypatch.setattr("tvm_flash.frontend.ragged_ops.resolve", lambda *x: asked.append(x[1:]))
    for reads in (True, False):
        monkeypatch.setattr(packed_rows, "_READS_GPUS", reads)
        with pytest.raises(AttributeError, match=r"function|arguments"):
            flash_attn_varlen_func(**{**PACKED, "max_seqlen_k": None})
    assert asked[0] == asked[1]


@pytest.mark.parametrize("state", ["off", "capturing", "compiling", "ready"])
def test_when_a_gpu_is_read(state, monkeypatch):
    x = SimpleNamespace(is_cpu=False, is_cuda=True)
    monkeypatch.setattr(packed_rows, "_TENSORS", {SimpleNamespace})
    monkeypatch.setattr(packed_rows, "_READS_GPUS", state != "off")
    monkeypatch.setattr(packed_rows, "is_current_stream_capturing", lambda: state == "capturing")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: state == "compiling")
    assert packed_rows.is_readable(x) == (state == "ready")


def test_lengths_on_a_gpu_are_not_kept(on_gpu, switched_on):
    cu = CU_Q.clone()
    for _ in range(2):
        with pytest.raises(LookedFor):
            flash_attn_varlen_func(**{**PACKED, "cu_seqlens_q": cu, "cu_seqlens_k": CU_K})
    cu[1] = 25
    with pytest.raises(ValueError, match="decreases"):
        flash_attn_varlen_func(**{**PACKED, "cu_seqlens_q": cu, "cu_seqlens_k": CU_K})
