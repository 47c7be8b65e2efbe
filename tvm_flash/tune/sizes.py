"""The problem that is timed for a length bucket."""

from __future__ import annotations

from ..problem.lengths import bucket_of
from .trial import Sizes

# By bucket; decode has groups of four query heads, as models that are served have.
SIZES = {
    "tiny": Sizes(1, 8, 8, 16, 16),
    "decode": Sizes(1, 32, 8, 1, 8192),
    "short": Sizes(1, 8, 8, 256, 256),
    "medium": Sizes(1, 8, 8, 512, 512),
    "long": Sizes(1, 8, 8, 2048, 2048),
}


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
