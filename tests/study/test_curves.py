"""Regret over trials and seconds, and its summaries: against brute force and combinatorics."""

import statistics

import numpy as np
import pytest

from tvm_flash.study.search.curves import (
    Curves,
    curves,
    expected_random,
    over_seconds,
    starts_of,
    summaries,
    wins,
)
from tvm_flash.study.search.run import Budget, Run, study


def test_curves_are_those_of_brute_force(small):
    runs = list(study(small, ["random", "grid"], range(3), Budget(7, 2)))
    found = curves(small, runs, 7)
    for run in runs:
        row = run.seed
        best, spent = small.seconds[run.start], small.measured[run.start].cost
        assert found[run.strategy].best[row, 0] == best
        for trial, point in enumerate(run.points, 1):
            best = min(best, small.seconds[point] or best)
            spent += small.measured[point].cost
            assert found[run.strategy].best[row, trial] == best
            assert found[run.strategy].spent[row, trial] == pytest.approx(spent)
    assert any(small.seconds[point] is None for run in runs for point in run.points)


def test_a_search_that_gives_up_keeps_what_it_has(small):
    good = [p for p, s in small.seconds.items() if s is not None and p != small.start]
    runs = [Run("short", 0, small.start, (good[0],)), Run("long", 0, small.start, tuple(good))]
    found = curves(small, runs, len(good))
    assert (found["short"].best[0, 1:] == found["short"].best[0, 1]).all()
    assert (found["short"].spent[0, 1:] == found["short"].spent[0, 1]).all()
    by_name = {summary.strategy: summary for summary in summaries(found)}
    assert by_name["short"].area_seconds[0] == pytest.approx(found["short"].regret[0, 0])


def test_where_nobody_gets_beyond_the_start_the_area_is_that_of_the_start():
    """Seeds start at points of different cost: the shortest run ends before another's start."""
    best, spent = np.array([[1.5, 1.5], [2.0, 2.0]]), np.array([[1.0, 1.0], [3.0, 3.0]])
    (summed,) = summaries({"idle": Curves("idle", best, spent, 1.0, np.zeros(2))})
    assert summed.area_seconds[1:] == pytest.approx(np.quantile([0.5, 1.0], (0.25, 0.75)))


def test_random_search_is_what_combinatorics_says(table):
    trials = 20
    runs = list(study(table, ["random"], range(400), Budget(trials)))
    regret = curves(table, runs, trials)["random"].regret
    expected = expected_random(table, starts_of(runs), trials)
    error = regret.std(axis=0) / len(regret) ** 0.5
    assert (np.abs(regret.mean(axis=0) - expected) <= 4 * error + 1e-12).all()
    assert expected_random(table, [table.start], len(table.measured) - 1)[-1] == 0


def test_summaries_on_curves_made_by_hand():
    best = np.array([[2.0, 1.5, 1.04, 1.0], [2.0, 2.0, 1.2, 1.2], [2.0, 1.0, 1.0, 1.0]])
    spent = np.array([[1.0, 2, 3, 4]] * 3)
    own = Curves("own", best, spent, 1.0, np.array([1.0, 2, 6]))
    worse = Curves("worse", best + 0.1, spent, 1.0, np.array([1.0, 2, 6]))
    summed = {summary.strategy: summary for summary in summaries({"worse": worse, "own": own})}
    assert list(summed) == ["own", "worse"]
    one = summed["own"]
    assert one.final == pytest.approx((0, 0, 0.1)) and one.thinking == 2
    assert one.area[0] == pytest.approx(statistics.median([0.54 / 3, 1.4 / 3, 0]))
    # The start holds from its measurement to the next trial's end: mean of the first three.
    assert one.area_seconds[0] == pytest.approx(statistics.median([1.54 / 3, 2.2 / 3, 1 / 3]))
    assert one.reached == {"1%": pytest.approx(2 / 3), "5%": pytest.approx(2 / 3)}
    assert one.trials_to == {"1%": 3.0, "5%": 2.0}
    assert summed["worse"].trials_to == {"1%": np.inf, "5%": np.inf}
    assert one.confidence[0] <= one.final[0] <= one.confidence[1] <= 0.2 + 1e-12
    assert wins(own, worse) == (3, 0, pytest.approx(0.25)) and wins(own, own) == (0, 0, 1.0)
    times = np.array([0.5, 1.0, 2.5, 9.0])
    assert over_seconds(own, times)[0].tolist() == [np.inf, 1.0, 0.5, 0.0]
