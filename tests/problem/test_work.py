"""Workers share a problem without gaps or overlaps, on ints and on TIR expressions."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tvm import sym, tirx

from tvm_flash.definition.arithmetic import TIR
from tvm_flash.problem.work import Work

extents = st.integers(1, 5)


@given(st.tuples(extents, extents, extents), st.permutations(["entry", "head", "tile"]))
def test_every_place_is_taken_once_the_last_axis_fastest(sizes, names):
    work = Work(dict(zip(names, sizes, strict=True)))
    places = [work.place(n) for n in range(work.count)]
    assert [tuple(place[name] for name in names) for place in places] == list(
        product(*map(range, sizes))
    )
    assert work.places() == places


def test_the_longest_share_of_a_head_goes_first():
    work = Work({"entry": 2, "head": 3, "tile": 4}, last_first=True)
    assert [work.place(n)["tile"] for n in range(5)] == [3, 2, 1, 0, 3]
    assert work.place(work.count - 1) == {"entry": 1, "head": 2, "tile": 0}


def test_no_worker_without_work():
    assert Work({"entry": 2, "head": 0, "tile": 4}).count == 0


@pytest.mark.parametrize("last_first", [False, True])
def test_expressions_say_what_ints_say(last_first):
    sizes = {"entry": 2, "part": 3, "tile": 5, "head": 4}
    names = {name: tirx.Var(name, "int64") for name in (*sizes, "worker")}
    axes = {name: names[name] for name in sizes}
    plain, made = Work(sizes, last_first), Work(axes, last_first, TIR)
    for worker in range(0, plain.count, 7):
        analyzer = sym.Analyzer()
        for name, value in {**sizes, "worker": worker}.items():
            analyzer.bind(names[name], tirx.const(value, "int64"))
        found = {k: int(analyzer.simplify(v)) for k, v in made.place(names["worker"]).items()}
        assert found == plain.place(worker)
