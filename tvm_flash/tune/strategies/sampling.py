"""Strategies that do not learn: at random, each point once, and a grid in order."""

from __future__ import annotations

import random
from collections.abc import Sequence

from ...schedules.space import Point, Space
from ..trial import Observation, SearchTask
from .remaining import Remaining


class Random:
    """Valid points, uniformly and without replacement."""

    def __init__(self, task: SearchTask, seed: int):
        self._remaining = Remaining.shuffled(task.space, seed)

    def propose(self, count: int) -> Sequence[Point]:
        return self._remaining.take(count)

    def observe(self, observations: Sequence[Observation]) -> None:
        """Nothing is learned; what is known is not proposed."""
        self._remaining.drop(seen.point for seen in observations)


class Grid:
    """Valid points in the order of the grid, spread evenly: every n-th first, then those between.

    The seed turns the grid, so that seeds differ; a search of a few points still sees all of it.
    """

    def __init__(self, task: SearchTask, seed: int):
        self._remaining = Remaining(lambda: spread(task.space, seed))

    def propose(self, count: int) -> Sequence[Point]:
        return self._remaining.take(count)

    def observe(self, observations: Sequence[Observation]) -> None:
        """Nothing is learned; what is known is not proposed."""
        self._remaining.drop(seen.point for seen in observations)


def spread(space: Space, seed: int) -> list[Point]:
    """All valid points: far from each other at first, turned by ``seed``."""
    points = space.points
    turn = random.Random(seed).randrange(max(1, len(points)))
    order = sorted(range(len(points)), key=_bit_reversed)
    return [points[(n + turn) % len(points)] for n in order]


def _bit_reversed(number: int) -> int:
    """van der Corput's sequence: neighbours in order lie far apart."""
    return int(f"{number:032b}"[::-1], 2)
