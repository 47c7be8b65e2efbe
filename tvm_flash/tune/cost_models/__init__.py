"""Cost models: from the features of candidates to a score, higher for faster ones.

Each learns the throughput relative to the best, ``min(seconds) / seconds`` in (0, 1], and 0 where a
candidate failed: the label of Ansor (Zheng et al., OSDI 2020), which spends a model's capacity on
the fast end. A score means nothing but the order it gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .base import CostModel, Regression, standardisation
from .gp import GaussianProcess
from .mlp import Mlp

_XGB_ROUNDS = 60
# One thread: sums in another order would be other scores, and other proposals.
_XGB_PARAMETERS = {
    "max_depth": 5,
    "eta": 0.15,
    "min_child_weight": 1,
    "lambda": 1.0,
    "objective": "reg:squarederror",
    "tree_method": "hist",
    "nthread": 1,
    "verbosity": 0,
}


def cost_model(name: str, seed: int) -> CostModel:
    """A model by name: ``random``, ``ridge``, ``gp``, ``xgb`` or ``mlp``.

    Raises ValueError for another name.
    """
    if name not in COST_MODELS:
        raise ValueError(f"cost model {name!r} must be one of {', '.join(COST_MODELS)}")
    return COST_MODELS[name](seed)


class Random:
    """Scores at random: what a search does without a model."""

    def __init__(self, seed: int):
        self._generator = np.random.default_rng(seed)

    def fit(self, features: np.ndarray, seconds: Sequence[float | None]) -> None:
        """Nothing is learned."""

    def predict(self, features: np.ndarray) -> np.ndarray:
        return self._generator.random(len(features))


class Ridge(Regression):
    """Linear in the features and their squares: few numbers, for a handful of measurements."""

    def __init__(self, seed: int, penalty: float = 1.0):
        self._penalty, self._weights = penalty, None

    def regress(self, features: np.ndarray, labels: np.ndarray) -> None:
        self._center, self._scale = standardisation(features)
        x, self._mean = self._basis(features), labels.mean()
        gram = x.T @ x + self._penalty * np.eye(x.shape[1])
        self._weights = np.linalg.solve(gram, x.T @ (labels - self._mean))

    def predict(self, features: np.ndarray) -> np.ndarray:
        if self._weights is None:
            return np.zeros(len(features))
        return self._mean + self._basis(features) @ self._weights

    def _basis(self, features: np.ndarray) -> np.ndarray:
        x = (features.astype(np.float64) - self._center) / self._scale
        return np.hstack([x, x**2 - 1])


class Xgb(Regression):
    """Gradient-boosted trees (Chen and Guestrin, KDD 2016), with which AutoTVM guides its search
    (Chen et al., NeurIPS 2018)."""

    def __init__(self, seed: int):
        self._seed, self._booster = seed, None

    def regress(self, features: np.ndarray, labels: np.ndarray) -> None:
        import xgboost

        data = xgboost.DMatrix(features, label=labels, nthread=1)
        parameters = {**_XGB_PARAMETERS, "seed": self._seed % 2**31}
        self._booster = xgboost.train(parameters, data, num_boost_round=_XGB_ROUNDS)

    def predict(self, features: np.ndarray) -> np.ndarray:
        if self._booster is None:
            return np.zeros(len(features))
        return self._booster.inplace_predict(features).astype(np.float64)


COST_MODELS = {
    "random": Random,
    "ridge": Ridge,
    "gp": GaussianProcess,
    "xgb": Xgb,
    "mlp": Mlp,
}
