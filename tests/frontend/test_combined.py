"""Features at once: dropout, tables that learn, block masks, kinds of softmax, packed sequences."""

import pytest
from combined import Combined, pairs

SHORT = [
    Combined(True, "bk", True, "sink", kv_heads=1),
    pytest.param(
        Combined(True, "bhqk", softmax="sink", packed=True), marks=pytest.mark.sweep, id="packed"
    ),
]


@pytest.mark.parametrize("problem", SHORT, ids=str)
def test_few(problem):
    problem.check()


@pytest.mark.sweep
@pytest.mark.parametrize("problem", pairs(("float32",)), ids=str)
def test_all_pairs(problem):
    problem.check()
