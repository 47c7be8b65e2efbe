"""Strategies that start from an analytical model's times: alone, or corrected by measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from ...schedules.space import Point
from ..features import knob_features
from ..trial import Observation, SearchTask
from .ranked import Ranked
from .remaining import Remaining

# Seconds of a point, from the machine's data sheet and the counts of the program.
Predictor = Callable[[Point], float]
# A correction of fewer measurements follows noise.
LEAST = 4
# A point that failed counts as so many times slower than the worst correction.
FAILED = 2.0


def predictor_of(task: SearchTask) -> Predictor:
    """The analytical model for ``task``, of ``tvm_flash.tune.analytical``."""
    from ..analytical import predictor

    return predictor(task)


class Analytical:
    """Points in the order of their predicted times; the seed says nothing."""

    def __init__(self, task: SearchTask, seed: int):
        predicted = predictor_of(task)
        # Equal times stay in the order of the grid.
        self._remaining = Remaining(lambda: sorted(task.space.points, key=predicted))

    def propose(self, count: int) -> Sequence[Point]:
        return self._remaining.take(count)

    def observe(self, observations: Sequence[Observation]) -> None:
        """Nothing is learned; what is known is not proposed."""
        self._remaining.drop(seen.point for seen in observations)


class AnalyticalMeasured(Ranked):
    """The prediction is a prior: a regression on log(measured / predicted) corrects its order.

    The first points are the best predicted, later ones the best after correction, and a few are
    drawn at random.
    """

    model_name = "gp"
    first = 0

    def __init__(self, task: SearchTask, seed: int):
        super().__init__(task, seed)
        self._predicted = predictor_of(task)

    @cached_property
    def _prior(self) -> np.ndarray:
        return np.array([math.log(self._predicted(point)) for point in self._points])

    def _scores(self) -> np.ndarray:
        if sum(seen.seconds is not None for seen in self._seen) < LEAST:
            return -self._prior
        points = [seen.point for seen in self._seen]
        self._model.regress(knob_features(self._space, points), self._corrections())
        return -(self._prior + self._model.predict(self._features))

    def _corrections(self) -> np.ndarray:
        """log(measured / predicted) of what was seen, (n,)."""
        measured = [
            math.nan if seconds is None else math.log(seconds / self._predicted(point))
            for point, seconds in self._seen
        ]
        found = np.array(measured)
        return np.where(np.isnan(found), np.nanmax(found) + math.log(FAILED), found)
