"""Lengths that come together in a batch: drawn by a law, and those of real text."""

from __future__ import annotations

# Zipf's law: 2048 / rank for the ranks 1 to 32, in an order that was drawn once.
ZIPF = (
    512, 256, 68, 97, 102, 341, 2048, 186, 136, 75, 113, 93, 73, 85, 682, 89, 409, 78, 292, 107,
    170, 66, 204, 157, 128, 120, 227, 1024, 146, 70, 64, 81,
)  # fmt: skip

# Bytes, one token each, of docstrings of Python 3.11's standard modules: of the first 48, by name,
# that have one of at most 2048 bytes (no packages, no leading underscore). Lengths alone, no text.
TEXT = (
    51, 1022, 932, 1183, 68, 15, 21, 171, 81, 292, 416, 920, 1543, 61, 155, 1088, 585, 485, 52,
    1729, 163, 69, 41, 133, 867, 48, 1220, 177, 418, 47, 1106, 68, 150, 649, 389, 424, 26, 145,
    1409, 112, 245, 60, 224, 1349, 1472, 147, 387, 194,
)  # fmt: skip

LISTS = {"zipf": ZIPF, "text": TEXT}

# Evenly from 100 to 8000: a cache of sequences that have just begun and of long ones.
CACHED = tuple(100 + 7900 * n // 31 for n in range(32))
