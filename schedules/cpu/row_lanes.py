"""Permutations of vector lanes as TIR shuffles: sums across lanes, lanes by turns, pairs."""

from __future__ import annotations

from collections.abc import Iterable

from tvm import tirx


def folded(a, b, width: int, run: int):
    """Half a step of a transposition, added up: of each pair of runs of lanes (``run`` long) of a
    and b, the sum of the two of a and then that of the two of b.
    """
    starts = [(part, lane) for lane in range(0, width, 2 * run) for part in (0, width)]
    low = [part + lane + n for part, lane in starts for n in range(run)]
    return _shuffled(a, b, low) + _shuffled(a, b, [n + run for n in low])


def slice_of(vector, first: int, count: int):
    """``count`` lanes from ``first`` on."""
    return tirx.Shuffle([vector], _lanes(range(first, first + count)))


def strided(low, high, first: int, width: int):
    """Every other lane of two vectors of ``width`` in a row, from ``first`` (0 or 1) on."""
    return _shuffled(low, high, range(first, 2 * width, 2))


def interleaved(first, second, width: int, run: int = 1) -> list:
    """Two vectors of ``width`` lanes that take ``run`` lanes of each by turns."""
    starts = [lane + part for lane in range(0, width, run) for part in (0, width)]
    order = [start + n for start in starts for n in range(run)]
    return [_shuffled(first, second, half) for half in (order[:width], order[width:])]


def lane_pairs(first, second, width: int, run: int) -> list:
    """Lane by lane pairs of two vectors: of every other ``run`` lanes, and of the others.

    With runs of 64 bits each is one instruction within 128 bits (VPUNPCKLWD, VPUNPCKHWD).
    """
    places = [range(start, width, 2 * run) for start in (0, run)]
    kept = [[lane + n for lane in own for n in range(run)] for own in places]
    return [
        _shuffled(first, second, [n + part for n in own for part in (0, width)]) for own in kept
    ]


def _shuffled(a, b, lanes: Iterable[int]):
    return tirx.Shuffle([a, b], _lanes(lanes))


def _lanes(lanes: Iterable[int]) -> list:
    return [tirx.const(n, "int32") for n in lanes]
