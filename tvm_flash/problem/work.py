"""Which share of a problem each worker of a launch takes: a block of a grid, or a parallel task."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import Any

from .arithmetic import INTS, Arithmetic


@dataclass(frozen=True)
class Work:
    """A grid: one worker for each place of its axes.

    axes: extents by name, the slowest axis first; names are "entry" (of the batch), "head", "tile",
    "part" (of the keys) and, in place of entries and tiles, "slot" (of ``Slots``). last_first: the
    last "tile" is taken first; whoever finds a slot's tile does the same. Under a causal mask the
    last rows see most keys: the launch then ends with short shares. Extents are ints, or
    expressions that ``arithmetic`` knows.
    """

    axes: Mapping[str, Any]
    last_first: bool = False
    arithmetic: Arithmetic = INTS

    @property
    def count(self):
        """How many workers there are."""
        return reduce(mul, reversed(self.axes.values()))

    def places(self) -> list[dict[str, int]]:
        """What every worker takes, in their order, where the extents are ints."""
        return [self.place(worker) for worker in range(self.count)]

    def place(self, worker) -> dict[str, Any]:
        """What worker number ``worker`` takes: an index by the name of each axis."""
        a, slowest = self.arithmetic, next(iter(self.axes))
        places, faster = {}, None
        for name, extent in reversed(self.axes.items()):
            index = worker if faster is None else a.quotient(worker, faster)
            index = index if name == slowest else a.remainder(index, extent)
            if name == "tile" and self.last_first:
                index = extent - 1 - index
            places[name] = index
            faster = extent if faster is None else faster * extent
        return places


@dataclass(frozen=True)
class Slots:
    """Numbers for the tiles of entries of any lengths, one entry's behind another's.

    Entry b has rows from ``starts[b]`` on, of ``total`` in all; each makes ``each`` rows of tiles
    of ``block``. Its tiles begin at slot each * starts[b] // block + b, which leaves room for all
    of them, whatever the lengths are; up to one slot an entry stays empty. So a worker finds its
    tile by a search of ``starts``, and nobody has to add up lengths before.
    """

    starts: Any
    entries: Any
    total: Any
    block: Any
    each: Any
    arithmetic: Arithmetic = INTS

    @property
    def count(self):
        """How many slots there are: total * each / block + entries; none without an entry."""
        return slot_count(self.entries, self.total * self.each, self.block, self.arithmetic)

    def begin(self, entry):
        """The slot of the first tile of ``entry``."""
        return self.arithmetic.quotient(self.starts[entry] * self.each, self.block) + entry

    def entry(self, slot: int) -> int:
        """The entry that ``slot`` belongs to, of ints: the last that begins there or before."""
        return bisect_right(range(self.entries), slot, key=self.begin) - 1


def slot_count(entries, rows, block, arithmetic: Arithmetic = INTS):
    """How many slots the tiles of ``block`` of ``entries`` entries have, of ``rows`` in all."""
    return arithmetic.quotient(rows * arithmetic.minimum(entries, 1), block) + entries
