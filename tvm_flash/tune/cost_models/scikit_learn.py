"""Regressions of scikit-learn as cost models: linear, a Gaussian process, a neural network."""

from __future__ import annotations

import warnings
from itertools import product

import numpy as np
from sklearn import linear_model
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from threadpoolctl import threadpool_limits

from .base import Regression

# On one thread, sums have one order whatever the number of cores.
_one_thread = threadpool_limits.wrap(limits=1, user_api="blas")

# Prior variance of a Gaussian process' line where that of its other part and of the labels is 1.
_LINE = 0.3
# A process takes the pair of these under which the labels are likeliest. Lengths are in root mean
# squares over the columns, noise is a variance.
_LENGTHS = (0.7, 1.4, 2.8)
_NOISES = (0.003, 0.03, 0.3)
# A knob that hardly varied so far is not blown up: half a doubling is one unit.
_LEAST_DEVIATION = 0.5


class Estimated(Regression):
    """A regression by an estimator of scikit-learn; it predicts 0 before it knows anything."""

    def __init__(self, seed: int):
        self._seed, self._estimator = seed, None

    @_one_thread
    def regress(self, features: np.ndarray, labels: np.ndarray) -> None:
        self._estimator = self._fitted(features.astype(np.float64), labels)

    @_one_thread
    def predict(self, features: np.ndarray) -> np.ndarray:
        if self._estimator is None or not len(features):
            return np.zeros(len(features))
        return self._estimator.predict(features.astype(np.float64))

    def _fitted(self, features: np.ndarray, labels: np.ndarray):
        """An estimator that has learned (n,) labels of (n, f) features, float64."""
        raise NotImplementedError


class Ridge(Estimated):
    """Linear in the features and their squares: few numbers, for a handful of measurements."""

    def _fitted(self, features: np.ndarray, labels: np.ndarray):
        squares = FunctionTransformer(lambda x: np.hstack([x, x**2]))
        line = linear_model.Ridge(alpha=1.0)
        return make_pipeline(StandardScaler(), squares, line).fit(features, labels)


class GaussianProcess(Estimated):
    """A line plus what near points have in common (Rasmussen and Williams, 2006, chapter 2).

    Far from all measurements the second part is 0, so that it corrects a prior only where something
    is known. A fit costs n^3: for hundreds of points.
    """

    def _fitted(self, features: np.ndarray, labels: np.ndarray):
        scale = np.maximum(features.std(axis=0), _LEAST_DEVIATION) * features.shape[1] ** 0.5
        center = features.mean(axis=0)
        inputs = FunctionTransformer(lambda x: (x - center) / scale)
        fits = [
            make_pipeline(inputs, self._process(*choice)).fit(features, labels)
            for choice in product(_LENGTHS, _NOISES)
        ]
        return max(fits, key=lambda fit: fit[-1].log_marginal_likelihood_value_)

    def _process(self, length: float, noise: float) -> GaussianProcessRegressor:
        line = ConstantKernel(_LINE, "fixed") * DotProduct(0, "fixed")
        kernel = line + RBF(length, "fixed")
        return GaussianProcessRegressor(kernel, alpha=noise, optimizer=None, normalize_y=True)


class Mlp(Estimated):
    """Two hidden layers, trained anew on all measurements by L-BFGS.

    Unlike TVM's own, which sums over the stores of a program, it takes a fixed row of features.
    """

    def _fitted(self, features: np.ndarray, labels: np.ndarray):
        network = MLPRegressor(
            hidden_layer_sizes=(48, 48),
            solver="lbfgs",  # of the solvers the one for hundreds of samples
            alpha=0.1,
            max_iter=100,
            random_state=self._seed % 2**32,
        )
        scaled = make_pipeline(StandardScaler(), network)
        model = TransformedTargetRegressor(scaled, transformer=StandardScaler())
        with warnings.catch_warnings():
            # Training ends after so many steps on purpose.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit(features, labels)
