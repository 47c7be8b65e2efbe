"""Entries of any lengths, one behind the other in tensors without a batch dimension."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..argument import Past
from ..arithmetic import INTS, Arithmetic
from ..work import Slots, slot_count
from .shapes import Shapes, entry_numbers

SPANS = tuple(map(entry_numbers, ("starts_q", "ends_q", "starts_k", "ends_k")))


@dataclass(frozen=True)
class PackedSequences:
    """Tensors (total, H, D): entry b has the rows starts[b] .. ends[b] - 1 of them.

    Entries lie in order and apart: ends[b] <= starts[b + 1]. What is given is clamped to the
    tensors, so that wrong numbers give wrong results and never an access outside them.

    sizes: B, total_q, total_k by name. spans: starts_q, ends_q, starts_k, ends_k (B,) int32.
    longest_k: keys that no entry exceeds. held: the span of queries and of keys of the one entry
    that is asked for, where they were looked up before. All may be ints, or a compiler's
    expressions and buffers.
    """

    shapes = Shapes(
        queries=("total_q",),
        keys=("total_k",),
        statistic=("H", "total_q"),
        sums=("H", Past("total_q", "block_q")),
        own=SPANS,
    )

    sizes: Mapping[str, Any]
    spans: Mapping[str, Any]
    longest_k: Any
    arithmetic: Arithmetic
    held: tuple = ()

    @classmethod
    def axes(
        cls, of: str, sizes: Mapping[str, Any], heads, block, each: Any = 1,
        arithmetic: Arithmetic = INTS,
    ) -> dict[str, Any]:  # fmt: skip
        """As of ``DenseSequences``: the slots of all entries take the place of entry and tile."""
        rows = sizes[cls.shapes.rows(of)] * each
        return {"head": heads, "slot": slot_count(sizes["B"], rows, block, arithmetic)}

    @staticmethod
    def as_equal(sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """The sizes of dense sequences that have the same queries: all of one entry."""
        return {**sizes, "B": 1, "Sq": sizes["total_q"]}

    def span(self, entry) -> tuple:
        """First query, past the last, first key, past the last: what ``held`` takes."""
        return *self._queries(entry), *self._keys(entry)

    def holding(self, span: tuple) -> PackedSequences:
        """These, for the one entry whose ``span`` that is."""
        return replace(self, held=span)

    def from_zero(self) -> PackedSequences:
        """Sequences whose elements lie as far apart, without the places that entries begin at.

        A compiler then sees that the difference of two places does not depend on those.
        """
        return self.holding((0, 0, 0, 0))

    def starts(self, entry):
        """First query of ``entry``."""
        return self._queries(entry)[0]

    def lengths(self, entry) -> tuple:
        """(seqlen_q, seqlen_k) of ``entry``."""
        (first_q, past_q), (first_k, past_k) = self._queries(entry), self._keys(entry)
        return past_q - first_q, past_k - first_k

    def every_query(self, entries) -> tuple:
        """(entries, rows, sequences) of a loop over every row of q: as of one entry."""
        total = self.sizes["total_q"]
        return 1, total, self.holding((0, total, 0, 0))

    def query(self, entry, head, row, column) -> tuple:
        """Index of an element in q, out and their gradients."""
        return _after(self._queries(entry)[0], row), head, column

    def key(self, entry, head, row, column) -> tuple:
        """Index of an element in k, v and their gradients."""
        return _after(self._keys(entry)[0], row), head, column

    def run(self, entry, first) -> tuple:
        """Where the key ``first`` lies, and those at one stride behind it: see ``key_of_run``."""
        return (self._keys(entry)[0] + first,)

    def is_run(self, entry, block: int) -> Any:
        """Whether each ``block`` keys from a multiple of that on lie at one stride."""
        return True

    def statistic(self, entry, head, row) -> tuple:
        """Index of a row's statistic (H, total_q): lse, lse_low, dlse, delta."""
        return head, _after(self._queries(entry)[0], row)

    def gradient_sum(self, entry, head, row, column) -> tuple:
        """Index of an element in a copy of dq_acc (H, total_q + block_q, D_pad).

        A block's rows past the end of its entry are the next entry's.
        """
        return head, _after(self._queries(entry)[0], row), column

    def query_slots(self, block, each: Any = 1) -> Slots:
        """The tiles of ``block`` rows of all entries, of which each query makes ``each``."""
        starts, total = self.spans["starts_q"], self.sizes["total_q"]
        return Slots(starts, self.sizes["B"], total, block, each, self.arithmetic)

    def key_slots(self, block) -> Slots:
        """The tiles of ``block`` keys of all entries."""
        starts, total = self.spans["starts_k"], self.sizes["total_k"]
        return Slots(starts, self.sizes["B"], total, block, 1, self.arithmetic)

    def _queries(self, entry) -> tuple:
        if self.held:
            return self.held[:2]
        spans = self.spans
        return self._clamped(spans["starts_q"], spans["ends_q"], entry, self.sizes["total_q"])

    def _keys(self, entry) -> tuple:
        if self.held:
            return self.held[2:]
        spans = self.spans
        return self._clamped(spans["starts_k"], spans["ends_k"], entry, self._positions)

    @property
    def _positions(self):
        """How many positions of keys there are."""
        return self.sizes["total_k"]

    def _clamped(self, starts, ends, entry, total) -> tuple:
        a = self.arithmetic
        start = a.minimum(a.maximum(starts[entry], 0), total)
        return start, a.minimum(a.maximum(ends[entry], start), total)


def _after(start, row):
    return slice(start + row.start, start + row.stop) if isinstance(row, slice) else start + row
