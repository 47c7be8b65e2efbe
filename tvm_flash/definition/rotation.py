"""Rotary position embedding (Su et al. 2021): a pair of a row turned by the angle of its position.

cos and sin are tables, of a row for each position.
"""

from __future__ import annotations


def rotated(first, second, cos, sin) -> tuple:
    """The pair (first, second) turned by an angle of these, float32."""
    return first * cos - second * sin, first * sin + second * cos


def members(pair, pairs, interleaved: bool) -> tuple:
    """Columns of both members of a pair: (2 i, 2 i + 1), or (i, i + pairs)."""
    return (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + pairs)
