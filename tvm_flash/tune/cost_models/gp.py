"""The mean of a Gaussian process as a cost model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .base import Regression, one_thread, standardisation

# Prior variances of the two parts, of labels whose variance is 1.
_LINE, _NEAR = 0.3, 1.0
# Of these the pair under which the labels are likeliest. Lengths in root mean squares over the
# columns, noise as variance.
_LENGTHS = (0.7, 1.4, 2.8)
_NOISES = (0.003, 0.03, 0.3)
# A knob that hardly varied so far is not blown up: half a doubling is one unit.
_LEAST_DEVIATION = 0.5
# Rows predicted at once: covariances with all of a large space would fill the memory.
_ROWS = 8192


class _Fit(NamedTuple):
    """One choice of length and noise."""

    likelihood: float
    length: float
    weights: np.ndarray


class GaussianProcess(Regression):
    """A line plus what near points have in common (Rasmussen and Williams, 2006, chapter 2).

    Far from all measurements the second part is 0, so that it corrects a prior only where something
    is known. A fit costs n^3: for hundreds of points.
    """

    def __init__(self, seed: int):
        self._fit: _Fit | None = None

    def regress(self, features: np.ndarray, labels: np.ndarray) -> None:
        self._center, scale = standardisation(features)
        self._scale = np.maximum(scale, _LEAST_DEVIATION)
        self._mean, self._unit = labels.mean(), labels.std() or 1.0
        self._known = self._inputs(features)
        y = (labels - self._mean) / self._unit
        with one_thread():
            fits = [fit for length in _LENGTHS for fit in self._fits(y, length)]
        self._fit = max(fits, key=lambda fit: fit.likelihood)

    def predict(self, features: np.ndarray) -> np.ndarray:
        if self._fit is None:
            return np.zeros(len(features))
        parts = [self._near(features[n : n + _ROWS]) for n in range(0, len(features), _ROWS)]
        return self._mean + self._unit * np.concatenate([np.zeros(0), *parts])

    def _near(self, features: np.ndarray) -> np.ndarray:
        return self._covariance(self._inputs(features), self._fit.length) @ self._fit.weights

    def _inputs(self, features: np.ndarray) -> np.ndarray:
        x = features.astype(np.float64) - self._center
        return x / (self._scale * features.shape[1] ** 0.5)

    def _fits(self, y: np.ndarray, length: float) -> Iterator[_Fit]:
        """One for each noise; likelihoods are logarithms, up to a constant."""
        import torch  # numpy's threads cannot be told to be one

        kernel = torch.from_numpy(self._covariance(self._known, length))
        values, vectors = (part.numpy() for part in torch.linalg.eigh(kernel))
        turned = vectors.T @ y
        for noise in _NOISES:
            spread = np.maximum(values, 0) + noise
            likelihood = -0.5 * (turned**2 / spread + np.log(spread)).sum()
            yield _Fit(likelihood, length, vectors @ (turned / spread))

    def _covariance(self, x: np.ndarray, length: float) -> np.ndarray:
        """(len(x), n) with the known points."""
        line = x @ self._known.T
        squares = (x**2).sum(1)[:, None] + (self._known**2).sum(1) - 2 * line
        return _LINE * line + _NEAR * np.exp(-squares / (2 * length**2))
