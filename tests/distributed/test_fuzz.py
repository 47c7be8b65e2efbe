"""Calls drawn at random that ranks share are those of one process: the error rule on each."""

import pytest

# How many ranks share a call, where there are two processes, and where there are four.
PAIR, FOUR = (1, 2), (1, 2, 3, 4)


def assert_right(group, *arguments):
    for complaints in group.run("rank_fuzz.complaints", *arguments):
        assert not complaints, "\n".join(complaints)


def test_drawn_calls(pair):
    assert_right(pair, range(24), PAIR, True)


@pytest.mark.sweep
@pytest.mark.parametrize("part", range(10))
def test_more_drawn_calls(four, part):
    assert_right(four, range(part * 100, part * 100 + 100), FOUR)
