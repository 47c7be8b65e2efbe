"""The problem that is timed: on CPUs for a length bucket, on GPUs for all lengths."""

from __future__ import annotations

from ..problem.lengths import bucket_of
from ..problem.spec import AttentionSpec
from .trial import Sizes

# By bucket; decode has groups of four query heads, as models that are served have.
SIZES = {
    "tiny": Sizes(1, 8, 8, 16, 16),
    "decode": Sizes(1, 32, 8, 1, 8192),
    "short": Sizes(1, 8, 8, 256, 256),
    "medium": Sizes(1, 8, 8, 512, 512),
    "long": Sizes(1, 8, 8, 2048, 2048),
}


def problem_of(spec: AttentionSpec) -> Sizes:
    """What is timed on GPUs: 16384 rows of 2048 columns over all heads, length 2048."""
    heads = max(2048 // spec.head_dim, 1)
    return Sizes(8, heads, heads, 2048, 2048)


def sizes_of(direction: str, bucket: str, seqlen: int | None = None) -> Sizes:
    """What is timed for ``bucket``; ``seqlen`` keys, and queries but for decode, when given.

    Raises ValueError for a ``seqlen`` that lies in another bucket.
    """
    sizes = SIZES[bucket]
    if seqlen is not None:
        queries = sizes.seqlen_q if bucket == "decode" else seqlen
        sizes = sizes._replace(seqlen_q=queries, seqlen_k=seqlen)
    own = bucket_of(direction, sizes.seqlen_q, sizes.seqlen_k) if sizes.seqlen_k > 0 else "none"
    if own != bucket:
        raise ValueError(
            f"{seqlen=}: a {direction} of {sizes.seqlen_q} queries and {sizes.seqlen_k} keys is in "
            f"bucket {own}, not {bucket}"
        )
    return sizes
