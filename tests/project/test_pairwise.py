"""What the tests run in place of a whole grid holds every pair of its values."""

from itertools import combinations

import pytest
from pairwise import cover, grid


def pairs(values):
    return set(combinations(enumerate(values), 2))


@pytest.mark.parametrize("sizes", [(2, 2), (4, 2, 2), (3, 6, 2), (5, 3, 5, 3)], ids=str)
def test_every_pair_of_a_grid_is_met_without_the_sweep(sizes):
    axes = [[f"{axis}{n}" for n in range(size)] for axis, size in zip("abcd", sizes, strict=False)]
    points = grid(", ".join("abcd"[: len(sizes)]), *axes).args[1]
    few = [point.values for point in points if not point.marks]
    assert len({point.values for point in points}) == len(points)
    assert set().union(*map(pairs, few)) == set().union(*(pairs(p.values) for p in points))
    # As few as the two longest axes allow, or nearly.
    longest, next_longest = sorted(sizes)[:-3:-1]
    assert len(few) <= 1.5 * longest * next_longest


def test_a_cover_of_a_list_holds_its_pairs_and_no_others():
    members = ["ab", "aB", "Ab", "ab"]
    assert cover(members, lambda word: dict(enumerate(word))) == ["ab", "aB", "Ab"]
