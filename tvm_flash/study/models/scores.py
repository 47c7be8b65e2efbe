"""How well cost models order configs: rank correlation, recall of the best, transfer to shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...tune.cost_models import COST_MODELS, cost_model
from ..replay.table import ReplayTable
from .export import knob_columns
from .samples import of_table

# A prediction that needs no measurement.
ANALYTICAL = "analytical"
MODELS = (*COST_MODELS, ANALYTICAL)
TOP = 10

# Features of all points of some tables, and the scores of all points by the analytical model.
Features = Callable[[Sequence[ReplayTable]], list[np.ndarray]]


@dataclass(frozen=True)
class Score:
    """How a model ordered the points of ``test`` after learning ``samples`` points of ``train``.

    spearman, kendall: of score and speed over the points that ran, -1 to 1. recall: share of the
    ``TOP`` fastest among its first ``TOP``. regret: best time among its first ``TOP``, over the
    best of all, less 1; infinite where all of them failed. All are means over seeds; ``deviation``
    is that of spearman.
    """

    model: str
    train: str
    test: str
    samples: int
    spearman: float
    kendall: float
    recall: float
    regret: float
    deviation: float


def within(
    table: ReplayTable, name: str, samples: int, seeds: int, features: Features | None = None
) -> Score:
    """``name`` learns ``samples`` random points of ``table`` and orders the others."""
    (rows,) = (features or knobs)([table])
    seconds = _seconds(table)
    if not 2 <= samples <= len(seconds) - TOP:
        raise ValueError(
            f"{samples=} must be between 2 and {len(seconds) - TOP}: {table.name} has "
            f"{len(seconds)} points, and {TOP} are needed to test on"
        )
    found = []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(seconds))
        known, unknown = order[:samples], order[samples:]
        scores = _scores(name, table, seed, rows[known], seconds[known], rows)[unknown]
        found.append(judged(scores, seconds[unknown]))
    return _mean(name, table.name, table.name, samples, found)


def transfer(
    train: ReplayTable, test: ReplayTable, name: str, seeds: int, features: Features | None = None
) -> Score:
    """``name`` learns all points of ``train`` and orders those of ``test``.

    Raises ValueError for tables of different schedules.
    """
    if train.task.space.name != test.task.space.name:
        raise ValueError(
            f"{train.name} is of {train.task.space.name}, {test.name} of {test.task.space.name}: "
            "a model of one says nothing of the other"
        )
    known, unknown = (features or knobs)([train, test])
    seconds, wanted = _seconds(train), _seconds(test)
    found = [
        judged(_scores(name, test, seed, known, seconds, unknown), wanted) for seed in range(seeds)
    ]
    return _mean(name, train.name, test.name, len(seconds), found)


def knobs(tables: Sequence[ReplayTable]) -> list[np.ndarray]:
    """All fields of the configs, (points, k) for each table, with the same columns."""
    parts = [of_table(table) for table in tables]
    rows, _ = knob_columns([sample for part in parts for sample in part])
    return np.split(rows, np.cumsum([len(part) for part in parts])[:-1])


def judged(scores: np.ndarray, seconds: np.ndarray) -> tuple[float, float, float, float]:
    """spearman, kendall, recall and regret of ``scores``, higher for faster; seconds NaN: failed.

    Correlations with constants are 0: a model that tells nothing apart orders nothing.
    """
    from scipy.stats import kendalltau, spearmanr

    ran = ~np.isnan(seconds)
    first = np.argsort(-scores, kind="stable")[:TOP]
    times = np.where(ran, seconds, np.inf)
    best = [n for n in np.argsort(times, kind="stable")[:TOP] if ran[n]]
    if not best:
        return 0.0, 0.0, 0.0, math.inf
    recall = len(set(first) & set(best)) / len(best)
    regret = times[first].min() / times.min() - 1
    if not (np.ptp(scores[ran]) > 0 and np.ptp(seconds[ran]) > 0):
        return 0.0, 0.0, recall, float(regret)
    speeds = -seconds[ran]
    correlations = (test(scores[ran], speeds).statistic for test in (spearmanr, kendalltau))
    return (*map(float, correlations), recall, float(regret))


def _scores(
    name: str, table: ReplayTable, seed: int, known: Any, seconds: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """A score for each of ``rows``, which are the points of ``table``; higher is faster."""
    if name == ANALYTICAL:
        from ...tune.strategies.analytical import predictor_of

        predicted = predictor_of(table.task)
        return np.array([-predicted(point) for point in table.measured])
    model = cost_model(name, seed)
    model.fit(known, list(seconds))
    return model.predict(rows)


def _seconds(table: ReplayTable) -> np.ndarray:
    return np.array([np.nan if s is None else s for s in table.seconds.values()])


def _mean(
    name: str, train: str, test: str, samples: int, found: Sequence[Sequence[float]]
) -> Score:
    values = np.array(found)
    return Score(
        name, train, test, samples, *map(float, values.mean(axis=0)), float(values[:, 0].std())
    )
