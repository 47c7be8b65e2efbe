"""How well a prediction orders what was measured: Spearman's rank correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Fewer pairs say nothing about an order.
LEAST = 3


def rank_correlation(predicted: Sequence[float], measured: Sequence[float]) -> float | None:
    """-1 to 1, equal numbers sharing their mean rank; None of too few pairs, or of equal numbers.

    Raises ValueError for sequences of different lengths.
    """
    if len(predicted) != len(measured):
        raise ValueError(f"{len(predicted)} predictions of {len(measured)} measurements")
    if len(measured) < LEAST or len({*predicted}) == 1 or len({*measured}) == 1:
        return None
    return float(np.corrcoef(_ranks(predicted), _ranks(measured))[0, 1])


def _ranks(numbers: Sequence[float]) -> np.ndarray:
    _, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]
