"""Strategies that do not learn: at random, each point once, and a grid in order."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ...schedules.space import Point
from ..trial import Observation, SearchTask


class Random:
    """Valid points, uniformly and without replacement."""

    def __init__(self, task: SearchTask, seed: int):
        self._left = list(task.space.points)
        random.Random(seed).shuffle(self._left)

    def propose(self, count: int) -> Sequence[Point]:
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def observe(self, observations: Sequence[Observation]) -> None:
        """Nothing is learned."""


class Grid:
    """Valid points in the order of the grid, spread evenly: every n-th first, then those between.

    The seed turns the grid, so that seeds differ; a search of a few points still sees all of it.
    """

    def __init__(self, task: SearchTask, seed: int):
        points = task.space.points
        turn = random.Random(seed).randrange(max(1, len(points)))
        order = sorted(range(len(points)), key=_bit_reversed)
        self._left = [points[(n + turn) % len(points)] for n in order]

    def propose(self, count: int) -> Sequence[Point]:
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def observe(self, observations: Sequence[Observation]) -> None:
        """Nothing is learned."""


def _bit_reversed(number: int) -> int:
    """van der Corput's sequence: neighbours in order lie far apart."""
    return int(f"{number:032b}"[::-1], 2)
