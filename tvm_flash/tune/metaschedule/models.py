"""Our cost models under MetaSchedule's interface, on the features of knobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...schedules.space import Point
from ..cost_models import CostModel
from ..features import knob_features
from ..trial import Observation
from .knobs import KnobFunction

# A model of fewer measurements orders nothing.
LEAST = 4


class Learner:
    """All that was observed of a space, and a model fitted to it when scores are asked for."""

    def __init__(self, space, model: CostModel):
        self._space, self._model = space, model
        self._points: list[Point] = []
        self._seconds: list[float | None] = []
        self._fitted = 0

    def add(self, observations: Sequence[Observation]) -> None:
        """More measurements; None for seconds where a point failed."""
        self._points += [seen.point for seen in observations]
        self._seconds += [seen.seconds for seen in observations]

    def scores(self, points: Sequence[Point]) -> np.ndarray:
        """(len(points),) float64, higher is faster."""
        if self._fitted != len(self._points) >= LEAST:
            self._model.fit(knob_features(self._space, self._points), self._seconds)
            self._fitted = len(self._points)
        return self._model.predict(knob_features(self._space, points))


def metaschedule_cost_model(knobs: KnobFunction, learner: Learner) -> Any:
    """A ``PyCostModel`` of ``learner``.

    MetaSchedule's own models read the stores of a scheduled program, and the knob function has none
    worth reading.
    """
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.cost_model import PyCostModel

    @derived_object
    class KnobModel(PyCostModel):
        def load(self, path: str) -> None:
            raise NotImplementedError("a knob model is fitted anew to what was observed")

        def save(self, path: str) -> None:
            raise NotImplementedError("a knob model is fitted anew to what was observed")

        def update(self, context, candidates, results) -> None:
            points = [knobs.point(candidate.sch.trace) for candidate in candidates]
            seconds = [mean_seconds(result.run_secs) for result in results]
            learner.add(list(map(Observation, points, seconds)))

        def predict(self, context, candidates) -> np.ndarray:
            return learner.scores([knobs.point(candidate.sch.trace) for candidate in candidates])

    return KnobModel()


def mean_seconds(run_secs: Sequence[float] | None) -> float | None:
    """Mean seconds of a runner's result, None where it failed."""
    times = [float(seconds) for seconds in run_secs or ()]
    return sum(times) / len(times) if times else None
