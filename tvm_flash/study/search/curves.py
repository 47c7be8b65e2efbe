"""Curves of searches, over trials and over seconds, and what the runs of a strategy amount to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...schedules.space import Point
from ..replay.table import ReplayTable
from .run import Run

# Confidence of intervals, and the resamples they are read from.
CONFIDENCE, _RESAMPLES = 0.95, 2000


@dataclass(frozen=True)
class Curves:
    """Runs of one strategy.

    best: (seeds, 1 + trials) seconds per call of the best so far, the start first; a search that
    gave up keeps its last. spent: (seeds, 1 + trials) seconds that the trials cost, start included.
    optimum: seconds per call of the best point of the table.
    """

    strategy: str
    best: np.ndarray
    spent: np.ndarray
    optimum: float
    thinking: np.ndarray

    @property
    def regret(self) -> np.ndarray:
        """(seeds, 1 + trials): time of the best so far over the optimum, less 1."""
        return self.best / self.optimum - 1


@dataclass(frozen=True)
class Summary:
    """What a strategy's runs amount to; each triple is median, lower and upper quartile over seeds.

    final: regret at the end; confidence: 95 % interval of its median, bootstrapped. area: mean
    regret over the budget of trials; area_seconds: over as many seconds as the shortest run of the
    study took. reached: fraction of the seeds that came within 1 % and 5 %; trials_to: median
    trials until then, infinite where most did not. thinking: median processor seconds, the
    strategy's own.
    """

    strategy: str
    final: tuple[float, float, float]
    confidence: tuple[float, float]
    area: tuple[float, float, float]
    area_seconds: tuple[float, float, float]
    reached: Mapping[str, float]
    trials_to: Mapping[str, float]
    thinking: float


WITHIN = {"1%": 0.01, "5%": 0.05}


def curves(table: ReplayTable, runs: Sequence[Run], trials: int) -> dict[str, Curves]:
    """The curves of ``runs`` by strategy, in the order of their first runs."""
    found = {}
    for name in dict.fromkeys(run.strategy for run in runs):
        own = [run for run in runs if run.strategy == name]
        best, spent = zip(*(_curve(table, run, trials) for run in own), strict=True)
        thinking = np.array([run.thinking for run in own])
        optimum = table.seconds[table.best]
        found[name] = Curves(name, np.array(best), np.array(spent), optimum, thinking)
    return found


def summaries(found: Mapping[str, Curves]) -> list[Summary]:
    """One for each strategy, the least area over trials first."""
    horizon = min(float(each.spent[:, -1].min()) for each in found.values())
    summed = [_summary(each, horizon) for each in found.values()]
    return sorted(summed, key=lambda summary: (summary.area[0], summary.strategy))


def over_seconds(each: Curves, times: np.ndarray) -> np.ndarray:
    """(seeds, times): the regret after so many seconds; infinite before the start is measured."""
    regret = np.full((len(each.best), len(times)), np.inf)
    for row, (spent, values) in enumerate(zip(each.spent, each.regret, strict=True)):
        places = np.searchsorted(spent, times, side="right") - 1
        regret[row, places >= 0] = values[places[places >= 0]]
    return regret


def quartiles(values: np.ndarray) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return float(middle), float(low), float(high)


def wins(one: Curves, other: Curves) -> tuple[int, int, float]:
    """Seeds where ``one`` has less area than ``other``, where more, and the exact sign test's p.

    Two-sided; ties are left out. Runs of a seed have the start in common.
    """
    difference = one.regret[:, 1:].mean(axis=1) - other.regret[:, 1:].mean(axis=1)
    less, more = int((difference < 0).sum()), int((difference > 0).sum())
    count = less + more
    tail = sum(math.comb(count, k) for k in range(min(less, more) + 1)) / 2**count
    return less, more, min(1.0, 2 * tail)


def expected_random(table: ReplayTable, starts: Sequence[Point], trials: int) -> np.ndarray:
    """(1 + trials,): mean regret of drawing without replacement after ``starts``; exact.

    Of the n points beside the start, the k best are all absent from t draws with probability
    C(n - k, t) / C(n, t).
    """
    optimum, others = table.seconds[table.best], len(table.measured) - 1
    levels = sorted(s for s in table.seconds.values() if s is not None)
    ranks = [levels.index(table.seconds[start]) for start in starts]
    steps = np.diff(np.array(levels) / optimum - 1, prepend=0.0)
    better = np.arange(len(levels))
    absent, curve = np.ones(len(levels)), []
    for drawn in range(trials + 1):
        curve.append(float(np.cumsum(steps * absent)[ranks].mean()))
        absent = absent * np.clip((others - better - drawn) / max(others - drawn, 1), 0, 1)
    return np.array(curve)


def starts_of(runs: Sequence[Run]) -> list[Point]:
    """Where the seeds start, one for each."""
    return list({run.seed: run.start for run in runs}.values())


def _curve(table: ReplayTable, run: Run, trials: int) -> tuple[list[float], list[float]]:
    best, spent = [table.seconds[run.start]], [table.measured[run.start].cost]
    for point in run.points:
        seconds = table.seconds[point]
        best.append(best[-1] if seconds is None else min(best[-1], seconds))
        spent.append(spent[-1] + table.measured[point].cost)
    missing = 1 + trials - len(best)
    return best + [best[-1]] * missing, spent + [spent[-1]] * missing


def _summary(each: Curves, horizon: float) -> Summary:
    final = each.regret[:, -1]
    within = {name: _trials_to(each.regret, limit) for name, limit in WITHIN.items()}
    return Summary(
        each.strategy,
        quartiles(final),
        _bootstrapped(final),
        quartiles(each.regret[:, 1:].mean(axis=1)),
        quartiles(_areas_over_seconds(each, horizon)),
        {name: float(np.isfinite(trials).mean()) for name, trials in within.items()},
        {name: _median_or_infinity(trials) for name, trials in within.items()},
        float(np.median(each.thinking)),
    )


def _trials_to(regret: np.ndarray, limit: float) -> np.ndarray:
    """(seeds,): trials until the regret is at most ``limit``; infinite where it never is."""
    there = regret <= limit
    return np.where(there.any(axis=1), there.argmax(axis=1), np.inf)


def _median_or_infinity(trials: np.ndarray) -> float:
    """The lower median: between a number and infinity lies nothing."""
    return float(np.sort(trials)[(len(trials) - 1) // 2])


def _areas_over_seconds(each: Curves, horizon: float) -> np.ndarray:
    """(seeds,): mean regret from the measured start to ``horizon`` seconds.

    Where no run of the study got beyond that start, the regret of the start.
    """
    areas = []
    for spent, regret in zip(each.spent, each.regret, strict=True):
        if horizon <= spent[0]:
            areas.append(float(regret[0]))
            continue
        edges = np.minimum(np.append(spent, max(horizon, spent[-1])), horizon)
        areas.append(float(np.sum(np.diff(edges) * regret) / (horizon - spent[0])))
    return np.array(areas)


def _bootstrapped(values: np.ndarray) -> tuple[float, float]:
    """Percentile interval of the median; always the same for the same values."""
    draws = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(values[draws], axis=1), (tail, 1 - tail))
    return float(low), float(high)
