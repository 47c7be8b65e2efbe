"""Points as MetaSchedule's traces: there and back, refused, changed, scored and stored."""

import json
import math
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import search_toys
from hypothesis import given, settings
from hypothesis import strategies as st
from search_toys import KNOBS, SPACE, refused, run, seconds, task, trial

from tvm_flash.errors import TvmFlashError
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.space import Knob, Space
from tvm_flash.tune.cost_models import cost_model
from tvm_flash.tune.metaschedule.context import tune_context
from tvm_flash.tune.metaschedule.database import RECORDS, WORKLOADS, MetaScheduleDatabase
from tvm_flash.tune.metaschedule.knobs import KnobFunction
from tvm_flash.tune.metaschedule.models import Learner, metaschedule_cost_model
from tvm_flash.tune.metaschedule.rules import categorical_mutator, only_valid

ms = pytest.importorskip("tvm.s_tir.meta_schedule")

FUNCTION = KnobFunction(SPACE, {"spec": "toy"})
ANY_POINT = st.tuples(*(st.sampled_from(knob.values) for knob in KNOBS))


def mutated(mutator, trace):
    return ms.mutator.Mutator.apply(mutator, trace)


@given(ANY_POINT)
@settings(deadline=None, max_examples=40)
def test_a_point_is_a_trace_and_back(point):
    trace = FUNCTION.trace(point)
    assert FUNCTION.point(trace) == point
    block = FUNCTION.schedule(point).mod["main"].body.block
    known = {name: int(value) for name, value in block.annotations.items()}
    assert known["block_q"] == point[0] and known["stages"] == point[2]
    assert SPACE.knobs[4].values[known["order"]] == point[4], "text goes by its place"


def test_a_value_that_no_knob_lists_has_no_trace():
    assert FUNCTION.trace((3, *SPACE.points[0][1:])) is None


def test_random_schedules_take_every_value():
    from tvm.s_tir import Schedule

    points = [
        FUNCTION.point(FUNCTION.sample(Schedule(FUNCTION.mod, seed=seed + 1)).trace)
        for seed in range(200)
    ]
    for place, knob in enumerate(KNOBS):
        assert {point[place] for point in points} == set(knob.values)


def test_tasks_and_spaces_are_different_workloads():
    from tvm_ffi import structural_equal

    assert structural_equal(KnobFunction(SPACE, {"spec": "toy"}).mod, FUNCTION.mod)
    other = SPACE.restricted({"block_q": [1, 2]})
    for different in (KnobFunction(SPACE, {"spec": "other"}), KnobFunction(other, {"spec": "toy"})):
        assert not structural_equal(different.mod, FUNCTION.mod)


@given(ANY_POINT)
@settings(deadline=None, max_examples=30)
def test_what_the_space_refuses_is_refused_before_any_build(point):
    accepted = ms.postproc.Postproc.apply(only_valid(FUNCTION), FUNCTION.schedule(point))
    assert accepted is (not refused(SPACE.config(point))) is (point in SPACE)


@given(ANY_POINT, st.integers(0, 2**31))
@settings(deadline=None, max_examples=40)
def test_the_mutator_changes_one_knob(point, seed):
    found = FUNCTION.point(mutated(categorical_mutator(FUNCTION, seed), FUNCTION.trace(point)))
    changed = [n for n, pair in enumerate(zip(point, found, strict=True)) if len({*pair}) == 2]
    assert len(changed) == 1
    assert all(value in knob.values for knob, value in zip(KNOBS, found, strict=True))
    again = FUNCTION.point(mutated(categorical_mutator(FUNCTION, seed), FUNCTION.trace(point)))
    assert again == found, "the seed decides"


def test_the_mutator_prefers_neighbours_of_numbers_and_reaches_everything():
    mutator, steps, places = categorical_mutator(FUNCTION, 1), Counter(), Counter()
    start = (1, 2, 0, 16, "kq", False)
    for _ in range(1500):
        found = FUNCTION.point(mutated(mutator, FUNCTION.trace(start)))
        places.update(
            n for n, pair in enumerate(zip(start, found, strict=True)) if len({*pair}) > 1
        )
        steps[KNOBS[0].values.index(found[0])] += 1
    assert min(places[n] for n in range(6)) > 150, "no knob is forgotten"
    assert steps[1] > 2 * steps[5] > 0
    trace, seen = FUNCTION.trace(start), set()
    for _ in range(2):
        trace = mutated(mutator, trace)
    for _ in range(300):
        trace = mutated(mutator, trace)
        seen.update(FUNCTION.point(trace))
    assert seen >= {value for knob in KNOBS for value in knob.values}


