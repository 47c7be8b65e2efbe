"""Boosted trees as a cost model."""

from __future__ import annotations

import numpy as np
import xgboost

from .base import Regression

_ROUNDS = 60
# One thread: sums in another order would be other scores, and other proposals.
_PARAMETERS = {
    "max_depth": 5,
    "eta": 0.15,
    "min_child_weight": 1,
    "lambda": 1.0,
    "objective": "reg:squarederror",
    "tree_method": "hist",
    "nthread": 1,
    "verbosity": 0,
}


class Xgb(Regression):
    """Gradient-boosted trees (Chen and Guestrin, KDD 2016), with which AutoTVM guides its search
    (Chen et al., NeurIPS 2018)."""

    def __init__(self, seed: int):
        self._seed, self._booster = seed, None

    def regress(self, features: np.ndarray, labels: np.ndarray) -> None:
        data = xgboost.DMatrix(features, label=labels, nthread=1)
        parameters = {**_PARAMETERS, "seed": self._seed % 2**31}
        self._booster = xgboost.train(parameters, data, num_boost_round=_ROUNDS)

    def predict(self, features: np.ndarray) -> np.ndarray:
        if self._booster is None:
            return np.zeros(len(features))
        return self._booster.inplace_predict(features).astype(np.float64)
