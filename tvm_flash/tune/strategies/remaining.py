"""The points of a space that are still to try, in one order, each handed out once."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import islice

from ...schedules.space import Point, Space


class Remaining:
    """What ``order()`` gives, less what was handed out or is known otherwise.

    The order is asked for when the first point is taken: of large spaces it takes seconds.
    """

    def __init__(self, order: Callable[[], Iterable[Point]]):
        self._order = self._begun(order)
        self._known: set[Point] = set()

    @staticmethod
    def shuffled(space: Space, seed: int) -> Remaining:
        """All valid points of ``space`` at random."""

        def order():
            points = list(space.points)
            random.Random(seed).shuffle(points)
            return points

        return Remaining(order)

    def take(self, count: int) -> list[Point]:
        """The next ``count``, fewer at the end."""
        taken = list(islice((p for p in self._order if p not in self._known), max(0, count)))
        self._known.update(taken)
        return taken

    def claim(self, point: Point) -> bool:
        """Take ``point`` out of turn; False where it is gone already."""
        if point in self._known:
            return False
        self._known.add(point)
        return True

    def drop(self, points: Iterable[Point]) -> None:
        """Points that need not be tried any more."""
        self._known.update(points)

    @staticmethod
    def _begun(order):
        yield from order()
