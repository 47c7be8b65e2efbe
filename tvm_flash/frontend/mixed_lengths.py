"""The entries of a mixed batch on CPUs: few rows beside many go to the kernels for few rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..problem.lengths import DECODE_QUERIES, LIMITS, bucket_of
from .packed_rows import Extent, read

# Keys that entries of few rows must have together for a launch of their own, and at first a
# compilation. Measured on Zen 4: a tile of 64 rows spends 0.3 to 0.5 ms of a thread on so many keys
# of a head (bfloat16, float32; D = 64), where a whole call on 16 rows takes 0.02 ms.
LEAST_KEYS = 1024


def shares_of(
    spans: Sequence[torch.Tensor], extents: tuple[Extent, Extent]
) -> list[tuple[str, list[torch.Tensor]]]:
    """(bucket, spans) of the forwards that serve a batch together, each some of its entries.

    Entries of at most DECODE_QUERIES queries, or "tiny" ones, would fill little of a tile that is
    made for the longest: they get the kernels of their own lengths, which pack the heads of such
    entries or have small tiles. The spans of a share are of its entries alone: they are numbered
    anew. spans, extents: of a call, as in ``spans.Ragged``. Empty where one kernel serves all best:
    that of the longest entry.
    """
    if len(spans[0]) < 2 or extents[0].longest <= DECODE_QUERIES or extents[1].rows < LEAST_KEYS:
        return []
    starts_q, ends_q, starts_k, ends_k = map(read, spans[:4])
    queries, keys = ends_q - starts_q, ends_k - starts_k
    is_tiny = np.maximum(queries, keys) <= LIMITS["tiny"]
    rest, buckets = queries > 0, []
    for bucket, is_small in {"tiny": is_tiny, "decode": queries <= DECODE_QUERIES}.items():
        own = rest & is_small
        if keys[own].sum() >= LEAST_KEYS:
            buckets.append((bucket, own))
            rest = rest & ~own
    if buckets and rest.any():
        longest = (int(lengths[rest].max()) for lengths in (queries, keys))
        buckets.append((bucket_of("forward", *longest), rest))
    if len(buckets) < 2:
        return []
    return [(bucket, [x[torch.from_numpy(own)] for x in spans]) for bucket, own in buckets]
