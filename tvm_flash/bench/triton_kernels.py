"""FlashAttention-2 in Triton: what its compiler makes of the same algorithm, forward and backward.

q, k, v, out and their gradients are (heads, S, D) contiguous, heads = B * H; lse and delta (heads,
Sq) float32. lse is in base 2, +inf where a row sees no key: exp2(s - lse) is then 0 without a mask.
causal puts the last query on the last key. tests/ptx runs these kernels without a GPU.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(
    source, head, start, seqlen, D: tl.constexpr, BLOCK: tl.constexpr, RAGGED: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """Rows (BLOCK, D) from ``start`` of one head, zeros beyond ``seqlen``."""
    if TMA:  # source is a descriptor of (heads, S, D), which fills with zeros itself
        tile = source.load([head, start, 0]).reshape(BLOCK, D)
    else:
        rows = start + tl.arange(0, BLOCK)
        offsets = (head.to(tl.int64) * seqlen + rows[:, None]) * D + tl.arange(0, D)[None, :]
        if RAGGED:
            tile = tl.load(source + offsets, mask=rows[:, None] < seqlen, other=0.0)
        else:
            tile = tl.load(source + offsets)
    return tile


@triton.jit
def _store(target, tile, head, start, seqlen, D: tl.constexpr, BLOCK: tl.constexpr):
    rows = start + tl.arange(0, BLOCK)
    offsets = (head.to(tl.int64) * seqlen + rows[:, None]) * D + tl.arange(0, D)[None, :]
    tl.store(target + offsets, tile.to(target.dtype.element_ty), mask=rows[:, None] < seqlen)


@triton.jit
def _row_values(source, head, start, seqlen, other, BLOCK: tl.constexpr, RAGGED: tl.constexpr):
    """(BLOCK,) of a (heads, S) array, ``other`` beyond its end."""
    rows = start + tl.arange(0, BLOCK)
    pointers = source + head.to(tl.int64) * seqlen + rows
    if RAGGED:
        return tl.load(pointers, mask=rows < seqlen, other=other)
    return tl.load(pointers)


@triton.jit
def _visible(rows, keys, seqlen_q, seqlen_k, CAUSAL: tl.constexpr):
    """Whether a row of the tensor sees a key, broadcast over both."""
    if CAUSAL:  # which no key beyond the last passes
        return keys <= rows + seqlen_k - seqlen_q
    return (keys < seqlen_k) & (rows >= 0)


@triton.jit
def _plain_keys(start_q, seqlen_q, seqlen_k, BLOCK_Q: tl.constexpr, CAUSAL: tl.constexpr):
    """How many leading keys every row of a tile sees, and how many any row sees."""
    if CAUSAL:
        first = start_q + seqlen_k - seqlen_q + 1  # keys of the first row
        end = tl.minimum(tl.maximum(first + BLOCK_Q - 1, 0), seqlen_k)
        return tl.minimum(tl.maximum(first, 0), end), end
    return seqlen_k, seqlen_k


@triton.jit
def _attend(
    state, q_tile, k, v, head, begin, end, start_q, seqlen_q, seqlen_k, scale_log2,
    D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr,
    RAGGED: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The online softmax over keys begin..end: (out, maximum, total) after them."""
    out, maximum, total = state
    rows = start_q + tl.arange(0, BLOCK_Q)
    for start in tl.range(begin, end, BLOCK_K):
        k_tile = _tile(k, head, start, seqlen_k, D, BLOCK_K, RAGGED and MASKED, TMA)
        scores = tl.dot(q_tile, k_tile.T)
        if MASKED:
            keys = start + tl.arange(0, BLOCK_K)
            seen = _visible(rows[:, None], keys[None, :], seqlen_q, seqlen_k, CAUSAL)
            scores = tl.where(seen, scores, float("-inf"))
        larger = tl.maximum(maximum, tl.max(scores, 1) * scale_log2)
        # A row that has seen no key has the maximum -inf; -inf - -inf would be NaN.
        base = tl.where(larger == float("-inf"), 0.0, larger) if MASKED else larger
        p = tl.exp2(scores * scale_log2 - base[:, None])
        correction = tl.exp2(maximum - base)
        total = total * correction + tl.sum(p, 1)
        v_tile = _tile(v, head, start, seqlen_k, D, BLOCK_K, RAGGED and MASKED, TMA)
        out = tl.dot(p.to(v_tile.dtype), v_tile, out * correction[:, None])
        maximum = larger
    return out, maximum, total


