"""How many rows each entry of the batch has, and where they lie in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DenseSequences:
    """Tensors (B, S, H, D): every entry has as many rows as the others.

    seqlen_q, seqlen_k: rows of queries and of keys; ints, or a compiler's expressions. A row counts
    from its entry's first. Row and column of an index may be slices, for the region between.
    """

    seqlen_q: Any
    seqlen_k: Any

    @property
    def run(self) -> int | None:
        """How many keys lie at one stride, from each multiple of that number on; None: all."""
        return None

    @property
    def longest(self) -> tuple:
        """(seqlen_q, seqlen_k) that no entry exceeds: what tasks are counted by."""
        return self.seqlen_q, self.seqlen_k

    def lengths(self, entry) -> tuple:
        """(seqlen_q, seqlen_k) of ``entry``."""
        return self.seqlen_q, self.seqlen_k

    def has_query(self, entry, row) -> Any:
        """Whether ``entry`` has ``row``, one below the longest: True where no entry is shorter."""
        return True

    def query(self, entry, head, row, column) -> tuple:
        """Index of an element in q, out and their gradients."""
        return entry, row, head, column

    def key(self, entry, head, row, column) -> tuple:
        """Index of an element in k, v and their gradients."""
        return entry, row, head, column

    def key_of_run(self, entry, head, first, row, column) -> tuple:
        """Index of an element of the key ``row`` after ``first``, in whose ``run`` it must lie."""
        return entry, first + row, head, column

    def statistic(self, entry, head, row) -> tuple:
        """Index of a row's statistic (B, H, Sq): lse, lse_low, dlse, delta."""
        return entry, head, row

    def gradient_sum(self, entry, head, row, column) -> tuple:
        """Index of an element in a copy of dq_acc (B, H, Sq_pad, D_pad), whose rows fill blocks."""
        return entry, head, row, column
