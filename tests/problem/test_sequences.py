"""Where rows lie: an index gives the element that torch's own indexing gives."""

import torch

from tvm_flash.problem.sequences import DenseSequences


def test_dense_rows_are_found_in_tensors_of_the_public_layout():
    queries, keys = torch.rand(2, 5, 3, 8), torch.rand(2, 7, 1, 8)
    statistic, sequences = torch.rand(2, 3, 5), DenseSequences(5, 7)
    assert sequences.lengths(1) == (5, 7)
    for entry in range(2):
        of_head = queries[entry, :, 2]
        assert queries[sequences.query(entry, 2, 4, 6)] == of_head[4, 6]
        assert keys[sequences.key(entry, 0, 6, 1)] == keys[entry, :, 0][6, 1]
        assert statistic[sequences.statistic(entry, 2, 4)] == statistic[entry, 2][4]
