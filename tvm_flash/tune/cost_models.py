"""Cost models: from the features of candidates to a score, higher for faster ones.

Each learns the throughput relative to the best, ``min(seconds) / seconds`` in (0, 1], and 0 where a
candidate failed: the label of Ansor (Zheng et al., OSDI 2020), which spends a model's capacity on
the fast end. A score means nothing but the order it gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np

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


class CostModel(Protocol):
    """Orders candidates. The same seed and calls give the same scores, bit for bit."""

    def fit(self, features: np.ndarray, seconds: Sequence[float | None]) -> None:
        """Learn anew from (n, f) features and n times, None or NaN where a candidate failed."""

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Scores (n,) float64 of (n, f) features, higher is faster."""


def cost_model(name: str, seed: int) -> CostModel:
    """A model by name: ``random``, ``ridge``, ``gp``, ``xgb`` or ``mlp``.

    Raises ValueError for another name.
    """
    if name not in COST_MODELS:
        raise ValueError(f"cost model {name!r} must be one of {', '.join(COST_MODELS)}")
    return COST_MODELS[name](seed)


def throughput(seconds: Sequence[float | None]) -> np.ndarray:
    """Labels (n,) float64: the least of ``seconds`` over each, 0 for None and NaN."""
    times = np.array([np.nan if s is None else s for s in seconds], dtype=np.float64)
    failed = np.isnan(times)
    if failed.all():
        return np.zeros(len(times))
    return np.where(failed, 0.0, np.nanmin(times) / np.where(failed, 1.0, times))


class Regression:
    """A cost model that is a regression: ``fit`` is ``regress`` on the throughput."""

    def fit(self, features: np.ndarray, seconds: Sequence[float | None]) -> None:
        """Learn the order of candidates; see ``CostModel``."""
        self.regress(features, throughput(seconds))

    def regress(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Learn any (n,) labels; ``predict`` then gives those."""
        raise NotImplementedError


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
        self._center, self._scale = _standard(features)
        x, self._mean = self._basis(features), labels.mean()
        gram = x.T @ x + self._penalty * np.eye(x.shape[1])
        self._weights = np.linalg.solve(gram, x.T @ (labels - self._mean))

    def predict(self, features: np.ndarray) -> np.ndarray:
        if self._weights is None:
            return np.zeros(len(features))
        return self._mean + self._basis(features) @ self._weights

    def _basis(self, features: np.ndarray) -> np.ndarray:
        x = (features - self._center) / self._scale
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


class Mlp(Regression):
    """Two hidden layers, trained anew on all measurements with Adam.

    Unlike TVM's own, which sums over the stores of a program, it takes a fixed row of features.
    """

    WIDTH, STEPS, RATE, DECAY = 48, 150, 0.01, 1e-3

    def __init__(self, seed: int):
        self._seed, self._net = seed, None

    def regress(self, features: np.ndarray, labels: np.ndarray) -> None:
        import torch

        self._center, self._scale = _standard(features)
        self._mean, self._deviation = labels.mean(), labels.std() or 1.0
        y = torch.tensor((labels - self._mean) / self._deviation, dtype=torch.float32)
        with _one_thread(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self._net = self._trained(self._inputs(features), y)

    def predict(self, features: np.ndarray) -> np.ndarray:
        import torch

        if self._net is None:
            return np.zeros(len(features))
        with _one_thread(), torch.no_grad():
            scores = self._net(self._inputs(features))[:, 0].double().numpy()
        return self._mean + self._deviation * scores

    def _inputs(self, features: np.ndarray):
        import torch

        return torch.tensor((features - self._center) / self._scale, dtype=torch.float32)

    def _trained(self, x, y):
        from torch import nn, optim

        net = nn.Sequential(
            *(nn.Linear(x.shape[1], self.WIDTH), nn.GELU()),
            *(nn.Linear(self.WIDTH, self.WIDTH), nn.GELU()),
            nn.Linear(self.WIDTH, 1),
        )
        adam = optim.AdamW(net.parameters(), lr=self.RATE, weight_decay=self.DECAY)
        for _ in range(self.STEPS):
            adam.zero_grad()
            ((net(x)[:, 0] - y) ** 2).mean().backward()
            adam.step()
        return net


class GaussianProcess(Regression):
    """Mean of a Gaussian process: a line plus what near points have in common.

    Far from all measurements the second part is 0, so it corrects a prior only where something is
    known (Rasmussen and Williams, 2006, chapters 2 and 4.2). Costs n^3: for hundreds of points.
    """

    LINE, NEAR = 0.3, 1.0
    # Of these the pair under which the measurements are likeliest. Lengths in typical distances of
    # two points, noise as variance, of labels whose variance is 1.
    LENGTHS = (0.7, 1.4, 2.8)
    NOISES = (0.003, 0.03, 0.3)
    # A knob that hardly varied so far is not blown up: half a doubling is one unit.
    LEAST_DEVIATION = 0.5

    def __init__(self, seed: int):
        self._weights = None

    def regress(self, features: np.ndarray, labels: np.ndarray) -> None:
        self._center, scale = _standard(features)
        self._scale = np.maximum(scale, self.LEAST_DEVIATION)
        self._mean, deviation = labels.mean(), labels.std() or 1.0
        self._known = self._inputs(features)
        y = (labels - self._mean) / deviation
        with _one_thread():
            fits = [fit for length in self.LENGTHS for fit in self._fits(y, length)]
        _, weights, self._length = max(fits, key=lambda fit: fit[0])
        self._weights = deviation * weights

    def predict(self, features: np.ndarray) -> np.ndarray:
        if self._weights is None:
            return np.zeros(len(features))
        covariance = self._kernel(self._inputs(features), self._length)
        return self._mean + covariance @ self._weights

    def _inputs(self, features: np.ndarray) -> np.ndarray:
        x = features.astype(np.float64) - self._center
        return x / (self._scale * features.shape[1] ** 0.5)

    def _fits(self, y: np.ndarray, length: float) -> Iterator[tuple[float, np.ndarray, float]]:
        """For each noise: log likelihood of ``y`` up to a constant, weights (n,), ``length``."""
        import torch  # numpy's threads cannot be told to be one

        kernel = torch.from_numpy(self._kernel(self._known, length))
        values, vectors = (part.numpy() for part in torch.linalg.eigh(kernel))
        turned = vectors.T @ y
        for noise in self.NOISES:
            spread = np.maximum(values, 0) + noise
            likelihood = -0.5 * (turned**2 / spread + np.log(spread)).sum()
            yield likelihood, vectors @ (turned / spread), length

    def _kernel(self, x: np.ndarray, length: float) -> np.ndarray:
        """(len(x), n) covariances with the known points."""
        line = x @ self._known.T
        squares = (x**2).sum(1)[:, None] + (self._known**2).sum(1) - 2 * line
        return self.LINE * line + self.NEAR * np.exp(-squares / (2 * length**2))


COST_MODELS = {
    "random": Random,
    "ridge": Ridge,
    "gp": GaussianProcess,
    "xgb": Xgb,
    "mlp": Mlp,
}


def _standard(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation (1 where all are equal) of each column."""
    deviation = features.std(axis=0)
    return features.mean(axis=0), np.where(deviation > 0, deviation, 1.0)


@contextmanager
def _one_thread():
    """Sums of the same order whatever the number of cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
