"""The tiles of keys that a tile of rows of the forward goes through, by range or by lists."""

from __future__ import annotations

from functools import partial

from tvm import tirx
from tvm.script import tirx as T

from ....problem.spec import AttentionSpec
from .equal_entries import Places
from .tiles import ForwardTile

_PAST_ALL = tirx.const(2**31 - 1, "int32")


def walk_of(spec: AttentionSpec, tile: ForwardTile, places: Places) -> RangeWalk | MergedWalk:
    """How tiles of the forward of ``spec`` go through keys."""
    return MergedWalk(spec, tile) if spec.block_mask else RangeWalk(places)


class RangeWalk:
    """Tiles of keys that follow one another, the same for all rows.

    state (size,) int32: the number of the first tile, and how many there are. step: groups of rows
    that a tile has one or a multiple of. visits(): what ``begin`` was given.
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
            state[0] = visits.start
            state[1] = self._some(has_rows, visits.count)

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
        return visits.held(start=state[0], count=state[1]).first(number)

    def meets(self, state, group):
        """Whether the rows of group ``group`` have the tile among theirs."""
        return True

    def hides(self, state, group):
        """Whether a mask_mod may hide pairs of these rows and the tile; None: as everywhere."""


class MergedWalk:
    """Tiles of keys that are in the list of any of the rows of blocks, in ascending order.

    A staged tile of keys then serves all rows that list it, as in a walk by range. state: the first
    key of the tile, how many tiles there are at most, and for each row of blocks how many visits
    lie behind it and what the tile is to it: 0 not listed, 1 listed, 2 listed as partial.
    """

    def __init__(self, spec: AttentionSpec, tile: ForwardTile):
        block = spec.block_mask[0]
        self._rows = max(tile.block_q // block, 1)
        self.step = min(block, tile.block_q) // tile.group
        self._block, self.size = self.step * tile.group, 2 + 2 * self._rows

    def visits(self, seen, first, end, block: int):
        """A function of a row of blocks: its visits and their number."""

        def of_row(row):
            own = first + row * self._block
            found = seen.keys(own, tirx.min(own + self._block, end), block)
            return found, tirx.Select(own < end, found.count, 0)

        return of_row

    def begin(self):
        rows = self._rows

        @T.inline
        def start(state, visits, has_rows):
            state[1] = 0
            for r in range(rows):
                with T.sblock("begin_row"):
                    vr = T.axis.opaque(rows, r)
                    state[2 + vr] = 0
                    state[1] = state[1] + visits(vr)[1]

        return start

    def advance(self):
        rows = self._rows

        @T.inline
        def go(state, visits):
            state[0] = _PAST_ALL
            for r in range(rows):
                with T.sblock("nearest"):
                    vr = T.axis.opaque(rows, r)
                    state[0] = T.min(state[0], _next(visits(vr), state[2 + vr]))
            for r in range(rows):
                with T.sblock("met"):
                    vr = T.axis.opaque(rows, r)
                    own = T.meta_var(partial(_listed_as, visits(vr), state[2 + vr]))
                    state[2 + rows + vr] = own(state[0])
                    state[2 + vr] = state[2 + vr] + T.min(state[2 + rows + vr], 1)

        return go

    def exists(self, state):
        return state[0] < _PAST_ALL

    def key(self, state, visits, number):
        return state[0]

    def meets(self, state, group):
        return self._met(state, group) > 0

    def hides(self, state, group):
        return self._met(state, group) > 1

    def _met(self, state, group):
        return state[2 + self._rows + tirx.truncdiv(group, self.step)]


def _next(own, number):
    """The first key of visit ``number`` of a row of blocks, whose visits and their number are
    ``own``."""
    visits, count = own
    return tirx.if_then_else(number < count, visits.first(number), _PAST_ALL)


def _listed_as(own, number, key):
    """What the tile from ``key`` on is to a row of blocks that is at visit ``number``."""
    kind = tirx.Cast("int32", own[0].hides(number)) + 1
    return tirx.if_then_else(tirx.And(number < own[1], own[0].first(number) == key), kind, 0)
