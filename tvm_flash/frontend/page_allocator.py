"""Which pages a sequence has: taken, shared, given back and moved, in numbers without tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import CacheFull


@dataclass(frozen=True)
class Growth:
    """What more tokens do to sequences: a plan, of which nothing has happened yet.

    ids, starts, counts, tails: for each sequence its number, its tokens before, how many come, and
    the pages from that of token ``start`` on. copies: (shared page, the one that replaces it).
    taken: how many free pages become pages of sequences.
    """

    ids: list[int]
    starts: list[int]
    counts: list[int]
    tails: list[list[int]]
    copies: list[tuple[int, int]]
    taken: int


class PageAllocator:
    """Pages of ``page_size`` tokens for at most ``max_sequences`` of at most ``max_pages`` each.

    ``pages`` and ``lengths`` hold the pages, in order, and the tokens of each sequence by its
    number. A sequence has no more pages than its tokens need. A page may belong to several
    sequences: ``references`` counts them.
    """

    def __init__(self, num_pages: int, page_size: int, max_sequences: int, max_pages: int):
        self.page_size = page_size
        self.max_pages = max_pages
        self.max_sequences = max_sequences
        self.pages: dict[int, list[int]] = {}
        self.lengths: dict[int, int] = {}
        self.references = [0] * num_pages
        # The last is taken first.
        self.free_pages = list(reversed(range(num_pages)))
        self._free_ids = list(reversed(range(max_sequences)))

    def allocate(self) -> int:
        """The number of a new sequence without tokens; CacheFull where all are in use."""
        return self._new_sequence([], 0)

    def fork(self, sequence: int) -> int:
        """The number of a new sequence with all the pages of another; errors of allocate, check."""
        self.check([sequence])
        return self._new_sequence(self.pages[sequence], self.lengths[sequence])

    def _new_sequence(self, pages: list[int], length: int) -> int:
        if not self._free_ids:
            raise CacheFull(
                f"all {self.max_sequences} sequences are in use: free some, or raise max_sequences"
            )
        sequence = self._free_ids.pop()
        self.pages[sequence], self.lengths[sequence] = list(pages), length
        for page in pages:
            self.references[page] += 1
        return sequence

    def free(self, ids: Sequence[int]) -> None:
        """End sequences; their pages are free where no other sequence has them."""
        self.check(ids)
        for sequence in ids:
            for page in reversed(self.pages.pop(sequence)):
                self.references[page] -= 1
                if self.references[page] == 0:
                    self.free_pages.append(page)
            del self.lengths[sequence]
            self._free_ids.append(sequence)

    def check(self, ids: Sequence[int]) -> None:
        """ValueError unless ``ids`` are sequences of this cache, each named once."""
        for sequence in ids:
            if sequence not in self.pages:
                raise ValueError(f"sequence {sequence} is not in the cache: allocate() numbers it")
        if len(set(ids)) < len(ids):
            twice = next(sequence for sequence, n in Counter(ids).items() if n > 1)
            raise ValueError(f"sequence {twice} is named twice: name each once")

    def plan(self, ids: Sequence[int], counts: Sequence[int]) -> Growth:
        """What ``counts`` more tokens do to the sequences ``ids``; nothing changes until commit.

        A partly filled page that others have too is replaced by a copy. Raises CacheFull where
        pages lack, ValueError as check, and for a sequence that would exceed ``max_pages``.
        """
        self.check(ids)
        starts = [self.lengths[sequence] for sequence in ids]
        tails, copies, taken = [], [], 0
        left = Counter()  # shared pages that a sequence leaves in this plan
        for sequence, start, count in zip(ids, starts, counts, strict=True):
            self._check_length(sequence, start + count)
            tail = self.pages[sequence][start // self.page_size :]
            needed = -(-(start + count) // self.page_size) - start // self.page_size
            if tail and count and self.references[tail[0]] - left[tail[0]] > 1:
                left[tail[0]] += 1
                copies.append((tail[0], self._free_page(taken)))
                tail = [copies[-1][1]]
                taken += 1
            more = needed - len(tail)
            tails.append(tail + [self._free_page(taken + n) for n in range(more)])
            taken += more
        if taken > len(self.free_pages):
            raise CacheFull(
                f"{taken} pages are needed, {len(self.free_pages)} of {len(self.references)} are "
                "free: free sequences, or raise num_pages"
            )
        return Growth(list(ids), starts, list(counts), tails, copies, taken)

    def _free_page(self, number: int) -> int:
        """The free page that is taken after ``number`` others; any where there is none."""
        return self.free_pages[-1 - number] if number < len(self.free_pages) else 0

    def _check_length(self, sequence: int, length: int) -> None:
        if length > (most := self.max_pages * self.page_size):
            raise ValueError(
                f"sequence {sequence} would have {length} tokens, its row of the page table has "
                f"room for {most}: raise max_seqlen, or num_pages where that is all pages"
            )

    def commit(self, growth: Growth) -> None:
        """Do what ``plan`` said, with no change in between."""
        for sequence, start, count, tail in zip(
            growth.ids, growth.starts, growth.counts, growth.tails, strict=True
        ):
            self.pages[sequence][start // self.page_size :] = tail
            self.lengths[sequence] = start + count
        for shared, _ in growth.copies:
            self.references[shared] -= 1
        for _ in range(growth.taken):
            self.references[self.free_pages.pop()] = 1

    def moves(self) -> dict[int, int]:
        """Where pages in use would go to be the first ones: none onto a page in use."""
        live = [page for page, n in enumerate(self.references) if n]
        holes = (page for page in range(len(live)) if not self.references[page])
        return {page: next(holes) for page in live if page >= len(live)}

    def move(self, moves: dict[int, int]) -> None:
        """Rename pages by what ``moves`` said, with no change in between."""
        for pages in self.pages.values():
            pages[:] = [moves.get(page, page) for page in pages]
        for source, target in moves.items():
            self.references[target], self.references[source] = self.references[source], 0
        self.free_pages = [page for page, n in enumerate(self.references) if not n][::-1]