def test_a_space_without_a_choice_has_no_mutation():
    fixed = SPACE.restricted({knob.name: knob.values[:1] for knob in KNOBS})
    function = KnobFunction(fixed)
    assert mutated(categorical_mutator(function, 1), function.trace(fixed.points[0])) is None


@pytest.mark.parametrize("name", ["xgb", "mlp"])
def test_metaschedule_asks_our_cost_models(name):
    model = metaschedule_cost_model(FUNCTION, Learner(SPACE, cost_model(name, 0)))
    context = tune_context(FUNCTION.mod, "llvm")
    drawn = random.Random(5).sample(SPACE.points, 150)

    def candidates(points):
        schedules = map(FUNCTION.schedule, points)
        return [ms.search_strategy.MeasureCandidate(schedule, []) for schedule in schedules]

    def results(points):
        times = map(seconds, points)
        return [ms.runner.RunnerResult([t] if t else None, None if t else "none") for t in times]

    ask, update = ms.cost_model.CostModel.predict, ms.cost_model.CostModel.update
    assert not ask(model, context, candidates(drawn[:3])).any(), "before it knows anything"
    update(model, context, candidates(drawn[:100]), results(drawn[:100]))
    scores = ask(model, context, candidates(drawn[100:]))
    times = np.array([seconds(point) or math.inf for point in drawn[100:]])
    fastest, best = np.argsort(times)[:10], np.argsort(-scores)[:10]
    assert len({*fastest} & {*best}) >= 4, "two would be luck"


def test_the_database_is_metaschedules_own(tmp_path):
    database = MetaScheduleDatabase(tmp_path / "db", task())
    drawn = random.Random(2).sample(SPACE.points, 40)
    for point in drawn:
        database.record(point, trial(point))
    database.record((3, *drawn[0][1:]), trial(drawn[0]))  # off the knobs

    read = ms.database.JSONDatabase(work_dir=str(tmp_path / "db"))
    assert len(read) == 40
    workload = read.commit_workload(database.knobs.mod)
    top = [database.knobs.point(record.trace) for record in read.get_top_k(workload, 3)]
    assert top == sorted(drawn, key=lambda point: seconds(point) or math.inf)[:3]
    failed = [r for r in read.get_all_tuning_records() if float(r.run_secs[0]) == 1e10]
    assert {database.knobs.point(r.trace) for r in failed} == {p for p in drawn if not seconds(p)}
    target = read.get_top_k(workload, 1)[0].target
    best = read.query_tuning_record(database.knobs.mod, target, "main")
    assert database.knobs.point(best.trace) == top[0] and "x86-64-v4" in str(target)


def test_searches_of_two_tasks_share_a_database(tmp_path):
    other = SPACE.restricted({"lanes": [16, 32]})
    first, second = (MetaScheduleDatabase(tmp_path, task(space)) for space in (SPACE, other))
    for point in other.points[:5]:
        first.record(point, trial(point))
        second.record(point, trial(point))
    again = MetaScheduleDatabase(tmp_path, task())
    again.record(SPACE.points[9], trial(SPACE.points[9]))
    read = ms.database.JSONDatabase(work_dir=str(tmp_path))
    counts = [
        len(read.get_top_k(read.commit_workload(database.knobs.mod), 99))
        for database in (first, second)
    ]
    assert counts == [6, 5] and len((tmp_path / WORKLOADS).read_text().splitlines()) == 2


def test_lines_that_a_crash_cut_off_cost_only_themselves(tmp_path, caplog):
    first = MetaScheduleDatabase(tmp_path, task())
    for point in SPACE.points[:3]:
        first.record(point, trial(point))
    whole = (tmp_path / RECORDS).read_text()
    (tmp_path / RECORDS).write_text(whole + whole.splitlines()[0][:77])
    MetaScheduleDatabase(tmp_path, task()).record(SPACE.points[3], trial(SPACE.points[3]))
    assert "1 lines are broken" in caplog.text
    assert len((tmp_path / f"{RECORDS}.broken1").read_text().splitlines()) == 4
    assert len(ms.database.JSONDatabase(work_dir=str(tmp_path))) == 4


