"""Features at once: dropout, tables that learn, block masks, kinds of softmax, packed sequences."""

import pytest
from combined import Combined, pairs

SHORT = [
    Combined(True, "bk", True, "sink", kv_heads=1),
    Combined(True, "bhqk", softmax="sink", packed=True),
]


@pytest.mark.parametrize("problem", SHORT, ids=str)
def test_few(problem):
    problem.check()


@pytest.mark.sweep
@pytest.mark.parametrize("problem", pairs(("float32",)), ids=str)
def test_all_pairs(problem):
    problem.check()
