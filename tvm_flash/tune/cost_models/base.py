"""What cost models have in common: the protocol, the labels, the scale of features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np


class CostModel(Protocol):
    """Orders candidates. The same seed and calls give the same scores, bit for bit."""

    def fit(self, features: np.ndarray, seconds: Sequence[float | None]) -> None:
        """Learn anew from (n, f) features and n times, None or NaN where a candidate failed."""

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Scores (n,) float64 of (n, f) features, higher is faster."""


class Regression:
    """A cost model that is a regression: ``fit`` is ``regress`` on the throughput."""

    def fit(self, features: np.ndarray, seconds: Sequence[float | None]) -> None:
        """Learn the order of candidates; see ``CostModel``."""
        self.regress(features, throughput(seconds))

    def regress(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Learn any (n,) labels; ``predict`` then gives those."""
        raise NotImplementedError


def throughput(seconds: Sequence[float | None]) -> np.ndarray:
    """Labels (n,) float64: the least of ``seconds`` over each, 0 for None and NaN."""
    times = np.array([np.nan if s is None else s for s in seconds], dtype=np.float64)
    failed = np.isnan(times)
    if failed.all():
        return np.zeros(len(times))
    return np.where(failed, 0.0, np.nanmin(times) / np.where(failed, 1.0, times))


def standardisation(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (1 where all are equal) of each column."""
    deviation = features.std(axis=0)
    return features.mean(axis=0), np.where(deviation > 0, deviation, 1.0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums of the same order whatever the number of cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
