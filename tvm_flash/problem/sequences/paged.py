"""Packed queries over keys that lie in pages, which a table finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..argument import Argument
from .packed import SPANS, PackedSequences
from .shapes import Shapes, key_of_run


@dataclass(frozen=True)
class PagedSequences(PackedSequences):
    """Queries (total_q, H, D), keys in pages (pages, page_size, Hk, D).

    Position p of entry b lies in page page_table[b, p // page_size], as its row p % page_size; the
    entry's keys are the positions starts_k[b] .. ends_k[b] - 1. A cache (B, S, Hk, D) is one of
    pages of S rows. Pages that do not exist are clamped to those that do.

    sizes: B, total_q, pages, page_size, most_pages by name. table: (B, most_pages) int32.
    """

    shapes = Shapes(
        queries=PackedSequences.shapes.queries,
        keys=("pages", "page_size"),
        statistic=PackedSequences.shapes.statistic,
        sums=PackedSequences.shapes.sums,
        own=(
            *SPANS,
            Argument("page_table", ("B", "most_pages"), "input", "int32", dense=True),
        ),
    )

    def key(self, entry, head, row, column) -> tuple:
        if isinstance(row, slice):  # no narrower region holds them
            return slice(0, self.sizes["pages"]), slice(0, self.sizes["page_size"]), head, column
        return key_of_run(self.run(entry, row), head, 0, column)

    def run(self, entry, first) -> tuple:
        a, size = self.arithmetic, self.sizes["page_size"]
        position = self._keys(entry)[0] + first
        page = a.minimum(a.maximum(self._page(entry, position), 0), self.sizes["pages"] - 1)
        return page, a.remainder(position, size)

    def lacks_place(self, entry, row) -> Any:
        """Whether the key ``row``, which ``lengths`` count, lies outside all pages by the numbers.

        Whoever writes asks: what is clamped for a reader is another's place.
        """
        a, first = self.arithmetic, self.spans["starts_k"][entry]
        page = self._page(entry, self._keys(entry)[0] + row)
        return a.either(first < 0, a.either(page < 0, page >= self.sizes["pages"]))

    def _page(self, entry, position):
        """The page of a position, as the table says."""
        number = self.arithmetic.quotient(position, self.sizes["page_size"])
        return self.spans["page_table"][entry, number]

    def is_run(self, entry, block: int) -> Any:
        first, remainder = self._keys(entry)[0], self.arithmetic.remainder
        return remainder(self.sizes["page_size"], block) + remainder(first, block) == 0

    @property
    def _positions(self):
        return self.sizes["most_pages"] * self.sizes["page_size"]
