"""Which weights dropout drops: published answers of Philox, shares, and independence of places."""

import itertools

import numpy as np
import pytest

from tvm_flash.problem.dropout import NUMPY, WORD, factor_of, kept, philox, threshold_of

# Counter, key and answer of Random123's known answers for Philox-4x32.
PI = ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0")
ANSWERS = [
    (7, ("00000000 " * 4, "00000000 " * 2), "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, ("ffffffff " * 4, "ffffffff " * 2), "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, PI, "4dfccaba 190a87f0 c47362ba b6b5242a"),
    (10, ("00000000 " * 4, "00000000 " * 2), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, ("ffffffff " * 4, "ffffffff " * 2), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
]

P, SIZES = 0.3, (2, 4, 256, 256)
# Deviations of a binomial share. A share that is off by 0.0041, or a correlation of 0.009, in the
# 524288 words here is found with a probability of 0.84 or more; of what is right one test in two
# million would fail, and these are the same words every time.
SIGMAS = 5.0


@pytest.mark.parametrize(("rounds", "given", "answer"), ANSWERS)
def test_philox(rounds, given, answer):
    counter, key = ([np.uint64(int(x, 16)) for x in words.split()] for words in given)
    found = [int(x) & WORD for x in philox(counter, key, rounds, NUMPY)]
    assert found == [int(x, 16) for x in answer.split()]


def words(rng=(1, 2)):
    """Centred: 1 - p where a weight is dropped, -p where it is kept, so that the mean is 0."""
    return np.where(kept(P, rng, SIZES), -P, 1 - P)


def deviations(products, spread):
    """The mean in units of its own standard deviation, where ``products`` are independent."""
    return abs(products.mean()) / (spread / np.sqrt(products.size))


@pytest.mark.parametrize("rng", [(0, 0), (1, 2), (-1, 2**62), (2**40, -(2**33))])
def test_share(rng):
    found = words(rng)
    assert deviations(found, np.sqrt(P * (1 - P))) < SIGMAS
    for axes in ((0, 1), (2, 3)):  # each place over all heads, each head over all places
        means = found.mean(axes) * np.sqrt(np.prod([SIZES[n] for n in axes]) / (P * (1 - P)))
        assert np.abs(means).max() < 6.5


STEPS = [
    step for step in itertools.product((0, 1), (0, 1), (0, 1, 8, 16), (0, 1, 8, 16)) if any(step)
]


def test_places_are_independent():
    """Neighbours, the words of one square, heads and entries are uncorrelated."""
    found, spread = words(), P * (1 - P)
    for step in STEPS:
        first = tuple(slice(0, n - x) for n, x in zip(SIZES, step, strict=True))
        second = tuple(slice(x, n) for n, x in zip(SIZES, step, strict=True))
        assert deviations(found[first] * found[second], spread) < SIGMAS, step


def test_seeds_and_offsets_are_independent():
    spread, first = P * (1 - P), words((5, 7))
    for other in ((6, 7), (5, 8), (7, 5), (5 + 2**32, 7), (5, 7 + 2**32)):
        assert deviations(first * words(other), spread) < SIGMAS, other


def test_more_is_dropped_of_the_same_words():
    masks = [kept(p, (3, 4), (1, 2, 40, 50)) for p in (2.0**-33, 0.1, 0.5, 0.9, 1 - 2.0**-24)]
    assert masks[0].all() and masks[-1].sum() <= 1
    assert all((less >= more).all() for less, more in itertools.pairwise(masks))


def test_numbers():
    assert (threshold_of(0.5), factor_of(0.5)) == (2**31, 2.0)
    assert factor_of(0.75) == 4.0 and threshold_of(1 - 2.0**-24) < 2**32
