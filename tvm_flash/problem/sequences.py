"""How many rows each entry of the batch has, and where they lie in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DenseSequences:
    """Tensors (B, S, H, D): every entry has as many rows as the others.

    seqlen_q, seqlen_k: rows of queries and of keys; ints, or a compiler's expressions.
    """

    seqlen_q: Any
    seqlen_k: Any

    def lengths(self, entry) -> tuple:
        """(seqlen_q, seqlen_k) of ``entry``."""
        return self.seqlen_q, self.seqlen_k

    def query(self, entry, head, row, column) -> tuple:
        """Index of an element in q, out and their gradients; rows count from the entry's first."""
        return entry, row, head, column

    def key(self, entry, head, row, column) -> tuple:
        """Index of an element in k, v and their gradients."""
        return entry, row, head, column

    def statistic(self, entry, head, row) -> tuple:
        """Index of a row's statistic (B, H, Sq): lse, lse_low, dlse, delta."""
        return entry, head, row
