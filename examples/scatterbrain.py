"""Scatterbrain: random features for all pairs, corrected where a pair is likely to be large.

    python examples/scatterbrain.py [--seqlen 1024] [--out examples/out]

Linear attention with Performer's features estimates the sum over all keys; queries and keys that
hash alike are attended to exactly, and what the features said of these pairs is taken away (Chen et
al., "Scatterbrain: Unifying Sparse and Low-rank Attention", 2021). Numerators and denominators of
the three parts are added before one division. Draws the error of each way by the features.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from tvm_flash import attention, linear_attention
from tvm_flash.feature_maps import positive_random_features

BATCH, HEADS, HEAD_DIM, TOPICS = 1, 4, 64, 16
FEATURES = (16, 32, 64, 128, 256, 512)


def performer(q, k, v, phi):
    """Softmax attention as the features ``phi`` estimate it (Choromanski et al., 2021)."""
    return linear_attention(q, k, v, feature_map=phi)


def hashed(q, k, v):
    """Exact attention to the keys of a query's bucket."""
    buckets = Buckets(q, k)
    out, _ = attention(*buckets.packed(q, k, v), **buckets.lengths, return_lse=True)
    return buckets.unpacked(out)


def scatterbrain(q, k, v, phi):
    """Both: sums of the features over all keys, within a bucket replaced by the exact ones.

    q, k, v (B, S, H, D).
    """
    buckets = Buckets(q, k)
    near_q, near_k, near_v = buckets.packed(q, k, v)
    exact = attention(near_q, near_k, near_v, **buckets.lengths, return_lse=True)
    # exp of the logarithm of a product of features is what linear attention weights a pair with.
    estimated = attention(
        phi(near_q), phi(near_k), near_v, **buckets.lengths, return_lse=True, softmax_scale=1.0,
        score_mod=lambda score, b, h, q_idx, k_idx: torch.log(score),
    )  # fmt: skip
    correction = _sums(*exact) - _sums(*estimated)
    with_ones = F.pad(v, (0, 1), value=1.0)
    everywhere = linear_attention(q, k, with_ones, feature_map=phi, normalize=False)
    sums = everywhere + buckets.unpacked(correction)
    return sums[..., :-1] / sums[..., -1:]


def _sums(out, lse):
    """Numerator of packed attention and, as the last column, its denominator."""
    total = lse.exp().T[..., None]
    return torch.cat([out * total, total], -1)


class Buckets:
    """Queries and keys (B, S, H, D) that hash alike: a packed sequence for each bucket of a head.

    The hash is the nearest of random directions (Andoni et al., 2015).
    """

    def __init__(self, q, k, directions=TOPICS):
        random = torch.Generator().manual_seed(1)
        axes = torch.randn(q.shape[-1], directions, generator=random)
        self.shape, count = (q.shape[0], q.shape[2], q.shape[1]), 2 * directions
        head = torch.arange(q.shape[0] * q.shape[2])[:, None] * count
        nearest = [torch.cat([r, -r], -1).argmax(-1) for r in (_heads(x) @ axes for x in (q, k))]
        bucket = [(head + one).flatten() for one in nearest]
        self._order = [one.argsort(stable=True) for one in bucket]
        ends = [torch.bincount(one, minlength=head.shape[0] * count).cumsum(0) for one in bucket]
        starts = [F.pad(one, (1, 0)).to(torch.int32) for one in ends]
        self.lengths = {"cu_seqlens_q": starts[0], "cu_seqlens_k": starts[1]}

    def packed(self, q, k, v):
        """Rows (B * H * S, 1, D), bucket by bucket."""
        order_q, order_k = self._order
        pairs = ((q, order_q), (k, order_k), (v, order_k))
        return [_heads(x).flatten(0, 1)[order, None] for x, order in pairs]

    def unpacked(self, rows):
        """Rows of queries (B * H * S, 1, D) as (B, S, H, D)."""
        return rows[self._order[0].argsort()].view(*self.shape, -1).transpose(1, 2)


def _heads(x):
    """x (B, S, H, D) as (B * H, S, D)."""
    return x.detach().transpose(1, 2).flatten(0, 1)


def errors(seqlen):
    """By name, the distance from exact attention relative to its size, for each of FEATURES."""
    torch.manual_seed(0)
    # Tokens of some topics: a few pairs are large, which features estimate badly.
    topics = torch.randn(TOPICS, HEADS, HEAD_DIM)
    member = torch.randint(TOPICS, (2, BATCH, seqlen))
    q, k = 0.7 * topics[member] + 0.1 * torch.randn(2, BATCH, seqlen, HEADS, HEAD_DIM)
    v = torch.randn(topics.shape)[member[1]] + torch.randn(k.shape)
    exact = attention(q, k, v)
    found = {"hashed alone": [], "Performer": [], "Scatterbrain": []}
    for features in FEATURES:
        drawn = [positive_random_features(HEAD_DIM, features, seed=seed) for seed in range(8)]
        ways = (
            [hashed(q, k, v)],
            [performer(q, k, v, phi) for phi in drawn],
            [scatterbrain(q, k, v, phi) for phi in drawn],
        )
        for name, outs in zip(found, ways, strict=True):
            off = [((out - exact).norm() / exact.norm()).item() for out in outs]
            found[name].append(sum(off) / len(off))
    return found


def plot(found, path: Path) -> None:
    """Draw ``errors`` into a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for name, values in found.items():
        axes.plot(FEATURES, values, marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="features", ylabel="relative error")
    axes.set_xticks(FEATURES, [str(n) for n in FEATURES])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seqlen", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("examples/out"))
    options = parser.parse_args()
    found = errors(options.seqlen)
    print(f"{'features':14}", *(f"{n:6}" for n in FEATURES))
    for name, values in found.items():
        print(f"{name:14}", *(f"{value:6.3f}" for value in values))
    options.out.mkdir(parents=True, exist_ok=True)
    plot(found, options.out / "scatterbrain.png")


if __name__ == "__main__":
    main()
