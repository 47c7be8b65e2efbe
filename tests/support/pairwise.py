"""Few members of a list in which every pair of values that the list holds still occurs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import combinations, product
from typing import TypeVar

import pytest

Member = TypeVar("Member")


def cover(
    members: Sequence[Member], factors: Callable[[Member], Mapping[str, Hashable]]
) -> list[Member]:
    """Members that hold every pair of values which occurs in ``members``, in their order.

    factors: the values of a member by name; a pair is two values under two names. Greedy: the
    member with most pairs not met yet is next, the first of equals; equal lists have equal covers.
    """
    held = [set(combinations(factors(member).items(), 2)) for member in members]
    missing, chosen = set().union(*held), set()
    while missing:
        best = max(range(len(members)), key=lambda n: len(held[n] & missing))
        missing -= held[best]
        chosen.add(best)
    return [members[n] for n in sorted(chosen)]


def grid(names: str, *axes: Sequence, **options):
    """``pytest.mark.parametrize`` over the product of ``axes``, one for each of ``names``.

    Points beyond a pairwise cover of them are for `pytest -m sweep`.
    """
    numbers = list(product(*(range(len(axis)) for axis in axes)))
    few = set(cover(numbers, lambda point: {str(axis): n for axis, n in enumerate(point)}))
    points = [
        pytest.param(
            *(axis[n] for axis, n in zip(axes, point, strict=True)),
            marks=[] if point in few else [pytest.mark.sweep],
        )
        for point in numbers
    ]
    return pytest.mark.parametrize(names, points, **options)