@triton.jit
def attention_forward(
    q, k, v, out, lse, scale_log2, seqlen_q, seqlen_k,
    D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr,
    RAGGED: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """out and lse of one query tile; grid (query tiles, heads)."""
    start_q, head = tl.program_id(0) * BLOCK_Q, tl.program_id(1)
    q_tile = _tile(q, head, start_q, seqlen_q, D, BLOCK_Q, RAGGED, TMA)
    maximum = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    state = (tl.zeros([BLOCK_Q, D], tl.float32), maximum, total)
    plain, end = _plain_keys(start_q, seqlen_q, seqlen_k, BLOCK_Q, CAUSAL)
    plain = plain // BLOCK_K * BLOCK_K
    state = _attend(
        state, q_tile, k, v, head, 0, plain, start_q, seqlen_q, seqlen_k, scale_log2,
        D, BLOCK_Q, BLOCK_K, CAUSAL, RAGGED, TMA, False,
    )  # fmt: skip
    if CAUSAL or RAGGED:
        state = _attend(
            state, q_tile, k, v, head, plain, end, start_q, seqlen_q, seqlen_k, scale_log2,
            D, BLOCK_Q, BLOCK_K, CAUSAL, RAGGED, TMA, True,
        )  # fmt: skip
    result, maximum, total = state
    empty = total == 0.0
    safe = tl.where(empty, 1.0, total)
    _store(out, result / safe[:, None], head, start_q, seqlen_q, D, BLOCK_Q)
    rows = start_q + tl.arange(0, BLOCK_Q)
    values = tl.where(empty, float("inf"), maximum + tl.log2(safe))
    tl.store(lse + head.to(tl.int64) * seqlen_q + rows, values, mask=rows < seqlen_q)


@triton.jit
def attention_delta(out, dout, delta, seqlen_q, D: tl.constexpr, BLOCK_Q: tl.constexpr):
    """delta = rowsum(out * dout) of one query tile; grid (query tiles, heads)."""
    start_q, head = tl.program_id(0) * BLOCK_Q, tl.program_id(1)
    out_tile = _tile(out, head, start_q, seqlen_q, D, BLOCK_Q, True, False).to(tl.float32)
    dout_tile = _tile(dout, head, start_q, seqlen_q, D, BLOCK_Q, True, False).to(tl.float32)
    rows = start_q + tl.arange(0, BLOCK_Q)
    values = tl.sum(out_tile * dout_tile, 1)
    tl.store(delta + head.to(tl.int64) * seqlen_q + rows, values, mask=rows < seqlen_q)


@triton.jit
def _collect_key_gradients(
    state, k_tile, v_tile, q, dout, lse, delta, head, begin, end, start_k, seqlen_q, seqlen_k,
    scale_log2, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    RAGGED: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds what queries begin..end give to (dk, dv); scores are transposed, (keys, queries)."""
    dk, dv = state
    keys = start_k + tl.arange(0, BLOCK_K)
    for start in tl.range(begin, end, BLOCK_Q):
        q_tile = _tile(q, head, start, seqlen_q, D, BLOCK_Q, RAGGED, TMA)
        lse_row = _row_values(lse, head, start, seqlen_q, float("inf"), BLOCK_Q, RAGGED)
        p = tl.exp2(tl.dot(k_tile, q_tile.T) * scale_log2 - lse_row[None, :])
        if MASKED:
            rows = start + tl.arange(0, BLOCK_Q)
            p = tl.where(keys[:, None] <= rows[None, :] + seqlen_k - seqlen_q, p, 0.0)
        dout_tile = _tile(dout, head, start, seqlen_q, D, BLOCK_Q, RAGGED, TMA)
        dv = tl.dot(p.to(dout_tile.dtype), dout_tile, dv)
        delta_row = _row_values(delta, head, start, seqlen_q, 0.0, BLOCK_Q, RAGGED)
        ds = p * (tl.dot(v_tile, dout_tile.T) - delta_row[None, :])
        dk = tl.dot(ds.to(q_tile.dtype), q_tile, dk)
    return dk, dv


@triton.jit
def attention_key_gradients(
    q, k, v, dout, lse, delta, dk, dv, scale, scale_log2, seqlen_q, seqlen_k,
    D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr,
    RAGGED: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """dk and dv of one key tile; grid (key tiles, heads)."""
    start_k, head = tl.program_id(0) * BLOCK_K, tl.program_id(1)
    k_tile = _tile(k, head, start_k, seqlen_k, D, BLOCK_K, RAGGED, TMA)
    v_tile = _tile(v, head, start_k, seqlen_k, D, BLOCK_K, RAGGED, TMA)
    state = (tl.zeros([BLOCK_K, D], tl.float32), tl.zeros([BLOCK_K, D], tl.float32))
    plain = 0
    if CAUSAL:
        # The first row that sees the first key, and the first that sees the last key.
        begin = tl.maximum(start_k + seqlen_q - seqlen_k, 0) // BLOCK_Q * BLOCK_Q
        plain = tl.cdiv(tl.maximum(start_k + BLOCK_K - 1 + seqlen_q - seqlen_k, 0), BLOCK_Q)
        plain = tl.minimum(plain * BLOCK_Q, tl.cdiv(seqlen_q, BLOCK_Q) * BLOCK_Q)
        state = _collect_key_gradients(
            state, k_tile, v_tile, q, dout, lse, delta, head, begin, plain, start_k, seqlen_q,
            seqlen_k, scale_log2, D, BLOCK_Q, BLOCK_K, RAGGED, TMA, True,
        )  # fmt: skip
    dk_tile, dv_tile = _collect_key_gradients(
        state, k_tile, v_tile, q, dout, lse, delta, head, plain, seqlen_q, start_k, seqlen_q,
        seqlen_k, scale_log2, D, BLOCK_Q, BLOCK_K, RAGGED, TMA, False,
    )  # fmt: skip
    _store(dk, dk_tile * scale, head, start_k, seqlen_k, D, BLOCK_K)
    _store(dv, dv_tile, head, start_k, seqlen_k, D, BLOCK_K)


@triton.jit
def _collect_query_gradient(
    dq, q_tile, dout_tile, lse_row, delta_row, k, v, head, begin, end, start_q, seqlen_q, seqlen_k,
    scale_log2, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    CAUSAL: tl.constexpr, RAGGED: tl.constexpr, TMA: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds what keys begin..end give to dq."""
    rows = start_q + tl.arange(0, BLOCK_Q)
    for start in tl.range(begin, end, BLOCK_K):
        k_tile = _tile(k, head, start, seqlen_k, D, BLOCK_K, RAGGED and MASKED, TMA)
        p = tl.exp2(tl.dot(q_tile, k_tile.T) * scale_log2 - lse_row[:, None])
        if MASKED:  # beyond the last key k_tile is 0 and p may be inf: their product is NaN
            keys = start + tl.arange(0, BLOCK_K)
            seen = _visible(rows[:, None], keys[None, :], seqlen_q, seqlen_k, CAUSAL)
            p = tl.where(seen, p, 0.0)
        v_tile = _tile(v, head, start, seqlen_k, D, BLOCK_K, RAGGED and MASKED, TMA)
        ds = p * (tl.dot(dout_tile, v_tile.T) - delta_row[:, None])
        dq = tl.dot(ds.to(k_tile.dtype), k_tile, dq)
    return dq


@triton.jit
def attention_query_gradient(
    q, k, v, dout, lse, delta, dq, scale, scale_log2, seqlen_q, seqlen_k,
    D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr,
    RAGGED: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """dq of one query tile; grid (query tiles, heads)."""
    start_q, head = tl.program_id(0) * BLOCK_Q, tl.program_id(1)
    q_tile = _tile(q, head, start_q, seqlen_q, D, BLOCK_Q, RAGGED, TMA)
    dout_tile = _tile(dout, head, start_q, seqlen_q, D, BLOCK_Q, RAGGED, TMA)
    lse_row = _row_values(lse, head, start_q, seqlen_q, float("inf"), BLOCK_Q, RAGGED)
    delta_row = _row_values(delta, head, start_q, seqlen_q, 0.0, BLOCK_Q, RAGGED)
    plain, end = _plain_keys(start_q, seqlen_q, seqlen_k, BLOCK_Q, CAUSAL)
    plain = plain // BLOCK_K * BLOCK_K
    dq_tile = _collect_query_gradient(
        tl.zeros([BLOCK_Q, D], tl.float32), q_tile, dout_tile, lse_row, delta_row, k, v, head, 0,
        plain, start_q, seqlen_q, seqlen_k, scale_log2, D, BLOCK_Q, BLOCK_K, CAUSAL, RAGGED, TMA,
        False,
    )  # fmt: skip
    if CAUSAL or RAGGED:
        dq_tile = _collect_query_gradient(
            dq_tile, q_tile, dout_tile, lse_row, delta_row, k, v, head, plain, end, start_q,
            seqlen_q, seqlen_k, scale_log2, D, BLOCK_Q, BLOCK_K, CAUSAL, RAGGED, TMA, True,
        )  # fmt: skip
    _store(dq, dq_tile * scale, head, start_q, seqlen_q, D, BLOCK_Q)
