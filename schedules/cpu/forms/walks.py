"""The tiles of keys that a tile of rows of the forward goes through, by range or by lists."""

from __future__ import annotations

from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from ....problem.spec import AttentionSpec
from .equal_entries import Places
from .tiles import ForwardTile

_PAST_ALL = tirx.const(2**31 - 1, "int32")
# Places in the state of a walk: a first key or tile, and how many tiles there are at most.
FIRST, COUNT = 0, 1


def walk_of(spec: AttentionSpec, tile: ForwardTile, places: Places) -> RangeWalk | MergedWalk:
    """How tiles of the forward of ``spec`` go through keys."""
    return MergedWalk(spec, tile) if spec.block_mask else RangeWalk(places)


class RangeWalk:
    """Tiles of keys that follow one another, the same for all rows.

    state (size,) int32: FIRST, the number of the first tile, and COUNT. step: groups of rows that a
    tile has one or a multiple of. visits: what ``visits()`` gave.
    """

    size, step = 2, 1

    def __init__(self, places: Places):
        self._some = places.some

    def visits(self, seen, first, end, block: int):
        """What rows first .. end - 1 visit, in tiles of ``block`` keys."""
        return seen.keys(first, end, block)

    def begin(self):
        """An inline function (state, visits, has_rows): before the first tile."""

        @T.inline
        def start(state, visits, has_rows):
            state[FIRST] = visits.start
            state[COUNT] = self._some(has_rows, visits.count)

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

    def key(self, state, visits, number):
        """The first key of the tile, which is visited as number ``number``."""
        return visits.held(start=state[FIRST], count=state[COUNT]).first(number)

    def meets(self, state, group):
        """Whether the rows of group ``group`` have the tile among theirs."""
        return True

    def hides(self, state, group):
        """Whether a mask_mod may hide pairs of these rows and the tile; None: as everywhere."""


class MergedWalk:
    """Tiles of keys that are in the list of any of the rows of blocks, in ascending order.

    A staged tile of keys then serves all rows that list it, as in a walk by range. state: FIRST,
    the first key of the tile, COUNT, and for each row of blocks how many visits lie behind it
    (``_passed``), then what the tile is to it (``_kind``): 0 not listed, 1 listed, 2 partial.
    """

    def __init__(self, spec: AttentionSpec, tile: ForwardTile):
        block = spec.block_mask[0]
        self._rows = max(tile.block_q // block, 1)
        self.step = min(block, tile.block_q) // tile.group
        self._block = self.step * tile.group
        self.size = self._kind(self._rows)  # the last row has number rows - 1

    def _passed(self, row):
        return COUNT + 1 + row

    def _kind(self, row):
        return self._passed(self._rows) + row

    def visits(self, seen, first, end, block: int):
        """A function of a row of blocks: its visits and their number."""

        def of_row(row):
            own = first + row * self._block
            found = seen.keys(own, tirx.min(own + self._block, end), block)
            return found, tirx.Select(own < end, found.count, 0)

        return of_row

    def begin(self):
        rows, passed = self._rows, self._passed

        @T.inline
        def start(state, visits, has_rows):
            state[COUNT] = 0
            for r in range(rows):
                with T.sblock("begin_row"):
                    vr = T.axis.opaque(rows, r)
                    state[passed(vr)] = 0
                    state[COUNT] = state[COUNT] + visits(vr)[1]

        return start

    def advance(self):
        rows, passed, kind = self._rows, self._passed, self._kind

        @T.inline
        def go(state, visits):
            state[FIRST] = _PAST_ALL
            for r in range(rows):
                with T.sblock("nearest"):
                    vr = T.axis.opaque(rows, r)
                    state[FIRST] = T.min(state[FIRST], _next(visits(vr), state[passed(vr)]))
            for r in range(rows):
                with T.sblock("met"):
                    vr = T.axis.opaque(rows, r)
                    listed_as = T.meta_var(partial(_listed_as, visits(vr), state[passed(vr)]))
                    state[kind(vr)] = listed_as(state[FIRST])
                    state[passed(vr)] = state[passed(vr)] + T.min(state[kind(vr)], 1)

        return go

    def exists(self, state):
        return state[FIRST] < _PAST_ALL

    def key(self, state, visits, number):
        return state[FIRST]

    def meets(self, state, group):
        return self._kind_of(state, group) > 0

    def hides(self, state, group):
        return self._kind_of(state, group) > 1

    def _kind_of(self, state, group):
        return state[self._kind(tirx.truncdiv(group, self.step))]


def _next(own, number):
    """The first key of visit ``number`` of a row of blocks, whose visits and their number are
    ``own``."""
    visits, count = own
    return tirx.if_then_else(number < count, visits.first(number), _PAST_ALL)


def _listed_as(own, number, key):
    """What the tile from ``key`` on is to a row of blocks that is at visit ``number``."""
    visits, count = own
    kind = tirx.Cast("int32", visits.hides(number)) + 1
    return tirx.if_then_else(tirx.And(number < count, visits.first(number) == key), kind, 0)
