"""What cost models have in common: the protocol, the labels, and the one that learns nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class CostModel(Protocol):
    """Orders candidates. The same seed and calls give the same scores, bit for bit."""

    def fit(self, features: np.ndarray, seconds: Sequence[float | None]) -> None:
        """Learn anew from (n, f) features and n times, None or NaN where a candidate failed."""

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Scores (n,) float64 of (n, f) features, higher is faster."""


class Random:
    """Scores at random: what a search does without a model."""

    def __init__(self, seed: int):
        self._generator = np.random.default_rng(seed)

    def fit(self, features: np.ndarray, seconds: Sequence[float | None]) -> None:
        """Nothing is learned."""

    def predict(self, features: np.ndarray) -> np.ndarray:
        return self._generator.random(len(features))


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
