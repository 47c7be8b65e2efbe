"""Whether the shapes of a call fit each other, and what kernels can count."""

from __future__ import annotations

from collections.abc import Sequence

from .lengths import MAX_SEQLEN

MAX_COUNT = 2**31 - 1
MAX_BYTES = 2**63 - 1


def check_sizes(q: Sequence[int], k: Sequence[int], v: Sequence[int]) -> None:
    """ValueError unless the shapes q (B, Sq, H, D), k (B, Sk, Hk, D) and v (B, Sk, Hk, Dv) fit.

    Head dimensions are left to AttentionSpec.
    """
    batch, seqlen_q, heads, head_dim = q
    batch_k, seqlen_k, kv_heads, head_dim_k = k
    batch_v, seqlen_v, heads_v, head_dim_v = v
    if not batch == batch_k == batch_v:
        raise ValueError(f"batch of q, k, v is {batch}, {batch_k}, {batch_v}: make them equal")
    if seqlen_k != seqlen_v:
        raise ValueError(f"k has {seqlen_k} rows, v has {seqlen_v}: each key needs one value")
    if kv_heads != heads_v:
        raise ValueError(f"k has {kv_heads} heads, v has {heads_v}: make them equal")
    if head_dim != head_dim_k:
        raise ValueError(f"head_dim of q is {head_dim}, of k {head_dim_k}: make them equal")
    check_heads(heads, kv_heads)
    widest = max(head_dim, head_dim_v)
    _check_counts(batch, max(seqlen_q, seqlen_k), heads)
    _check_bytes(batch, max(seqlen_q, seqlen_k), heads, widest)


def check_packed_sizes(q: Sequence[int], k: Sequence[int], v: Sequence[int]) -> None:
    """ValueError unless the shapes q (total_q, H, D), k (.., Hk, D) and v (.., Hk, Dv) fit."""
    if k[:-1] != v[:-1]:
        shapes = f"k has {tuple(k)}, v has {tuple(v)}"
        raise ValueError(f"{shapes}: each key needs one value, of as many heads")
    if q[-1] != k[-1]:
        raise ValueError(f"head_dim of q is {q[-1]}, of k {k[-1]}: make them equal")
    check_heads(q[-2], k[-2])


def check_heads(heads: int, kv_heads: int) -> None:
    """ValueError unless each of ``kv_heads`` serves equally many of ``heads``."""
    if kv_heads == 0 == heads:
        return
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(
            f"num_heads={heads} of q must be a multiple of num_kv_heads={kv_heads} of k and v: "
            "repeat or drop heads"
        )


def _check_counts(batch: int, seqlen: int, heads: int) -> None:
    if seqlen > MAX_SEQLEN:
        raise ValueError(f"{seqlen=} exceeds the limit {MAX_SEQLEN} (2**29): split the sequence")
    if batch > MAX_COUNT or heads > MAX_COUNT:
        raise ValueError(
            f"{batch=}, num_heads={heads}: limit {MAX_COUNT} (2**31 - 1); split the batch"
        )


def _check_bytes(batch: int, seqlen: int, heads: int, head_dim: int) -> None:
    """float32 accumulators have these sizes, whatever the dtype of the tensors."""
    if (size := 4 * batch * seqlen * heads * head_dim) > MAX_BYTES:
        raise ValueError(
            f"{batch=}, {seqlen=}, num_heads={heads}, {head_dim=} need {size} bytes in float32: "
            f"limit {MAX_BYTES} (2**63 - 1); split the batch"
        )
