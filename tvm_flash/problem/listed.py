"""Which tiles are visited where a call lists them: the blocks of a block mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .arithmetic import INTS, Arithmetic
from .spec import AttentionSpec
from .visits import Visibility, Visits


@dataclass(frozen=True)
class ListedVisits(Visits):
    """The tiles of the blocks of a list, which holds them in ascending order.

    start: where the list begins in ``lists``, whose numbers are 2 * block + 1 for a block where a
    mask_mod may hide a pair, 2 * block for others. per_block: tiles of a block. tiles: of the whole
    axis; those past them belong to no visit.
    """

    lists: Any
    size: Any
    per_block: int
    tiles: Any

    def first(self, number):
        a = self.arithmetic
        tile = self._entry(number, a.quotient) * self.per_block
        tile = tile + a.remainder(self._place(number), self.per_block)
        return a.maximum(a.minimum(tile, self.tiles - 1), 0) * self.block

    def boundary(self, number):
        return self.arithmetic.either(super().boundary(number), self.hides(number))

    def hides(self, number):
        return self._entry(number, self.arithmetic.remainder) > 0

    def resumed(self, start) -> Visits:
        return self

    def _place(self, number):
        """Place of the visit ``number`` in ascending order."""
        return number if self.step == 1 else self.count - 1 - number

    def _entry(self, number, part):
        """The block, or whether it is partial: ``part``, a quotient or a remainder by 2."""
        a = self.arithmetic
        place = self.start + a.quotient(self._place(number), self.per_block)
        return part(_read(self.lists, self.size, place, a), 2)


class ListedVisibility(Visibility):
    """Visibility in an entry and, once it is known, a head, of which ``lists`` name the blocks.

    lists: as ``problem.block_mask`` has them: starts and blocks of each block of queries, then of
    each block of keys; positions within a visited pair of tiles are asked for as everywhere.
    """

    def __init__(
        self, spec: AttentionSpec, seqlen_q, seqlen_k, numbers: Mapping[str, Any],
        lists: Sequence, entry, arithmetic: Arithmetic = INTS, head=None,
    ):  # fmt: skip
        super().__init__(spec, seqlen_q, seqlen_k, numbers, arithmetic)
        self._call = spec, seqlen_q, seqlen_k, numbers, lists, entry, arithmetic
        self._block, self._lists = spec.block_mask, lists
        self._entry, self._head = entry, head

    def of_head(self, head) -> ListedVisibility:
        return ListedVisibility(*self._call, head)

    def keys(self, first, end, block: int, **options) -> Visits:
        ranged = super().keys(first, end, block, **options)
        return self._listed(ranged, self._lists[:2], first, self._block, self._keys, options)

    def queries(self, first, end, block: int, **options) -> Visits:
        ranged = super().queries(first, end, block, **options)
        sizes = self._block[::-1], self._rows
        return self._listed(ranged, self._lists[2:], first, *sizes, options)

    def _listed(self, ranged: Visits, lists, first, sizes: tuple, length, options) -> Visits:
        """The visits of the block of ``first``; sizes: of its blocks and of those in its list."""
        if self._head is None or options.get("within") is not None:
            return ranged
        a, (starts, blocks) = self._arithmetic, lists
        # Entries that a call says are longer than those the lists were made for are read within.
        own = a.minimum(a.quotient(first, sizes[0]), starts.shape[2] - 2)
        per_block = sizes[1] // ranged.block
        start, stop = (starts[self._entry, self._head, own + n] for n in range(2))
        tiles = a.quotient(length + (ranged.block - 1), ranged.block)
        size = blocks.shape[0]
        # A last block may reach past the end by whole tiles.
        last = a.quotient(_read(blocks, size, stop - 1, a), 2)
        past = a.maximum((last + 1) * per_block - tiles, 0)
        count = a.select(stop > start, (stop - start) * per_block - past, 0)
        return ListedVisits(
            start, count, length, ranged.full_low, ranged.full_high, ranged.block, ranged.step,
            ranged.origin, a, blocks, size, per_block, tiles,
        )  # fmt: skip


def _read(lists, size, place, a: Arithmetic):
    """A number of ``lists``, never one outside."""
    return lists[a.maximum(a.minimum(place, size - 1), 0)]
