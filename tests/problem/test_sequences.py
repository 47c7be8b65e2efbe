"""Where rows lie: an index gives the element that torch's own indexing gives."""

import torch

from tvm_flash.problem.sequences import DenseSequences

SEQUENCES = DenseSequences(5, 7)


def test_dense_rows_are_found_in_tensors_of_the_public_layout():
    queries, keys = torch.rand(2, 5, 3, 8), torch.rand(2, 7, 1, 8)
    statistic = torch.rand(2, 3, 5)
    for entry in range(2):
        of_head = queries[entry, :, 2]
        assert queries[SEQUENCES.query(entry, 2, 4, 6)] == of_head[4, 6]
        assert keys[SEQUENCES.key(entry, 0, 6, 1)] == keys[entry, :, 0][6, 1]
        assert keys[SEQUENCES.key_of_run(entry, 0, 4, 2, 1)] == keys[entry, :, 0][6, 1]
        assert statistic[SEQUENCES.statistic(entry, 2, 4)] == statistic[entry, 2][4]


def test_entries_are_as_long_as_the_longest():
    assert SEQUENCES.longest == SEQUENCES.lengths(1) == (5, 7)
    assert all(SEQUENCES.has_query(1, row) for row in range(SEQUENCES.longest[0]))


def test_sums_of_gradients_have_rows_of_their_own_to_the_end_of_a_block():
    sums = torch.rand(2, 3, 8, 16)  # blocks of 8 rows
    assert sums[SEQUENCES.gradient_sum(1, 2, 7, 15)] == sums[1, 2, 7, 15]


def test_slices_give_the_region_between():
    queries, keys, sums = torch.rand(2, 5, 3, 8), torch.rand(2, 7, 1, 8), torch.rand(2, 3, 8, 16)
    rows, columns = slice(1, 4), slice(0, 6)
    assert torch.equal(queries[SEQUENCES.query(1, 2, rows, columns)], queries[1, 1:4, 2, :6])
    assert torch.equal(keys[SEQUENCES.key(1, 0, rows, columns)], keys[1, 1:4, 0, :6])
    assert torch.equal(sums[SEQUENCES.gradient_sum(1, 2, rows, columns)], sums[1, 2, 1:4, :6])
