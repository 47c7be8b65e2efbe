"""Where rows lie: an index gives the element that torch's own indexing gives."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvm_flash.problem.arithmetic import INTS
from tvm_flash.problem.sequences import (
    DenseSequences,
    PackedSequences,
    PagedSequences,
    key_of_run,
)

SEQUENCES = DenseSequences(5, 7)


def test_dense_rows_are_found_in_tensors_of_the_public_layout():
    queries, keys = torch.rand(2, 5, 3, 8), torch.rand(2, 7, 1, 8)
    statistic = torch.rand(2, 3, 5)
    for entry in range(2):
        of_head = queries[entry, :, 2]
        assert queries[SEQUENCES.query(entry, 2, 4, 6)] == of_head[4, 6]
        assert keys[SEQUENCES.key(entry, 0, 6, 1)] == keys[entry, :, 0][6, 1]
        assert keys[key_of_run(SEQUENCES.run(entry, 4), 0, 2, 1)] == keys[entry, :, 0][6, 1]
        assert statistic[SEQUENCES.statistic(entry, 2, 4)] == statistic[entry, 2][4]


def test_dense_entries_are_alike():
    assert SEQUENCES.lengths(1) == (5, 7) and SEQUENCES.is_run(1, 64) is True
    assert SEQUENCES.every_query(2) == (2, 5, SEQUENCES)


def test_sums_of_gradients_have_rows_of_their_own_to_the_end_of_a_block():
    sums = torch.rand(2, 3, 8, 16)  # blocks of 8 rows
    assert sums[SEQUENCES.gradient_sum(1, 2, 7, 15)] == sums[1, 2, 7, 15]


def test_slices_give_the_region_between():
    queries, keys, sums = torch.rand(2, 5, 3, 8), torch.rand(2, 7, 1, 8), torch.rand(2, 3, 8, 16)
    rows, columns = slice(1, 4), slice(0, 6)
    assert torch.equal(queries[SEQUENCES.query(1, 2, rows, columns)], queries[1, 1:4, 2, :6])
    assert torch.equal(keys[SEQUENCES.key(1, 0, rows, columns)], keys[1, 1:4, 0, :6])
    assert torch.equal(sums[SEQUENCES.gradient_sum(1, 2, rows, columns)], sums[1, 2, 1:4, :6])


def packed(rows, keys, kind=PackedSequences, **more):
    """Entries one behind the other, of these (first, past) rows and keys."""
    spans = {
        "starts_q": [first for first, _ in rows], "ends_q": [past for _, past in rows],
        "starts_k": [first for first, _ in keys], "ends_k": [past for _, past in keys],
        **{name: x for name, x in more.items() if name == "page_table"},
    }  # fmt: skip
    sizes = {"B": len(rows), "total_q": 20, "total_k": 30, **more}
    return kind(sizes, spans, 30, INTS)


def test_packed_rows_follow_where_the_spans_say():
    sequences = packed([(0, 4), (4, 4), (6, 20)], [(0, 9), (9, 10), (10, 30)])
    queries, keys, lse = torch.rand(20, 3, 8), torch.rand(30, 1, 8), torch.rand(3, 20)
    assert [sequences.lengths(entry) for entry in range(3)] == [(4, 9), (0, 1), (14, 20)]
    assert queries[sequences.query(2, 1, 5, 3)] == queries[11, 1, 3]
    assert sequences.key(2, 0, 5, 3) == key_of_run(sequences.run(2, 4), 0, 1, 3)
    assert keys[sequences.key(2, 0, 5, 3)] == keys[15, 0, 3]
    assert lse[sequences.statistic(2, 1, 5)] == lse[1, 11]
    held = sequences.holding(sequences.span(2))
    assert held.lengths(0) == (14, 20) and held.query(0, 1, 5, 3) == (11, 1, 3)
    entries, rows, flat = sequences.every_query(3)
    assert (entries, rows) == (1, 20) and flat.statistic(0, 2, 19) == (2, 19)


@pytest.mark.parametrize(
    ("span", "length"), [((-5, 4), 4), ((18, 99), 2), ((50, 60), 0), ((9, 3), 0), ((-9, -2), 0)]
)
def test_packed_spans_are_clamped_to_the_tensor(span, length):
    sequences = packed([span], [(0, 0)])
    first, past, *_ = sequences.span(0)
    assert 0 <= first <= past <= 20 and sequences.lengths(0) == (length, 0)


def paged(table, page_size, keys):
    pages = max(max(row) for row in table) + 1
    sizes = {"pages": pages, "page_size": page_size, "most_pages": len(table[0])}
    return packed([(0, 1)] * len(keys), keys, PagedSequences, page_table=Table(table), **sizes)


class Table:
    """Rows of numbers, indexed as a matrix."""

    def __init__(self, rows):
        self.rows = rows

    def __getitem__(self, place):
        entry, column = place
        return self.rows[entry][column]


def test_paged_keys_are_looked_up():
    sequences = paged([[3, 0, 2], [1, 5, 4]], 4, [(0, 11), (2, 7)])
    keys = torch.rand(6, 4, 2, 8)
    assert sequences.lengths(0)[1] == 11 and sequences.lengths(1)[1] == 5
    assert sequences.key(0, 1, 9, 3) == (2, 1, 1, 3)
    assert keys[sequences.key(1, 1, 3, 3)] == keys[5, 1, 1, 3], "position 5: behind the left pad"
    assert key_of_run(sequences.run(0, 4), 1, 2, 3) == (0, 2, 1, 3)
    assert sequences.key(0, 1, slice(0, 9), 3) == (slice(0, 6), slice(0, 4), 1, 3)
    assert paged([[3]], 4, [(0, 9)]).lengths(0)[1] == 4, "no position past the last page"
    hostile = paged([[3, -7], [9, 2]], 4, [(0, 8), (0, 8)])
    hostile.sizes["pages"] = 3
    assert [hostile.key(0, 0, row, 0)[0] for row in (0, 4)] == [2, 0]


def test_runs_of_pages():
    assert paged([[0, 1]], 32, [(0, 64)]).is_run(0, 16)
    assert not paged([[0, 1]], 24, [(0, 48)]).is_run(0, 16)
    assert not paged([[0, 1]], 32, [(8, 64)]).is_run(0, 16), "they begin inside a block"


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=7),
    st.integers(1, 17),
    st.integers(1, 4),
)
def test_every_tile_has_a_slot_of_its_own(entries, block, each):
    """entries: rows between an entry and the one before it, and how many it has."""
    spans, end = [], 0
    for gap, length in entries:
        spans.append((end + gap, end + gap + length))
        end += gap + length
    sequences = packed(spans, spans)
    sequences.sizes.update(total_q=end + 2, total_k=end + 2)
    slots = sequences.query_slots(block, each)
    taken = set()
    for entry, (first, past) in enumerate(spans):
        for tile in range(-(-each * (past - first) // block)):
            slot = slots.begin(entry) + tile
            assert slot not in taken and 0 <= slot < slots.count
            assert slots.entry(slot) == entry
            taken.add(slot)
    assert slots.count <= each * (end + 2) // block + len(spans)
    wanted = (end + 2) // block + len(spans) if spans else 0
    assert sequences.key_slots(block).count == wanted