def test_a_broken_workload_sets_the_records_aside(tmp_path, caplog):
    MetaScheduleDatabase(tmp_path, task()).record(SPACE.points[0], trial(SPACE.points[0]))
    (tmp_path / WORKLOADS).write_text('["12')
    MetaScheduleDatabase(tmp_path, task())
    assert len(ms.database.JSONDatabase(work_dir=str(tmp_path))) == 0
    assert (tmp_path / f"{RECORDS}.broken1").is_file() and "broken" in caplog.text


def test_a_folder_that_cannot_be_a_database_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TvmFlashError, match="file/db: MetaSchedule's database cannot be used"):
        MetaScheduleDatabase(tmp_path / "file" / "db", task())


def test_a_record_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    database = MetaScheduleDatabase(tmp_path, task())
    (tmp_path / RECORDS).unlink(missing_ok=True)
    (tmp_path / RECORDS).mkdir()
    database.record(SPACE.points[0], trial(SPACE.points[0]))
    assert "cannot be used" in caplog.text


def real_space(dialect):
    from tvm_flash.schedules.cuda.arch import ARCHS
    from tvm_flash.schedules.cuda.space import cuda_space
    from tvm_flash.schedules.select import space_of
    from tvm_flash.schedules.target import cpu_target

    spec = AttentionSpec(dtype="bfloat16", head_dim=64)
    if dialect == "cuda":
        return cuda_space(spec, "forward", ARCHS["sm_80"])
    return space_of(spec, "forward", cpu_target("x86-64-v4"), "decode")


@pytest.mark.parametrize("dialect", ["s_tir", "cuda"])
def test_spaces_of_both_dialects_are_searched_alike(dialect):
    space = real_space(dialect)
    start = space.point(space.start)
    function = KnobFunction(space)
    assert function.point(function.trace(start)) == start
    for name in ("evolutionary", "replay"):
        points, _ = run(name, budget=16, space=space, measure=lambda point: 1.0 + hash(point) % 9)
        assert len({*points}) == 16 and all(point in space for point in points)


@pytest.mark.slow
def test_processes_record_into_one_database(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from search_toys import SPACE, task, trial\n"
        "from tvm_flash.tune.metaschedule.database import MetaScheduleDatabase\n"
        "database = MetaScheduleDatabase(Path(sys.argv[2]), task())\n"
        "for point in SPACE.points[int(sys.argv[3])::9][:40]:\n"
        "    database.record(point, trial(point))\n"
    )
    command = [sys.executable, "-c", code, str(Path(search_toys.__file__).parent), str(tmp_path)]
    running = [subprocess.Popen([*command, str(n)]) for n in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    read = ms.database.JSONDatabase(work_dir=str(tmp_path))
    found = {FUNCTION.point(record.trace) for record in read.get_all_tuning_records()}
    assert len(read) == 80 and found == {p for n in range(2) for p in SPACE.points[n::9][:40]}


def test_large_spaces_with_few_valid_points_are_searched():
    knobs = [Knob(name, tuple(2**n for n in range(10)), "") for name in ("block_q", "block_k")]
    knobs += [Knob("stages", tuple(range(10)), ""), Knob("lanes", tuple(range(1, 11)), "")]

    def narrow(config):
        return [] if config.block_q == 2 * config.block_k and config.stages < 2 else ["no"]

    space = Space.around(SPACE.config((4, 2, 1, 1, "qk", False)), knobs, narrow)
    assert len(space.points) < space.size / 40
    for name in ("evolutionary", "replay"):
        points, _ = run(name, budget=40, space=space, measure=lambda point: 1.0 + point[3])
        assert len({*points}) == 40 and all(point in space for point in points)


@pytest.mark.slow
def test_another_process_proposes_the_same():
    names = ["xgb", "replay"]
    code = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); from search_toys import run\n"
        f"print(json.dumps([run(name, seed=9, budget=32)[0] for name in {names}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(search_toys.__file__).parent)],
        env={"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"},
        **{"capture_output": True, "text": True, "check": True},
    )
    found = [list(map(tuple, points)) for points in json.loads(done.stdout)]
    assert found == [run(name, seed=9, budget=32)[0] for name in names]
