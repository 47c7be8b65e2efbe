"""Which tiles of keys a tile of queries visits, or the other way round, and which need the mask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..score.variants import alignment_offset
from .arithmetic import INTS, Arithmetic
from .spec import AttentionSpec


@dataclass(frozen=True)
class Visits:
    """The tiles that one tile of the other axis visits, numbered from 0 in that order.

    count: how many. start: the first one's number among the tiles of ``block`` positions that begin
    at ``origin``; step: 1 or -1, from one to the next. end: past the last position that is seen.
    Every pair with a position in [full_low, full_high) is visible. All are ints, or expressions
    that ``arithmetic`` made.
    """

    start: Any
    count: Any
    end: Any
    full_low: Any
    full_high: Any
    block: int
    step: int
    origin: Any
    arithmetic: Arithmetic

    def part(self, number, parts) -> Visits:
        """Part ``number`` of ``parts``: equal runs of these tiles, of which the last have fewer."""
        a, size = self.arithmetic, self._share(parts)
        count = a.maximum(a.minimum(self.count - number * size, size), 0)
        return replace(self, start=self.start + number * size * self.step, count=count)

    def parts(self, most):
        """How many of ``most`` parts have tiles: those before the others."""
        size = self.arithmetic.maximum(self._share(most), 1)
        return self.arithmetic.quotient(self.count + (size - 1), size)

    def _share(self, parts):
        """Tiles of each part but the last."""
        return self.arithmetic.quotient(self.count + (parts - 1), parts)

    def first(self, number):
        """First position of the tile visited as number ``number``."""
        tile = self.start + number if self.step == 1 else self.start - number
        return tile * self.block if self.origin is None else self.origin + tile * self.block

    def boundary(self, number):
        """Whether a mask or an end may hide part of the tile visited as number ``number``."""
        return self.is_boundary(self.first(number))

    def is_boundary(self, first, size=None):
        """Whether a mask or an end may hide some of ``size`` positions from ``first`` on."""
        end = first + (self.block if size is None else size)
        return self.arithmetic.either(first < self.full_low, end > self.full_high)

    def hides(self, number):
        """Whether a mask_mod may hide part of the tile visited as number ``number``; None: as in
        every other tile."""

    def exists(self, number):
        """Whether there is a tile that is visited as number ``number``."""
        return number < self.count

    def resumed(self, start) -> Visits:
        """These visits from a ``start`` that is held, where it is that of every head."""
        return replace(self, start=start)

    def held(self, **values) -> Visits:
        """These visits with some of their numbers replaced by variables that hold them."""
        return replace(self, **values)


class Visibility:
    """What the rows and the keys of one entry of the batch see of each other.

    numbers: of the call, by name; the ends of a window are among them. A mask_mod may hide any
    pair, so that no tile is free of the mask, unless lists of blocks say where it does.
    """

    def __init__(
        self,
        spec: AttentionSpec,
        seqlen_q,
        seqlen_k,
        numbers: Mapping[str, Any],
        arithmetic: Arithmetic = INTS,
    ) -> None:
        self._window = spec.window(numbers)
        self._offset = alignment_offset(spec.alignment, seqlen_q, seqlen_k)
        self._hides_any = spec.mask_mod is not None and spec.block_mask is None
        self._rows, self._keys, self._arithmetic = seqlen_q, seqlen_k, arithmetic

    def of_head(self, head) -> Visibility:
        """What is seen in query head ``head``."""
        return self

    def keys(self, first, end, block: int, **options) -> Visits:
        """Tiles of ``block`` keys that rows first .. end - 1 see, of which those past the last row
        are none.

        within (first, end): only these keys, whose tiles begin at the first one. last_first: the
        last tile comes first. pad_is_boundary: every tile is a boundary for rows that reach past
        the last one. hides: whether every tile is a boundary (``Visits.hides``).
        """
        lengths = self._rows, self._keys
        return self._visits(self._window, self._offset, first, end, *lengths, block, **options)

    def queries(self, first, end, block: int, **options) -> Visits:
        """Tiles of ``block`` rows that see one of keys first .. end - 1; options as of ``keys``."""
        # Row q sees key k through (left, right) exactly when key k sees q through (right, left).
        window, lengths = self._window[::-1], (self._keys, self._rows)
        return self._visits(window, -self._offset, first, end, *lengths, block, **options)

    def _visits(
        self, window, offset, first, end, own_length, length, block: int,
        within=None, last_first: bool = False, pad_is_boundary: bool = False, hides=None,
    ) -> Visits:  # fmt: skip
        a = self._arithmetic
        last = a.minimum(end, own_length) - 1
        low, high, full_low, full_high = _seen(window, first + offset, last + offset, length, a)
        if self._hides_any:
            full_low = full_high = low
        elif pad_is_boundary:
            full_high = a.select(end > own_length, 0, full_high)
        if hides is not None:
            full_high = a.select(hides, 0, full_high)
        origin, end = None, high
        if within is not None:
            origin, stop = within
            end = a.minimum(high, stop)
            low = 0 if window[0] is None else a.maximum(low - origin, 0)
            high = end - origin
        start, stop = a.quotient(low, block), a.quotient(high + (block - 1), block)
        count = a.select(high > low, stop - start, 0)
        if last_first:
            return Visits(stop - 1, count, end, full_low, full_high, block, -1, origin, a)
        return Visits(start, count, end, full_low, full_high, block, 1, origin, a)


def _seen(window, first, last, length, a: Arithmetic) -> tuple:
    """(low, high, full_low, full_high): every position that one of first .. last sees through
    ``window`` (left, right; None: unbounded) lies in [low, high), and all of them see all of
    [full_low, full_high).

    0 <= low <= full_low <= full_high <= high <= length.
    """
    left, right = window
    low, high, full_low, full_high = 0, length, 0, length
    if left is not None:
        low = a.minimum(a.maximum(first - left, 0), length)
        full_low = last - left
    if right is not None:
        high = a.minimum(a.maximum(last + (right + 1), low), length)
        full_high = first + (right + 1)
    if left is not None:
        full_low = a.minimum(a.maximum(full_low, low), high)
    if left is not None or right is not None:
        full_high = a.minimum(a.maximum(full_high, full_low), high)
    return low, high, full_low, full_high
