"""Length buckets: a spec may have several kernels; the lengths of a call say which serves it."""

from __future__ import annotations

from collections.abc import Sequence

# The longest sequence, of queries or keys, in each bucket; "long" has no limit.
LIMITS = {"tiny": 32, "short": 256, "medium": 1024}

# Kernels add a position, a window's end (up to 2**30) and the rest of a tile in int32.
MAX_SEQLEN = 2**29

# "decode": at most so many queries. A tile of queries is then mostly empty, and one head too little
# work for a core; the kernel packs the query heads of a key/value head and splits the keys.
# Measured on Emerald Rapids, float32, 2048 keys, D = 64, 8 key/value heads: 0.43 of the time of
# 64-row tiles with 16 queries, 0.19 with one, 0.05 with one and groups of four heads.
DECODE_QUERIES = 16

FORWARD_BUCKETS = ("tiny", "decode", "short", "medium", "long")
BACKWARD_BUCKETS = ("tiny", "short", "medium", "long")
DEFAULT_BUCKET = "long"
# Rows that are appended are moved one by one, however many there are; in linear attention chunks of
# rows are; tables have one config.
_BUCKETS = {
    "forward": FORWARD_BUCKETS,
    "forward_split": FORWARD_BUCKETS,
    "append": (DEFAULT_BUCKET,),
    "linear": ("tiny", DEFAULT_BUCKET),
    **dict.fromkeys(
        ("tables", "tables_deterministic", "softmax", "softmax_backward"), (DEFAULT_BUCKET,)
    ),
}

# Whose kernel serves a bucket that a loaded library lacks, nearest first. Every kernel is right for
# every length, so this decides speed alone; one for few rows is too slow to stand in for others.
_STAND_INS = {
    "tiny": ("short", "medium", "long"),
    "decode": ("tiny", "short", "medium", "long"),
    "short": ("medium", "long", "tiny"),
    "medium": ("long", "short", "tiny"),
    "long": ("medium", "short", "tiny"),
}


def is_forward(direction: str) -> bool:
    """Whether a direction (a key of artifact.DIRECTIONS) computes attention, and no gradient."""
    return direction in ("forward", "forward_split")


def buckets_of(direction: str) -> tuple[str, ...]:
    """The buckets of a direction (a key of artifact.DIRECTIONS)."""
    return _BUCKETS.get(direction, BACKWARD_BUCKETS)


def kept_buckets(direction: str, wanted: Sequence[str]) -> list[str]:
    """The buckets of a direction that are among ``wanted``; its only one, where it has no more."""
    served = buckets_of(direction)
    return [bucket for bucket in served if bucket in wanted or len(served) == 1]


def bucket_of(direction: str, seqlen_q: int, seqlen_k: int) -> str:
    """The bucket of a call in ``direction`` (a key of artifact.DIRECTIONS)."""
    longest = seqlen_q if seqlen_q > seqlen_k else seqlen_k
    if longest <= LIMITS["tiny"]:
        return "tiny"
    if direction == "linear":
        return DEFAULT_BUCKET
    if is_forward(direction) and seqlen_q <= DECODE_QUERIES:
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
