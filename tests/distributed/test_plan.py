"""The plan of ring attention: every visible pair once, on ranks that agree, and no more is sent."""

import random

import numpy as np
import pytest

from tvm_flash.distributed.partition import LAYOUTS, Stream, chunks
from tvm_flash.distributed.plan import Division, plan_of


def positions(division, stream, rank):
    """(entry, document, position in it) of a rank's rows; document -1 is padding. (rows, 3)."""
    own = chunks(division.layout, rank, division.world)
    size = stream.rows // len(own)
    places = np.concatenate([np.arange(n * size, (n + 1) * size) for n in own])
    ends = np.array(stream.ends)
    document = np.searchsorted(ends[1:], places, side="right")
    in_document = places - ends[np.minimum(document, len(ends) - 1)]
    document[document == len(ends) - 1] = -1
    entries = (np.full_like(places, entry) for entry in range(stream.entries))
    return np.concatenate([np.stack([entry, document, in_document], 1) for entry in entries])


def visible(division, of_queries, of_keys):
    """Whether a rank's queries see another's keys, bool (queries, keys), by definition."""
    q = positions(division, division.queries, of_queries)[:, None]
    k = positions(division, division.keys, of_keys)[None]
    shifts = np.subtract(division.keys.lengths, division.queries.lengths)[q[..., 1]]
    distance = k[..., 2] - q[..., 2] - shifts
    left, right = division.window
    seen = (q[..., :2] == k[..., :2]).all(-1) & (q[..., 1] >= 0)
    seen &= distance >= -left if left is not None else True
    return seen & (distance <= right if right is not None else True)


def planned(division, rank, step):
    """How often a step of a rank computes each pair of its queries and the other's keys."""
    block = plan_of(division, rank).received[step]
    queries, keys = (x.rows * x.entries for x in (division.queries, division.keys))
    rows, found = np.arange(keys), np.zeros((queries, keys), int)
    if step:
        rows = np.concatenate([rows[:0], *(rows[slice(*span)] for span in block.rows)])
    for call in block.calls:
        for each in call.rectangles:
            q, k = (np.arange(*span) for span in (each.queries, each.keys))
            left, right = call.window
            distance = np.arange(len(k))[None] - np.arange(len(q))[:, None]
            band = np.ones(distance.shape, bool)
            band &= distance >= -left if left is not None else True
            band &= distance <= right if right is not None else True
            found[np.ix_(q, rows[k])] += band
    return found


def drawn(seed):
    """A division of random sizes, documents and windows."""
    draw = random.Random(seed)
    world, entries = draw.choice([1, 2, 3, 4]), draw.choice([1, 1, 2])
    rows, documents = draw.choice([2, 4, 6, 10]), draw.choice([1, 1, 2, 5])

    def stream(rows):
        cuts = sorted(draw.randint(0, rows * world) for _ in range(documents))
        cuts[-1] = max(cuts[-1], rows * world - draw.choice([0, 0, 1]))
        return Stream(rows, entries, (0, *cuts))

    queries = stream(rows)
    keys = queries if draw.random() < 0.7 else stream(draw.choice([2, 4, 8]))
    ends = [(None, None), (None, 0), (None, 0), (draw.randint(0, 9), 0)]
    ends += [(draw.randint(0, 5), draw.randint(0, 5)), (None, 3), (2, None)]
    return Division(
        draw.choice(LAYOUTS), world, queries, keys, draw.choice(ends), draw.random() < 0.3
    )


@pytest.mark.parametrize("part", range(4))
def test_every_visible_pair_is_computed_once(part):
    for seed in range(part * 100, part * 100 + 100):
        division = drawn(seed)
        for rank in range(division.world):
            for step in range(division.world):
                want = visible(division, rank, (rank - step) % division.world)
                assert (planned(division, rank, step) == want).all(), (seed, rank, step)


def test_ranks_agree_on_what_is_sent():
    for seed in range(100):
        division = drawn(seed)
        plans = [plan_of(division, rank) for rank in range(division.world)]
        for rank, plan in enumerate(plans):
            for step, block in enumerate(plan.received):
                sender = plans[(rank - step) % division.world]
                assert sender.sent[step].rows == block.rows
                assert len(sender.sent[step].calls) == len(block.calls)


def sent_rows(division):
    """Rows of keys that each rank sends."""
    plans = (plan_of(division, rank) for rank in range(division.world))
    return [sum(block.length for block in plan.sent[1:]) for plan in plans]


def test_zigzag_divides_a_causal_mask_evenly():
    stream = Stream(64, 1, (0, 256))
    division = Division("zigzag", 4, stream, stream, (None, 0))
    pairs = [sum(visible(division, rank, n).sum() for n in range(4)) for rank in range(4)]
    assert len(set(pairs)) == 1
    # Ranks behind it see all keys of a rank's first part, ranks before it both parts.
    assert sent_rows(division) == [96, 128, 160, 192]
    plans = [plan_of(division, rank) for rank in range(4)]
    assert all(len(block.calls) == 1 for plan in plans for block in plan.received)


def test_what_no_query_sees_is_not_sent():
    stream = Stream(64, 1, (0, 256))
    assert sent_rows(Division("contiguous", 4, stream, stream, (16, 0))) == [16, 16, 16, 0]
    documents = Stream(64, 1, (0, 64, 128, 192, 256))
    assert sent_rows(Division("contiguous", 4, documents, documents, (None, 0))) == [0] * 4
