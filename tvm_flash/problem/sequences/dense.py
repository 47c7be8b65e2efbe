"""Entries that are all as long as the others, in tensors with a batch dimension."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..argument import Up
from ..arithmetic import INTS, Arithmetic
from .shapes import Shapes


@dataclass(frozen=True)
class DenseSequences:
    """Tensors (B, S, H, D): every entry has as many rows as the others.

    seqlen_q, seqlen_k: rows of queries and of keys; ints, or a compiler's expressions. A row counts
    from its entry's first. Row and column of an index may be slices, for the region between.
    """

    shapes = Shapes(
        queries=("B", "Sq"),
        keys=("B", "Sk"),
        statistic=("B", "H", "Sq"),
        sums=("B", "H", Up("Sq", "block_q")),
    )

    seqlen_q: Any
    seqlen_k: Any

    @classmethod
    def axes(
        cls, of: str, sizes: Mapping[str, Any], heads, block, each: Any = 1,
        arithmetic: Arithmetic = INTS,
    ) -> dict[str, Any]:  # fmt: skip
        """The axes of ``Work``: tiles of ``block`` rows, of each head of each entry.

        of: "q" or "k". sizes: of a call by name. each: rows of tiles that a row makes.
        """
        rows = sizes[cls.shapes.rows(of)] * each
        tiles = arithmetic.quotient(rows + (block - 1), block)
        return {"entry": sizes["B"], "head": heads, "tile": tiles}

    @staticmethod
    def as_equal(sizes: Mapping[str, Any]) -> Mapping[str, Any]:
        """The sizes of dense sequences that have the same queries."""
        return sizes

    @property
    def longest_k(self) -> Any:
        """Keys that no entry exceeds."""
        return self.seqlen_k

    def lengths(self, entry) -> tuple:
        """(seqlen_q, seqlen_k) of ``entry``."""
        return self.seqlen_q, self.seqlen_k

    def from_zero(self) -> DenseSequences:
        """Sequences whose elements lie as far apart, without the places that entries begin at."""
        return self

    def every_query(self, entries) -> tuple:
        """(entries, rows, sequences) of a loop over every row of q, of so many ``entries``."""
        return entries, self.seqlen_q, self

    def query(self, entry, head, row, column) -> tuple:
        """Index of an element in q, out and their gradients."""
        return entry, row, head, column

    def key(self, entry, head, row, column) -> tuple:
        """Index of an element in k, v and their gradients."""
        return entry, row, head, column

    def run(self, entry, first) -> tuple:
        """Where the key ``first`` lies, and those at one stride behind it: see ``key_of_run``."""
        return entry, first

    def is_run(self, entry, block: int) -> Any:
        """Whether each ``block`` keys from a multiple of that on lie at one stride."""
        return True

    def statistic(self, entry, head, row) -> tuple:
        """Index of a row's statistic (B, H, Sq): lse, lse_low, dlse, delta."""
        return entry, head, row

    def gradient_sum(self, entry, head, row, column) -> tuple:
        """Index of an element in a copy of dq_acc (B, H, Sq_pad, D_pad), whose rows fill blocks."""
        return entry, head, row, column
