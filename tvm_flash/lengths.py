"""Length buckets: a spec may have several kernels; the lengths of a call say which serves it."""

from __future__ import annotations

# The longest sequence, of queries or keys, in each bucket; "long" has no limit.
LIMITS = {"tiny": 32, "short": 256, "medium": 1024}

# "decode": so few query rows share a key that a tile of them is mostly empty. One row of each of
# the query heads that share a key/value head counts, so this is a vector of 16 lanes at most.
DECODE_ROWS = 16

FORWARD_BUCKETS = ("tiny", "decode", "short", "medium", "long")
BACKWARD_BUCKETS = ("tiny", "short", "medium", "long")
DEFAULT_BUCKET = "long"

# Whose kernel serves a bucket that a loaded library lacks, nearest first. Every kernel is right for
# every length, so this decides speed alone; one for few rows is too slow to stand in for others.
_STAND_INS = {
    "tiny": ("short", "medium", "long"),
    "decode": ("tiny", "short", "medium", "long"),
    "short": ("medium", "long", "tiny"),
    "medium": ("long", "short", "tiny"),
    "long": ("medium", "short", "tiny"),
}


def buckets_of(direction: str) -> tuple[str, ...]:
    """The buckets of a direction (a key of artifact.DIRECTIONS)."""
    return FORWARD_BUCKETS if direction == "forward" else BACKWARD_BUCKETS


def bucket_of(direction: str, seqlen_q: int, seqlen_k: int, group: int = 1) -> str:
    """The bucket of a call; ``group`` query heads share each key/value head."""
    longest = seqlen_q if seqlen_q > seqlen_k else seqlen_k
    if longest <= LIMITS["tiny"]:
        return "tiny"
    if direction == "forward" and seqlen_q * group <= DECODE_ROWS:
        return "decode"
    if longest <= LIMITS["short"]:
        return "short"
    return "medium" if longest <= LIMITS["medium"] else "long"


def stand_in(bucket: str, available) -> str | None:
    """The bucket of ``available`` whose kernel serves ``bucket`` best; None where none may."""
    return next((b for b in (bucket, *_STAND_INS[bucket]) if b in available), None)


def check_buckets(buckets) -> tuple[str, ...]:
    """``buckets`` as a tuple; ValueError names one that does not exist."""
    buckets = tuple(buckets)
    if unknown := [bucket for bucket in buckets if bucket not in FORWARD_BUCKETS]:
        raise ValueError(f"buckets={unknown} must be among {', '.join(FORWARD_BUCKETS)}")
    return buckets
