"""Coordinate descent: one knob at a time from the best point, again from elsewhere when stuck."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice

from ...schedules.space import Knob, Point, Space, Value
from ..trial import Observation, SearchTask
from .remaining import Remaining


class Coordinate:
    """Neighbours of the best point until one is faster, then that one's.

    Where no neighbour is left, the descent begins anew from a random point, so that a budget is
    used. The first point that is observed, the incumbent, is where it begins.
    """

    def __init__(self, task: SearchTask, seed: int):
        self._space, self._random = task.space, random.Random(seed)
        self._remaining = Remaining.shuffled(task.space, seed)
        self._best: float | None = None
        self._moves: Iterator[Point] = iter(())

    def propose(self, count: int) -> Sequence[Point]:
        return self._next_moves(count) or self._restart(count)

    def observe(self, observations: Sequence[Observation]) -> None:
        self._remaining.drop(seen.point for seen in observations)
        faster = [seen for seen in observations if seen.seconds is not None]
        fastest = min(faster, key=lambda seen: seen.seconds, default=None)
        if fastest and (self._best is None or fastest.seconds < self._best):
            self._best = fastest.seconds
            self._moves = neighbours(self._space, fastest.point, self._random)

    def _next_moves(self, count: int) -> list[Point]:
        return list(islice(filter(self._remaining.claim, self._moves), count))

    def _restart(self, count: int) -> list[Point]:
        """A random point and its first neighbours: the descent goes on from the best of them."""
        start = self._remaining.take(1)
        if start:
            self._best = None
            self._moves = neighbours(self._space, start[0], self._random)
            start += self._next_moves(count - 1)
        return start


def neighbours(space: Space, point: Point, order: random.Random) -> Iterator[Point]:
    """Points of ``space`` that differ in one knob, or in two where the first alone is refused.

    Knobs in a random order, the values nearest to the point's own first.
    """
    places = list(range(len(space.knobs)))
    order.shuffle(places)
    for place in places:
        for value in _others(space.knobs[place], point[place]):
            changed = _replaced(point, place, value)
            if changed in space:
                yield changed
            else:
                yield from _mended(space, changed, [other for other in places if other != place])


def _mended(space: Space, point: Point, places: Sequence[int]) -> Iterator[Point]:
    """The points of ``space`` that differ from ``point`` in one of ``places``."""
    for place in places:
        for value in _others(space.knobs[place], point[place]):
            changed = _replaced(point, place, value)
            if changed in space:
                yield changed


def _others(knob: Knob, value: Value) -> list[Value]:
    """The other values of ``knob``, nearest in their order first."""
    values = list(knob.values)
    own = values.index(value) if value in values else 0
    return sorted((v for v in values if v != value), key=lambda v: abs(values.index(v) - own))


def _replaced(point: Point, place: int, value: Value) -> Point:
    return (*point[:place], value, *point[place + 1 :])
