"""Searches on a replay table: what a strategy is told, where it starts, what it may propose."""

import itertools

import pytest
from replay_tables import write_table

from tvm_flash.study.search.curves import curves
from tvm_flash.study.search.run import Budget, replay, study
from tvm_flash.tune.strategy import ProposalRefused


def scripted(*batches):
    """A strategy that proposes ``batches`` whatever happens."""

    class Scripted:
        def __init__(self, task, seed):
            self.left = list(batches)

        def propose(self, count):
            return self.left.pop(0) if self.left else []

        def observe(self, observations):
            pass

    return Scripted


def test_a_run_is_told_the_start_and_then_all_that_it_asked_for(small):
    seen = []

    class Recording(scripted(list(small.measured)[:3], list(small.measured)[3:5])):
        def observe(self, observations):
            seen.append(list(observations))

    run = replay(small, "recording", 0, Budget(10, 3, "default"), Recording)
    assert [len(batch) for batch in seen] == [1, 3, 2]
    assert seen[0][0] == (small.start, small.seconds[small.start])
    told = list(itertools.chain(*seen[1:]))
    assert [point for point, _ in told] == list(run.points) == list(small.measured)[:5]
    assert all(seconds == small.seconds[point] for point, seconds in told)
    assert run.thinking > 0


@pytest.mark.parametrize("name", ["random", "grid"])
def test_a_budget_of_all_points_finds_the_best(table, name):
    run = replay(table, name, 1, Budget(10**6).within(table))
    (found,) = curves(table, [run], len(table.measured)).values()
    assert found.regret[0, -1] == 0 and len(set(run.points)) == len(run.points)


def test_all_strategies_of_a_seed_start_where_the_seed_says(table):
    runs = list(study(table, ["random", "grid"], range(8), Budget(1)))
    by_seed = [{run.start for run in runs if run.seed == seed} for seed in range(8)]
    assert all(len(starts) == 1 for starts in by_seed) and len(set.union(*by_seed)) > 4
    assert all(table.seconds[start] is not None for starts in by_seed for start in starts)
    fixed = study(table, ["random"], range(3), Budget(1, start="default"))
    assert {run.start for run in fixed} == {table.start}


BREACHES = {
    "a point outside": ([(7, 7, 7)], "not in the space"),
    "a point twice": ([(64, 2, 2), (64, 2, 2)], "twice"),
    "nothing at all": (None, "gave None, which is no list of points"),
    "no points": ([64], "no list of points"),
    "too many": ([(64, 2, 2), (64, 2, 4), (64, 4, 2)], r"mine.propose\(2\) gave 3 points"),
}


@pytest.mark.parametrize("batch, message", BREACHES.values(), ids=BREACHES)
def test_a_breach_of_the_protocol_is_named(small, batch, message):
    with pytest.raises(ProposalRefused, match=message):
        replay(small, "mine", 0, Budget(10, 2), scripted(batch))
    with pytest.raises(ProposalRefused, match="twice"):
        replay(small, "mine", 0, Budget(10, 2), scripted([(64, 2, 2)], [(64, 2, 2)]))


@pytest.mark.slow
def test_several_processes_change_nothing(table, tmp_path):
    path = tmp_path / "t.jsonl.gz"
    write_table(path)
    one, two = (list(study(path, ["random", "grid"], range(2), Budget(9), jobs)) for jobs in (1, 2))
    assert one == two == list(study(table, ["random", "grid"], range(2), Budget(9)))
