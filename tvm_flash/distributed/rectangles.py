"""Visible pairs of two ranks' pieces as rectangles, and rectangles as calls of a kernel.

A window lets query i see the keys i - left .. i + right. Of a piece of queries and a piece of keys
that is a band across a rectangle; what is left of it when rows and columns without a visible pair
are cut off is the band of a window again, with ends that count from the first row and the first
key and are not negative: what kernels serve.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .partition import Piece

Window = tuple[int | None, int | None]
Range = tuple[int, int]


class Rectangle(NamedTuple):
    """Queries and keys, (start, stop) in their rows, and the window between them.

    window: (left, right), where query n of the rectangle sees its keys n - left .. n + right.
    first: the positions of the first query and of the first key in their document.
    """

    queries: Range
    keys: Range
    window: Window
    document: tuple[int, int]
    first: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Call:
    """Rectangles of one window that a kernel computes as the sequences of one packed call.

    Ranges of queries do not overlap, and are in order; nor do those of keys.
    """

    window: Window
    rectangles: tuple[Rectangle, ...]

    @property
    def queries(self) -> Range:
        """The rows from the first to behind the last query."""
        return self.rectangles[0].queries[0], self.rectangles[-1].queries[1]

    @property
    def keys(self) -> Range:
        return self.rectangles[0].keys[0], self.rectangles[-1].keys[1]

    @property
    def longest_k(self) -> int:
        """The most keys of a rectangle."""
        return max(stop - start for start, stop in (r.keys for r in self.rectangles))

    @property
    def is_square(self) -> bool:
        """Whether all rectangles have as many queries as keys."""
        return all(_length(r.queries) == _length(r.keys) for r in self.rectangles)


def rectangle(queries: Piece, keys: Piece, shift: int, window: Window) -> Rectangle | None:
    """The visible pairs of two pieces of a document; None where there are none.

    shift: keys less queries of the document: query i stands at the position i + shift of the keys.
    """
    left, right = window
    distance = queries.first + shift - keys.first
    least = -queries.length if left is None else distance - left  # of key less query, in pieces
    most = keys.length if right is None else distance + right
    first_q, first_k = max(0, -most), max(0, least)
    last_q = min(queries.length, keys.length - least)
    last_k = min(keys.length, queries.length + most)
    if first_q >= last_q or first_k >= last_k:
        return None
    rows, columns, moved = last_q - first_q, last_k - first_k, first_q - first_k
    left, right = -(least + moved), most + moved
    return Rectangle(
        (queries.row + first_q, queries.row + last_q),
        (keys.row + first_k, keys.row + last_k),
        (left if left < rows - 1 else None, right if right < columns - 1 else None),
        queries.document,
        (queries.first + first_q, keys.first + first_k),
    )


def visible(
    queries: Iterable[Piece], keys: Iterable[Piece], shifts: Sequence[int], window: Window
) -> list[Rectangle]:
    """The rectangles of all pairs of pieces.

    shifts: of each document of an entry, as ``rectangle`` takes it.
    """
    of_document: dict[tuple[int, int], list[Piece]] = {}
    for piece in keys:
        of_document.setdefault(piece.document, []).append(piece)
    pairs = ((piece, other) for piece in queries for other in of_document.get(piece.document, ()))
    found = (rectangle(*pair, shifts[pair[0].document[1]], window) for pair in pairs)
    return [x for x in found if x is not None]


def united(found: Iterable[Rectangle]) -> list[Rectangle]:
    """``found`` with whole rectangles of a document made one that have an edge in common.

    Positions may be another rank's between the two: ``first`` is then of the first row alone.
    """
    of_document: dict[tuple[int, int], list[Rectangle]] = {}
    for new in found:
        known = of_document.setdefault(new.document, [])
        for place, old in enumerate(known):
            if (union := _union(old, new)) is not None:
                known[place] = union
                break
        else:
            known.append(new)
    return [x for known in of_document.values() for x in known]


def calls_of(found: Iterable[Rectangle]) -> tuple[Call, ...]:
    """As few calls as rectangles of equal windows, in order and without an overlap, allow."""
    groups: list[list[Rectangle]] = []
    for new in sorted(found, key=lambda r: (r.queries, r.keys)):
        for group in groups:
            last = group[-1]
            is_behind = new.queries[0] >= last.queries[1] and new.keys[0] >= last.keys[1]
            if new.window == last.window and is_behind:
                group.append(new)
                break
        else:
            groups.append([new])
    return tuple(Call(group[0].window, tuple(group)) for group in groups)


def _union(a: Rectangle, b: Rectangle) -> Rectangle | None:
    if a.window != (None, None) or b.window != (None, None):
        return None
    if a.queries == b.queries and a.keys[1] == b.keys[0]:
        return a._replace(keys=(a.keys[0], b.keys[1]))
    if a.keys == b.keys and a.queries[1] == b.queries[0]:
        return a._replace(queries=(a.queries[0], b.queries[1]))
    return None


def _length(span: Range) -> int:
    return span[1] - span[0]
