"""Wrong arguments of packed and cached calls: what is wrong by name, before any kernel runs."""

import numpy as np
import pytest
import torch
from packed_problems import DIM, HEADS, KV_HEADS, int32, random

import tvm_flash
from tvm_flash import attention, flash_attn_varlen_func, flash_attn_with_kvcache


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch):
    """A check that comes too late would look for a kernel."""

    def refuse(*args):
        raise AssertionError("a kernel was looked for")

    monkeypatch.setattr("tvm_flash.frontend.ragged_ops.resolve", refuse)
    monkeypatch.setattr("tvm_flash.frontend.ops.resolve", refuse)


CU_Q, CU_K = int32(0, 10, 10, 30), int32(0, 5, 20, 40)
PACKED = {
    "q": random(30, HEADS, DIM), "k": random(40, KV_HEADS, DIM), "v": random(40, KV_HEADS, DIM),
    "cu_seqlens_q": CU_Q, "cu_seqlens_k": CU_K, "max_seqlen_q": 20, "max_seqlen_k": 20,
}  # fmt: skip
Q, K = PACKED["q"], PACKED["k"]
HUGE = 2**31 - 1

# What is changed of PACKED, the error, and what its message must hold.
OF_PACKED = [
    ({"cu_seqlens_q": CU_Q.long()}, TypeError, ["cu_seqlens_q.dtype=torch.int64", "call .int()"]),
    ({"cu_seqlens_k": CU_K.float()}, TypeError, ["cu_seqlens_k.dtype=torch.float32"]),
    ({"cu_seqlens_q": [0, 10, 10, 30]}, TypeError, ["cu_seqlens_q", "list"]),
    ({"cu_seqlens_q": CU_Q.numpy()}, TypeError, ["cu_seqlens_q", "ndarray"]),
    ({"cu_seqlens_q": None}, ValueError, ["needs cu_seqlens_q"]),
    ({"cu_seqlens_k": None}, ValueError, ["needs cu_seqlens_k"]),
    ({"cu_seqlens_q": CU_Q[None]}, ValueError, ["cu_seqlens_q of shape (1, 4)", "(batch + 1,)"]),
    ({"cu_seqlens_q": CU_Q[0]}, ValueError, ["cu_seqlens_q of shape ()"]),
    ({"cu_seqlens_q": int32()}, ValueError, ["cu_seqlens_q of shape (0,)"]),
    ({"cu_seqlens_q": CU_Q.to_sparse()}, TypeError, ["cu_seqlens_q", ".to_dense()"]),
    ({"cu_seqlens_q": CU_Q.to("meta")}, ValueError, ["cu_seqlens_q is on meta", "cpu"]),
    ({"cu_seqlens_k": int32(0, 40)}, ValueError, ["cu_seqlens_k of shape (2,)", "(4,)", "3"]),
    ({"cu_seqlens_q": int32(5, 10, 10, 30)}, ValueError, ["cu_seqlens_q begins with 5", "0"]),
    ({"cu_seqlens_q": int32(-1, 10, 10, 30)}, ValueError, ["cu_seqlens_q begins with -1"]),
    ({"cu_seqlens_q": int32(0, 20, 10, 30)}, ValueError, ["cu_seqlens_q decreases, by 10"]),
    ({"cu_seqlens_q": int32(0, HUGE, -HUGE, 30)}, ValueError, [f"decreases, by {2 * HUGE}"]),
    ({"cu_seqlens_q": int32(0, 10, 10, 31)}, ValueError, ["cu_seqlens_q ends with 31", "30 rows"]),
    ({"cu_seqlens_k": int32(0, 5, 20, HUGE)}, ValueError, [f"ends with {HUGE}", "40 rows"]),
    ({"max_seqlen_q": 19}, ValueError, ["max_seqlen_q=19 is too small", "20 rows"]),
    ({"max_seqlen_k": torch.tensor(19)}, ValueError, ["max_seqlen_k=19 is too small"]),
    ({"max_seqlen_q": 20.0}, TypeError, ["max_seqlen_q=20.0 must be an integer"]),
    ({"max_seqlen_q": "20"}, TypeError, ["max_seqlen_q='20' must be an integer"]),
    ({"max_seqlen_k": torch.tensor([20, 20])}, ValueError, ["max_seqlen_k of shape (2,)"]),
    ({"max_seqlen_k": -1}, ValueError, ["max_seqlen_k=-1", f"0..{2**29}"]),
    ({"max_seqlen_q": 2**40}, ValueError, [f"max_seqlen_q={2**40}", f"{2**29}"]),
    ({"seqused_q": int32(10, 0, 21)}, ValueError, ["seqused_q[2]=21", "0..20"]),
    ({"seqused_k": int32(6, 15, 20)}, ValueError, ["seqused_k[0]=6", "0..5"]),
    ({"seqused_q": int32(10, -1, 20)}, ValueError, ["seqused_q[1]=-1", "0..0"]),
    ({"seqused_k": int32(5, 15, HUGE)}, ValueError, [f"seqused_k[2]={HUGE}", "0..20"]),
    ({"seqused_q": int32(10, 0)}, ValueError, ["seqused_q of shape (2,)", "(3,)"]),
    ({"seqused_q": CU_Q[1:].long()}, TypeError, ["seqused_q.dtype=torch.int64"]),
    ({"seqused_k": [5, 15, 20]}, TypeError, ["seqused_k", "list"]),
    ({"seqused_k": int32(5, 15, 20).to("meta")}, ValueError, ["seqused_k is on meta"]),
    ({"q": Q[None]}, ValueError, ["q of shape (1, 30, 4, 32)", "must have 3"]),
    ({"q": [1.0]}, TypeError, ["q must be a tensor, not list"]),
    ({"k": [1.0]}, TypeError, ["k must be a tensor, not list"]),
    ({"v": None}, TypeError, ["v must be a tensor, not NoneType"]),
    ({"q": Q.double()}, TypeError, ["q.dtype=torch.float64", "torch.float32"]),
    ({"k": K.half()}, TypeError, ["k.dtype=torch.float16 differs from q.dtype=torch.float32"]),
    ({"q": Q.to("meta")}, ValueError, ["k.device=cpu differs from q.device=meta"]),
    ({"v": K[:-1]}, ValueError, ["(40, 2, 32)", "(39, 2, 32)"]),
    ({"v": K[:, :1]}, ValueError, ["(40, 2, 32)", "(40, 1, 32)"]),
    ({"q": Q[:, :3]}, ValueError, ["num_heads=3", "num_kv_heads=2"]),
    ({"k": K[..., :16]}, ValueError, ["head_dim of q is 32, of k 16"]),
    ({"q": Q[..., :7], "k": K[..., :7], "v": K[..., :7]}, ValueError, ["head_dim=7", "8..512"]),
    ({"q": Q[..., :0], "k": K[..., :0], "v": K[..., :0]}, ValueError, ["head_dim=0", "8..512"]),
    ({"alibi_slopes": torch.ones(3)}, ValueError, ["alibi_slopes", "(3,)", "(3, 4)"]),
    ({"block_table": int32(0, 1, 2)[:, None]}, ValueError, ["k of shape (40, 2, 32)", "have 4"]),
    ({"num_splits": "many"}, TypeError, ["num_splits='many' must be an integer"]),
    ({"num_splits": -3}, ValueError, ["num_splits=-3 must be 0"]),
    ({"dropout_p": True}, ValueError, ["dropout_p=1.0", "[0, 1)"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "parts"), OF_PACKED)
def test_packed(changes, error, parts):
    with pytest.raises(error) as raised:
        flash_attn_varlen_func(**{**PACKED, **changes})
    assert [part for part in parts if part not in str(raised.value)] == []


@pytest.mark.parametrize(
    "name", ["max_seqlen_q", "max_seqlen_k", "seqused_q", "seqused_k", "leftpad_k", "block_table"]
)
def test_lengths_are_not_left_unread_by_a_dense_call(name):
    with pytest.raises(ValueError, match=f"{name} needs cu_seqlens_q"):
        attention(Q[None], Q[None], Q[None], **{name: int32(3)})


@pytest.mark.parametrize("given", [CU_K.numpy(), np.array([1]), [0, 5, 20, 40]], ids=str)
def test_what_is_no_tensor_after_a_call_that_was_right(given, monkeypatch):
    monkeypatch.undo()
    flash_attn_varlen_func(**PACKED, causal=True)
    with pytest.raises(
        TypeError, match=f"cu_seqlens_k must be a tensor, not {type(given).__name__}"
    ):
        flash_attn_varlen_func(**{**PACKED, "cu_seqlens_k": given}, causal=True)


def test_a_layout_of_dense_tensors():
    with pytest.raises(ValueError, match="layout='bhsd' is of dense tensors: packed ones are"):
        attention(Q, K, K, cu_seqlens_q=CU_Q, cu_seqlens_k=CU_K, layout="bhsd")


def test_other_doors():
    with pytest.raises(ValueError, match="query has 4 heads, key has 2: set enable_gqa=True"):
        tvm_flash.varlen_attention(Q, K, K, CU_Q, CU_K, 20, 20)
    for key in (None, K[0, 0, 0]):
        with pytest.raises((TypeError, ValueError), match="k "):
            tvm_flash.varlen_attention(Q, key, K, CU_Q, CU_K, 20, 20)
    for qkv in (random(30, 2, HEADS, DIM), [1.0]):
        with pytest.raises(ValueError, match=r"qkv of shape .* must be \(total, 3, H, D\)"):
            tvm_flash.flash_attn_varlen_qkvpacked_func(qkv, CU_Q, 20)
    with pytest.raises(ValueError, match=r"kv of shape .* must be \(total, 2, H, D\)"):
        tvm_flash.flash_attn_varlen_kvpacked_func(Q, Q, CU_Q, CU_Q, 20, 20)


def test_names_of_other_functions():
    with pytest.raises(TypeError, match="'page_table': here it is block_table"):
        flash_attn_varlen_func(**PACKED, page_table=TABLE)
    with pytest.raises(ValueError, match="out of shape"):
        flash_attn_varlen_func(**PACKED, out=Q[:1])
    overlapping = torch.empty(Q.numel() * 2).as_strided(Q.shape, (DIM, 2 * DIM, 1))
    with pytest.raises(ValueError, match="its rows are one memory"):
        flash_attn_varlen_func(**PACKED, out=overlapping)


def test_nested_tensors():
    def nested(x, *offsets):
        return torch.nested.nested_tensor_from_jagged(x, torch.tensor(offsets))

    q, k = nested(Q, 0, 10, 30), nested(K, 0, 30, 40)
    with pytest.raises(ValueError, match=r"k and v have lengths \[30, 10\] and \[5, 35\]"):
        attention(q, k, nested(K, 0, 5, 40))
    with pytest.raises(ValueError, match="k must be a nested tensor"):
        attention(q, K, K)
    with pytest.raises(ValueError, match=r"cu_seqlens_k of shape \(4,\) must be \(3,\)"):
        attention(q, *[nested(K, 0, 5, 6, 40)] * 2)
    with pytest.raises(TypeError, match="q is a nested tensor"):
        attention(q, k, k, cu_seqlens_q=CU_Q, cu_seqlens_k=CU_K)


PAGES = random(8, 5, KV_HEADS, DIM)
TABLE = int32(0, 1, 2, 3, 4, 5).reshape(3, 2)
PAGED = {
    "q": Q, "k": PAGES, "v": PAGES, "cu_seqlens_q": CU_Q, "block_table": TABLE,
    "seqused_k": int32(3, 0, 9),
}  # fmt: skip
OF_PAGES = [
    ({"block_table": TABLE.long()}, TypeError, ["block_table.dtype=torch.int64"]),
    ({"block_table": TABLE.tolist()}, TypeError, ["block_table must be a tensor, not list"]),
    ({"block_table": TABLE[0]}, ValueError, ["block_table of shape (2,)", "(3, most pages)"]),
    ({"block_table": TABLE[:2]}, ValueError, ["block_table of shape (2, 2)", "(3, most pages)"]),
    ({"block_table": TABLE.to("meta")}, ValueError, ["block_table is on meta"]),
    ({"block_table": TABLE + 3}, RuntimeError, ["block_table[2, 1]=8", "0 .. 7", "8 pages"]),
    ({"block_table": TABLE - 1}, RuntimeError, ["block_table[0, 0]=-1", "0 .. 7"]),
    ({"seqused_k": int32(3, 0, 11)}, ValueError, ["0 .. 11", "10", "seqused_k"]),
    ({"seqused_k": int32(3, -1, 9)}, ValueError, ["0 .. -1", "seqused_k"]),
    ({"leftpad_k": int32(4, 0, 0)}, ValueError, ["4 .. 3", "leftpad_k"]),
    ({"leftpad_k": int32(-1, 0, 0)}, ValueError, ["-1 .. 3", "leftpad_k"]),
    ({"leftpad_k": int32(0, 0)}, ValueError, ["leftpad_k of shape (2,)", "(3,)"]),
    ({"seqused_k": None}, ValueError, ["block_table needs seqused_k or cu_seqlens_k"]),
    ({"k": K}, ValueError, ["k of shape (40, 2, 32)", "must have 4"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "parts"), OF_PAGES)
def test_pages(changes, error, parts):
    with pytest.raises(error) as raised:
        attention(**{**PAGED, **changes})
    assert [part for part in parts if part not in str(raised.value)] == []


B, S = 3, 16
ROWS = random(B, 1, KV_HEADS, DIM)
CACHE = random(4, S, KV_HEADS, DIM)
CACHED = {
    "q": random(B, 1, HEADS, DIM), "k_cache": CACHE, "v_cache": CACHE, "k": ROWS, "v": ROWS,
    "cache_seqlens": int32(3, 0, 15),
}  # fmt: skip
ANGLES = {"rotary_cos": torch.ones(20, 8), "rotary_sin": torch.ones(20, 8)}
IN_PAGES = {"k_cache": PAGES, "v_cache": PAGES, "cache_seqlens": int32(3, 0, 8)}
PACKED_ROWS = {"k": random(5, KV_HEADS, DIM), "v": random(5, KV_HEADS, DIM)}
OF_CACHES = [
    ({"cache_seqlens": int32(3, 0, 16)}, RuntimeError, ["17", "cache_seqlens[2]=16", "has 16"]),
    ({"cache_seqlens": int32(3, 0, HUGE)}, RuntimeError, [f"cache_seqlens[2]={HUGE}", "has 16"]),
    ({"cache_seqlens": int32(3, -1, 9)}, ValueError, ["cache_seqlens[1]=-1"]),
    ({"cache_seqlens": int32(3, -HUGE - 1, 9)}, ValueError, [f"cache_seqlens[1]={-HUGE - 1}"]),
    ({"cache_seqlens": -1}, ValueError, ["cache_seqlens=-1"]),
    ({"cache_seqlens": 2**40}, ValueError, [f"cache_seqlens={2**40}"]),
    ({"cache_seqlens": None}, RuntimeError, ["without cache_seqlens the cache is full"]),
    ({"cache_seqlens": 3.0}, TypeError, ["cache_seqlens", "float"]),
    ({"cache_seqlens": [3, 0, 9]}, TypeError, ["cache_seqlens", "list"]),
    ({"cache_seqlens": np.array([3, 0, 9])}, TypeError, ["cache_seqlens", "ndarray"]),
    ({"cache_seqlens": torch.tensor([3, 0, 9])}, TypeError, ["cache_seqlens.dtype=torch.int64"]),
    ({"cache_seqlens": int32(3, 0)}, ValueError, ["cache_seqlens of shape (2,)", "(3,)"]),
    ({"cache_seqlens": int32(3, 0, 9).to("meta")}, ValueError, ["cache_seqlens is on meta"]),
    ({"cache_batch_idx": int32(3, 1, 4)}, RuntimeError, ["cache_batch_idx[2]=4", "0 .. 3"]),
    ({"cache_batch_idx": int32(3, 1, -1)}, RuntimeError, ["cache_batch_idx[2]=-1", "4 sequences"]),
    (
        {"cache_batch_idx": int32(1, 0, 1), "cache_seqlens": 2}, ValueError,
        ["sequences 0 and 2 append to one place, row 2 of sequence 1 of", "cache_batch_idx"],
    ),
    ({"cache_batch_idx": [0, 1, 2]}, TypeError, ["cache_batch_idx", "list"]),
    ({"cache_leftpad": int32(5, 0, 0)}, ValueError, ["cache_leftpad[0]=5"]),
    ({"cache_leftpad": int32(0, -1, 0)}, ValueError, ["cache_leftpad[1]=-1"]),
    ({"cache_leftpad": int32(0, 0)}, ValueError, ["cache_leftpad of shape (2,)"]),
    ({"v": None}, ValueError, ["give both or none"]),
    ({"k": ROWS[:2], "v": ROWS[:2]}, ValueError, ["k has 2 sequences, q has 3"]),
    ({"v": ROWS.expand(-1, 2, -1, -1)}, ValueError, ["k has 3 rows, v has 6"]),
    ({"k": ROWS[:, :, :1]}, ValueError, ["rows of k (1, 32)", "(2, 32)"]),
    ({"k": ROWS.half()}, TypeError, ["k.dtype=torch.float16"]),
    ({"k": ROWS[0]}, ValueError, ["k of shape (1, 2, 32)", "must have 4"]),
    ({"v": ROWS.to("meta")}, ValueError, ["v.device=meta"]),
    ({"k_cache": CACHE[0]}, ValueError, ["k_cache of shape (16, 2, 32)"]),
    ({"k_cache": [1.0]}, TypeError, ["k_cache must be a tensor, not list"]),
    ({"v_cache": CACHE.half()}, TypeError, ["v_cache.dtype=torch.float16"]),
    ({"v_cache": CACHE[:, 1:]}, ValueError, ["(4, 16, 2, 32)", "(4, 15, 2, 32)"]),
    ({"k_cache": CACHE[:2], "v_cache": CACHE[:2]}, ValueError, ["2 sequences, q 3"]),
    ({"k_cache": CACHE[:1].expand(4, -1, -1, -1)}, ValueError, ["k_cache of strides", "clone()"]),
    ({"cache_layout": "sbhd"}, ValueError, ["cache_layout='sbhd'", "bshd, bhsd"]),
    ({"q": random(B, HEADS, DIM)}, ValueError, ["q of shape (3, 4, 32)", "must have 4"]),
    ({"out": random(B, HEADS, DIM)}, ValueError, ["out of shape (3, 4, 32)"]),
    ({"out": random(B, 1, HEADS, 16)}, ValueError, ["out of shape (3, 1, 4, 16)"]),
    ({"out": [1.0]}, TypeError, ["out must be a tensor, not list"]),
    ({"return_softmax_lse": "no"}, TypeError, ["return_softmax_lse='no'"]),
    ({"block_table": TABLE, "page_table": TABLE}, ValueError, ["block_table and page_table"]),
    (
        {**IN_PAGES, "block_table": TABLE[:, :1].expand(-1, 2**29)}, ValueError,
        [f"{2**29} pages of", "limit 536870912", "fewer columns"],
    ),
    ({**IN_PAGES, "block_table": TABLE + 3}, RuntimeError, ["block_table[2, 1]=8", "0 .. 7"]),
    (
        {**IN_PAGES, "block_table": int32(0, 1, 2, 2, 4, 1).reshape(3, 2), "cache_seqlens": 8},
        ValueError, ["sequences 0 and 2 append to one place, row 3 of page 1", "block_table"],
    ),
    (
        {**IN_PAGES, "block_table": TABLE, "cache_batch_idx": int32(0, 1, 2)}, ValueError,
        ["leave cache_batch_idx out"],
    ),
    ({**ANGLES, "k": None, "v": None}, ValueError, ["rotate new keys: give k and v"]),
    ({"rotary_cos": ANGLES["rotary_cos"]}, TypeError, ["rotary_sin must be a tensor"]),
    ({"rotary_seqlens": int32(0, 0, 0)}, ValueError, ["rotary_seqlens is of rotary_cos"]),
    ({**ANGLES, "rotary_seqlens": int32(0, 0)}, ValueError, ["rotary_seqlens of shape (2,)"]),
    ({**ANGLES, "rotary_seqlens": int32(0, 0, 20)}, ValueError, ["20", "20 rows"]),
    ({**ANGLES, "window_size": 3}, TypeError, ["window_size=3 must be two integers"]),
    ({**PACKED_ROWS, "cu_seqlens_k_new": int32(0, 2, 4, 6)}, ValueError, ["k_new ends with 6"]),
    ({**PACKED_ROWS, "cu_seqlens_k_new": int32(1, 2, 4, 5)}, ValueError, ["k_new begins with 1"]),
    ({**PACKED_ROWS, "cu_seqlens_k_new": int32(0, 4, 2, 5)}, ValueError, ["decreases, by 2"]),
    ({**PACKED_ROWS, "cu_seqlens_k_new": int32(0, 2, 5)}, ValueError, ["k has 2 sequences, q has"]),
    ({**PACKED_ROWS, "cu_seqlens_k_new": [0, 2, 4, 5]}, TypeError, ["cu_seqlens_k_new", "list"]),
    ({"cu_seqlens_k_new": int32(0, 1, 2, 3)}, ValueError, ["k of shape (3, 1, 2, 32)"]),
    ({"cu_seqlens_q": int32(0, 1, 2, 3)}, ValueError, ["q of shape (3, 1, 4, 32)", "have 3"]),
    (
        {"k": None, "v": None, "cu_seqlens_k_new": int32(0, 1, 2, 3)}, ValueError,
        ["cu_seqlens_k_new is of new keys"],
    ),
    ({"num_splits": 1.5}, TypeError, ["num_splits=1.5 must be an integer"]),
    ({"attention_chunk": 4}, NotImplementedError, ["attention_chunk=4"]),
    ({"cache_len": 4}, TypeError, ["'cache_len'"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "parts"), OF_CACHES)
def test_caches(changes, error, parts):
    given = {**CACHED, **changes}
    caches = [given[name] for name in ("k_cache", "v_cache")]
    before = [x.clone() if isinstance(x, torch.Tensor) else x for x in caches]
    with pytest.raises(error) as raised:
        flash_attn_with_kvcache(**given)
    assert [part for part in parts if part not in str(raised.value)] == []
    for now, was in zip(caches, before, strict=True):
        assert not isinstance(now, torch.Tensor) or torch.equal(now, was)


def test_a_batch_without_sequences_asks_for_no_kernel():
    """Whose loops would begin by reading where the first one starts."""
    none = int32(0)
    leaves = [x.clone().requires_grad_() for x in (Q, K, K)]
    out = attention(*leaves, cu_seqlens_q=none, cu_seqlens_k=none)
    grads = torch.autograd.grad(out.sum(), leaves)
    assert not any(x.any() for x in (out, *grads))
    q, rows = random(0, 1, HEADS, DIM), random(0, 1, KV_HEADS, DIM)
    assert flash_attn_with_kvcache(q, CACHE, CACHE, rows, rows).shape == q.shape
