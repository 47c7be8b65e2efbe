"""Which positions of a sequence each rank holds: plain arithmetic, the same on every rank."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

LAYOUTS = ("zigzag", "contiguous")


class Stream(NamedTuple):
    """Rows that are divided among ranks.

    rows: of an entry on each rank. entries: how many lie one behind the other in a rank's rows.
    ends: cumulative lengths, from 0 on, of the documents in the positions of an entry; positions
    past the last one are of no document.
    """

    rows: int
    entries: int
    ends: tuple[int, ...]

    @property
    def lengths(self) -> list[int]:
        """Positions of each document of an entry."""
        return [stop - start for start, stop in pairwise(self.ends)]


class Piece(NamedTuple):
    """Positions of a document that lie one behind the other in a rank's rows.

    document: (entry, number in it). first: the position in the document. row: of that position.
    """

    document: tuple[int, int]
    first: int
    row: int
    length: int


def check_layout(layout: str) -> None:
    """ValueError unless ``layout`` is a known one."""
    if layout not in LAYOUTS:
        raise ValueError(f"{layout=} must be one of {', '.join(LAYOUTS)}")


def chunks(layout: str, rank: int, world: int) -> tuple[int, ...]:
    """The numbers of a rank's chunks, in the order of its rows.

    "contiguous": of ``world`` chunks the one of its number. "zigzag": of twice as many one from
    each end, so that every rank has as many visible pairs of a causal mask.
    """
    return (rank, 2 * world - 1 - rank) if layout == "zigzag" else (rank,)


def chunk_rows(layout: str, rows: int) -> int:
    """Rows of a chunk of a rank that has ``rows``; ValueError where they do not divide."""
    count = len(chunks(layout, 0, 1))
    if rows % count:
        raise ValueError(f"{rows} rows of a rank are not {count} chunks of layout={layout!r}")
    return rows // count


def pieces(layout: str, stream: Stream, rank: int, world: int) -> list[Piece]:
    """What a rank holds, in the order of its rows."""
    size, found = chunk_rows(layout, stream.rows), []
    for entry in range(stream.entries):
        for place, chunk in enumerate(chunks(layout, rank, world)):
            begin, row = chunk * size, entry * stream.rows + place * size
            found += _within(stream.ends, begin, begin + size, entry, row)
    return found


def _within(ends: tuple[int, ...], begin: int, end: int, entry: int, row: int) -> Iterator[Piece]:
    """The documents in the positions begin .. end of ``entry``, which are rows from ``row`` on."""
    for number in range(max(bisect_right(ends, begin) - 1, 0), len(ends) - 1):
        if ends[number] >= end:
            break
        first, last = max(ends[number], begin), min(ends[number + 1], end)
        if first < last:
            yield Piece((entry, number), first - ends[number], row + first - begin, last - first)


def joined(found: list[Piece], *, over_gaps: bool = False) -> list[Piece]:
    """``found`` with those that continue the one before made one.

    over_gaps: also where positions between the two are another rank's, for masks to which the
    order of positions is all that matters.
    """
    result: list[Piece] = []
    for piece in found:
        last = result[-1] if result else None
        is_next = (
            last is not None
            and last.document == piece.document
            and last.row + last.length == piece.row
            and (over_gaps or last.first + last.length == piece.first)
        )
        if is_next:
            result[-1] = last._replace(length=last.length + piece.length)
        else:
            result.append(piece)
    return result
