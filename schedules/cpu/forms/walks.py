"""The tiles of the other axis that a tile of rows or of keys goes through, by range or by lists.

A form speaks of pieces of its own tile: the forward's are groups of rows, the backward's steps of
keys. What is walked through are tiles of keys there, of rows here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from ....problem.visits import Visits

_PAST_ALL = tirx.const(2**31 - 1, "int32")
# Places in the state of a walk: a first position or tile, and how many tiles there are at most.
FIRST, COUNT = 0, 1

# What positions first .. end - 1 of the own axis visit.
Ask = Callable[..., Visits]


class RangeWalk:
    """Tiles that follow one another, the same for all pieces.

    state (size,) int32: FIRST, the number of the first tile, and COUNT. step: pieces that a tile
    has one or a multiple of. visits: what ``visits()`` gave. some(condition, count): ``count``, or
    0 where a tile may have no position and ``condition`` does not hold.
    """

    size, step = 2, 1

    def __init__(self, some: Callable = lambda condition, count: count):
        self._some = some

    def visits(self, ask: Ask, first, end):
        """What positions first .. end - 1 visit."""
        return ask(first, end)

    def begin(self):
        """An inline function (state, visits, has_any): before the first tile."""

        @T.inline
        def start(state, visits, has_any):
            state[FIRST] = visits.start
            state[COUNT] = self._some(has_any, visits.count)

        return start

    def advance(self):
        """An inline function (state, visits): on to the next tile."""

        @T.inline
        def go(state, visits):
            pass

        return go

    def exists(self, state):
        """Whether there is a next tile."""
        return True

    def first(self, state, visits, number):
        """The first position of the tile, which is visited as number ``number``."""
        return visits.held(start=state[FIRST], count=state[COUNT]).first(number)

    def meets(self, state, piece):
        """Whether piece ``piece`` has the tile among its own."""
        return True

    def hides(self, state, piece):
        """Whether a mask_mod may hide pairs of the piece and the tile; None: as everywhere."""

    def is_edge(self, state, piece, boundary):
        """Whether the mask counts there: at a ``boundary`` of what is seen, or where it hides."""
        return boundary


class MergedWalk(RangeWalk):
    """Tiles that are in the list of any of the blocks of the own tile, in ascending order.

    What is staged of a tile then serves every block that lists it, as in a walk by range. state:
    FIRST, the first position of the tile, COUNT, and for each block how many visits lie behind it
    (``_passed``), then what the tile is to it (``_kind``): 0 not listed, 1 listed, 2 partial.
    """

    def __init__(self, own: int, piece: int, block: int):
        """own: positions of the own tile at most; piece: of a piece; block: of a listed block."""
        self._blocks = max(own // block, 1)
        self._block = min(block, own)
        self.step = self._block // piece
        self.size = self._kind(self._blocks)  # the last block has number blocks - 1

    def _passed(self, block):
        return COUNT + 1 + block

    def _kind(self, block):
        return self._passed(self._blocks) + block

    def visits(self, ask: Ask, first, end):
        """A function of a block: its visits and their number."""

        def of_block(block):
            own = first + block * self._block
            found = ask(own, tirx.min(own + self._block, end))
            return found, tirx.Select(own < end, found.count, 0)

        return of_block

    def begin(self):
        blocks, passed = self._blocks, self._passed

        @T.inline
        def start(state, visits, has_any):
            state[COUNT] = 0
            for r in range(blocks):
                with T.sblock("begin_block"):
                    vr = T.axis.opaque(blocks, r)
                    state[passed(vr)] = 0
                    state[COUNT] = state[COUNT] + visits(vr)[1]

        return start

    def advance(self):
        blocks, passed, kind = self._blocks, self._passed, self._kind

        @T.inline
        def go(state, visits):
            state[FIRST] = _PAST_ALL
            for r in range(blocks):
                with T.sblock("nearest"):
                    vr = T.axis.opaque(blocks, r)
                    state[FIRST] = T.min(state[FIRST], _next(visits(vr), state[passed(vr)]))
            for r in range(blocks):
                with T.sblock("met"):
                    vr = T.axis.opaque(blocks, r)
                    listed_as = T.meta_var(partial(_listed_as, visits(vr), state[passed(vr)]))
                    state[kind(vr)] = listed_as(state[FIRST])
                    state[passed(vr)] = state[passed(vr)] + T.min(state[kind(vr)], 1)

        return go

    def exists(self, state):
        return state[FIRST] < _PAST_ALL

    def first(self, state, visits, number):
        return state[FIRST]

    def meets(self, state, piece):
        return self._kind_of(state, piece) > 0

    def hides(self, state, piece):
        return self._kind_of(state, piece) > 1

    def is_edge(self, state, piece, boundary):
        return tirx.Or(boundary, self.hides(state, piece))

    def _kind_of(self, state, piece):
        return state[self._kind(tirx.truncdiv(piece, self.step))]


def _next(own, number):
    """The first position of visit ``number`` of a block, whose visits and their number are
    ``own``."""
    visits, count = own
    return tirx.if_then_else(number < count, visits.first(number), _PAST_ALL)


def _listed_as(own, number, first):
    """What the tile from ``first`` on is to a block that is at visit ``number``."""
    visits, count = own
    kind = tirx.Cast("int32", visits.hides(number)) + 1
    return tirx.if_then_else(tirx.And(number < count, visits.first(number) == first), kind, 0)
