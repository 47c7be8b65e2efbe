"""What each rank computes and whom it sends which keys: the same plan on every rank."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from .partition import Stream, joined, pieces
from .rectangles import Call, Range, Rectangle, Window, calls_of, united, visible


@dataclass(frozen=True, eq=False)
class Block:
    """The keys of one rank that the queries of another see.

    rows: ranges of the rows of the keys' rank, in order; they are sent one behind the other.
    calls: of which keys are counted in the rows that were sent.
    """

    rows: tuple[Range, ...]
    calls: tuple[Call, ...]

    @property
    def length(self) -> int:
        """Rows that are sent."""
        return sum(stop - start for start, stop in self.rows)


@dataclass(frozen=True, eq=False)
class Plan:
    """The steps of a rank. In step n it has the keys of the rank n before it, which sends them.

    received: a block for each step, of the keys of others and in step 0 of its own. sent: its own
    keys, as the rank n behind it sees them.
    """

    received: tuple[Block, ...]
    sent: tuple[Block, ...]


class Division(NamedTuple):
    """What is divided among ``world`` ranks, and how.

    window: (left, right), None for no end. knows_positions: whether scores follow from positions,
    so that rows are one rectangle only where their positions are neighbours.
    """

    layout: str
    world: int
    queries: Stream
    keys: Stream
    window: Window
    knows_positions: bool = False


@lru_cache(maxsize=256)
def plan_of(division: Division, rank: int) -> Plan:
    """The steps of ``rank``."""
    world = division.world
    return Plan(
        tuple(_block(division, rank, (rank - step) % world) for step in range(world)),
        tuple(_block(division, (rank + step) % world, rank) for step in range(world)),
    )


def _block(division: Division, of_queries: int, of_keys: int) -> Block:
    """The keys of one rank that the queries of another see."""
    layout, world, queries, keys, window, knows_positions = division
    is_own = of_queries == of_keys
    # Where only the order of positions counts, or not even that, gaps between rows are none.
    is_causal_own = is_own and queries == keys and window == (None, 0)
    over_gaps = not knows_positions and (window == (None, None) or is_causal_own)
    found = visible(
        joined(pieces(layout, queries, of_queries, world), over_gaps=over_gaps),
        joined(pieces(layout, keys, of_keys, world), over_gaps=over_gaps),
        [k - q for q, k in zip(queries.lengths, keys.lengths, strict=True)],
        window,
    )
    if not knows_positions:
        found = united(found)
    rows = _covered(r.keys for r in found)
    return Block(rows, calls_of(found if is_own else _moved(found, rows)))


def _covered(spans: Iterable[Range]) -> tuple[Range, ...]:
    """The rows that lie in any of ``spans``, as ranges in order."""
    found: list[Range] = []
    for start, stop in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return tuple(found)


def _moved(found: Sequence[Rectangle], rows: Sequence[Range]) -> list[Rectangle]:
    """``found`` with keys counted in ``rows``, one behind the other."""
    moves, before = [], 0
    for start, stop in rows:
        moves.append((start, stop, start - before))
        before += stop - start
    result = []
    for each in found:
        move = next(by for start, stop, by in moves if start <= each.keys[0] < stop)
        result.append(each._replace(keys=(each.keys[0] - move, each.keys[1] - move)))
    return result
