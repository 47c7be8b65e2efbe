"""All points that are left, in the order of a model: what evolution is measured against."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from ...schedules.space import Point
from ..cost_models import cost_model
from ..features import knob_features
from ..trial import Observation, SearchTask
from .remaining import Remaining

# The part of the later proposals that is drawn at random: a model is told nothing of points that it
# never proposes.
EXPLORATION = 1 / 8


class Ranked:
    """A model scores every point that is left, the best are measured next.

    Scoring thousands of points takes a fraction of a second, and no search over the model can miss
    its optimum. Of a space with more than ``most`` points, so many drawn at random are scored: the
    best of them is among the best few in ten thousand of all. Base class; ``model_name`` says which
    model.
    """

    model_name = ""
    # So many are measured at random before the model is asked.
    first = 16
    most = 10_000

    def __init__(self, task: SearchTask, seed: int):
        self._space, self._seed, self._random = task.space, seed, random.Random(seed)
        self._remaining = Remaining.shuffled(task.space, seed)
        self._model = cost_model(self.model_name, seed)
        self._seen: list[Observation] = []

    def propose(self, count: int) -> Sequence[Point]:
        if len(self._seen) < self.first:
            return self._remaining.take(count)
        drawn = sum(self._random.random() < EXPLORATION for _ in range(count))
        return [*self._best(count - drawn), *self._remaining.take(drawn)]

    def observe(self, observations: Sequence[Observation]) -> None:
        self._remaining.drop(seen.point for seen in observations)
        self._seen += observations

    @cached_property
    def _points(self) -> Sequence[Point]:
        """The points that are scored: all, or so many at random."""
        points = self._space.points
        if len(points) <= self.most:
            return points
        return random.Random(self._seed).sample(points, self.most)

    @cached_property
    def _features(self) -> np.ndarray:
        return knob_features(self._space, self._points)

    def _best(self, count: int) -> list[Point]:
        taken: list[Point] = []
        if count:
            for n in np.argsort(-self._scores(), kind="stable"):
                point = self._points[n]
                if self._remaining.claim(point):
                    taken.append(point)
                    if len(taken) == count:
                        break
        return taken

    def _scores(self) -> np.ndarray:
        """Scores of ``_points``, higher is faster."""
        points = [seen.point for seen in self._seen]
        seconds = [seen.seconds for seen in self._seen]
        self._model.fit(knob_features(self._space, points), seconds)
        return self._model.predict(self._features)


class RankedXgb(Ranked):
    """Points ranked by boosted trees."""

    model_name = "xgb"


class RankedMlp(Ranked):
    """Points ranked by a neural network."""

    model_name = "mlp"
