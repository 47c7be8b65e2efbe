"""Reformer, Routing Transformer and Linformer: attention over fewer keys, made of what is here.

    python examples/sparse_transformers.py [--seqlen 2048]

The first two find the keys that a query is likely to attend to, sort tokens so that they stand
together, and attend within short packed sequences. The third mixes keys and values into fewer. All
are differentiable, and exact over the keys that they choose.
"""

from __future__ import annotations

import argparse
import time
from functools import reduce

import torch
import torch.nn.functional as F

from tvm_flash import attention, merge_states

BATCH, HEADS, HEAD_DIM = 1, 4, 64


def reformer(x, v, *, buckets=32, chunk=64, rounds=4):
    """Causal attention to tokens of one hash bucket (Kitaev et al., 2020), x both query and key.

    x, v (B, S, H, D) with S a multiple of ``chunk``. Every round hashes by random directions, sorts
    tokens by bucket, and lets a chunk attend to itself and the one before; rounds are merged by
    their lse. A pair that is seen in n rounds loses log n, so that it counts once.
    """
    batch, seqlen, heads, _ = x.shape
    x, v = _heads_as_entries(x), _heads_as_entries(v)
    directions = torch.randn(rounds, x.shape[-1], buckets // 2)
    hashed = torch.einsum("nsd,rdb->rnsb", x.detach(), directions)
    bucket = torch.cat([hashed, -hashed], -1).argmax(-1)  # (rounds, B * H, S)
    order = bucket.argsort(dim=-1, stable=True)
    # A token's chunk and bucket in one number; keys that it sees have an equal or ``buckets`` less.
    code = order.argsort(-1) // chunk * buckets + bucket
    parts = [_round(x, v, order[r], code, r, chunk, buckets) for r in range(rounds)]
    out, _ = merge_states(*(tensor for part in parts for tensor in part))
    return out.view(batch, heads, seqlen, -1).transpose(1, 2)


def _round(x, v, order, code, this, chunk, buckets):
    """out (B * H, S, 1, D), lse (B * H, 1, S) of the chunks of round number ``this``."""
    entries, seqlen = order.shape
    chunks = seqlen // chunk
    rows = order.view(entries * chunks, chunk)  # the tokens of each chunk
    keys = torch.cat([rows, rows.roll(1, 0)], 1)
    is_first = torch.arange(entries * chunks) % chunks == 0  # it has no chunk before it
    has_key = (torch.arange(2 * chunk) < chunk) | ~is_first[:, None]

    def seen_in(r, n, i, j):
        distance = code[r, n, i] - code[r, n, j]
        return (distance == 0) | (distance == buckets)

    def once(score, b, h, q_idx, k_idx):
        n, i, j = b // chunks, rows[b, q_idx], keys[b, k_idx]
        count = reduce(torch.add, (seen_in(r, n, i, j).float() for r in range(len(code))))
        return score - torch.log(torch.clamp(count, min=1.0))

    def same_bucket(b, h, q_idx, k_idx):
        i, j = rows[b, q_idx], keys[b, k_idx]
        return seen_in(this, b // chunks, i, j) & (j <= i)

    of_head = torch.arange(entries).repeat_interleave(chunks)[:, None] * seqlen
    packed_q, packed_k = (rows + of_head).flatten(), (keys + of_head)[has_key]
    x, v = x.flatten(0, 1)[:, None], v.flatten(0, 1)[:, None]
    out, lse = attention(
        x[packed_q], F.normalize(x, dim=-1)[packed_k], v[packed_k],
        cu_seqlens_q=_cumulative(torch.full((len(rows),), chunk)),
        cu_seqlens_k=_cumulative(has_key.sum(1)),
        score_mod=once, mask_mod=same_bucket, return_lse=True,
    )  # fmt: skip
    unsort = packed_q.argsort()
    return out[unsort].view(entries, seqlen, 1, -1), lse[:, unsort].view(entries, 1, seqlen)


def routing(x, v, centroids):
    """Causal attention to tokens of one cluster (Roy et al., 2021), x both query and key.

    x, v (B, S, H, D); centroids (H, clusters, D) of unit length, from ``spherical_k_means``.
    Clusters of any size are packed sequences, with their tokens in order.
    """
    batch, seqlen, heads, _ = x.shape
    nearest = torch.einsum("bshd,hcd->bhsc", F.normalize(x.detach(), dim=-1), centroids).argmax(-1)
    clusters = centroids.shape[1]
    head = torch.arange(batch * heads).view(batch, heads, 1)
    cluster = (nearest + head * clusters).flatten()
    order = cluster.argsort(stable=True)
    lengths = _cumulative(torch.bincount(cluster, minlength=batch * heads * clusters))
    rows, values = (_heads_as_entries(t).flatten(0, 1)[order, None] for t in (x, v))
    keys = F.normalize(rows, dim=-1)
    out = attention(rows, keys, values, cu_seqlens_q=lengths, cu_seqlens_k=lengths, causal=True)
    return out[order.argsort()].view(batch, heads, seqlen, -1).transpose(1, 2)


def spherical_k_means(x, clusters, *, steps=10):
    """Centroids (H, clusters, D) of unit length of the directions of x (B, S, H, D)."""
    points = F.normalize(x.detach().transpose(0, 2).flatten(1, 2), dim=-1)  # (H, S * B, D)
    centroids = points[:, torch.randperm(points.shape[1])[:clusters]]
    for _ in range(steps):
        member = F.one_hot((points @ centroids.mT).argmax(-1), clusters).to(points.dtype)
        centroids = F.normalize(centroids * 1e-3 + member.mT @ points, dim=-1)
    return centroids


def linformer(q, k, v, mix_k, mix_v):
    """Attention to mixtures of keys (Wang et al., 2020); mix_k, mix_v (mixtures, S)."""
    mixed = (torch.einsum("ms,bshd->bmhd", mix, x) for mix, x in ((mix_k, k), (mix_v, v)))
    return attention(q, *mixed)


def _heads_as_entries(x):
    """(B, S, H, D) as (B * H, S, D)."""
    return x.transpose(1, 2).flatten(0, 1)


def _cumulative(lengths):
    return F.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seqlen", type=int, default=4096, help="a multiple of 64")
    seqlen = parser.parse_args().seqlen
    torch.manual_seed(0)
    # Tokens of 64 topics, in any order: there is something to find.
    topics = 12 * torch.randn(64, HEADS, HEAD_DIM)
    x = topics[torch.randint(64, (BATCH, seqlen))] + torch.randn(BATCH, seqlen, HEADS, HEAD_DIM)
    v = torch.randn(BATCH, seqlen, HEADS, HEAD_DIM)
    keys, mix = F.normalize(x, dim=-1), torch.randn(2, seqlen // 8, seqlen) * seqlen**-0.5
    centroids = spherical_k_means(x, 64)
    exact = attention(x, keys, v, causal=True)
    for name, call in {
        "exact": lambda: attention(x, keys, v, causal=True),
        "reformer": lambda: reformer(x, v, buckets=128, chunk=seqlen // 64),
        "routing": lambda: routing(x, v, centroids),
        "linformer, not causal": lambda: linformer(x, keys, v, *mix),
    }.items():
        call()  # compiles kernels
        start = time.perf_counter()
        out = call()
        spent = 1e3 * (time.perf_counter() - start)
        off = (out - exact).norm() / exact.norm()
        print(f"{name:22} {spent:7.1f} ms, differs from exact attention by {off:.0%}")


if __name__ == "__main__":
    main()
