"""Strategies: deterministic, valid, each point once, until none is left; guided ones find more."""

import math
import re
import statistics
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import pytest
from search_toys import SMALL, SPACE, run, seconds, task

from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.cuda.arch import ARCHS
from tvm_flash.schedules.cuda.space import cuda_space
from tvm_flash.schedules.select import space_of
from tvm_flash.schedules.target import cpu_target
from tvm_flash.tune.sizes import sizes_of
from tvm_flash.tune.strategies import analytical
from tvm_flash.tune.strategy import (
    STRATEGIES,
    default_strategy,
    make_strategy,
    strategy_class,
    strategy_name,
)
from tvm_flash.tune.trial import Observation, SearchTask

NAMES = list(STRATEGIES)
START = SPACE.point(SPACE.start)


def predicted(point):
    """A model that is wrong by a factor and knows nothing of three knobs."""
    block_q, block_k, stages, *_ = point
    rows, columns = math.log2(block_q / 4), math.log2(block_k / 8)
    return 4e-4 * (1 + 0.2 * rows**2 + 0.06 * abs(columns) + 0.02 * stages)


@pytest.fixture(autouse=True)
def fake_predictor(monkeypatch):
    monkeypatch.setattr(analytical, "predictor_of", lambda task: predicted)


@pytest.mark.parametrize("name", NAMES)
def test_proposals_are_valid_and_each_once_and_repeat(name):
    points, _ = run(name, seed=3, budget=32)
    assert len(points) == 32 == len(set(points))
    assert all(point in SPACE for point in points)
    assert START not in points, "the start is known"
    assert run(name, seed=3, budget=32)[0] == points


@pytest.mark.parametrize("name", sorted({*NAMES} - {"analytical"}))
def test_seeds_differ(name):
    assert run(name, seed=1, budget=16)[0] != run(name, seed=2, budget=16)[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 7])
def test_a_small_space_is_searched_to_its_end(name, batch):
    start = SMALL.point(SMALL.start)
    assert start not in SMALL, "a search may begin outside of what it searches"
    points, best = run(name, budget=1000, batch=batch, space=SMALL)
    assert sorted(points) == sorted(SMALL.points)
    assert best[-1] == min(filter(None, map(seconds, [start, *SMALL.points])))


@pytest.mark.parametrize("name", NAMES)
def test_points_that_fail_are_lived_with(name):
    def mostly_failing(point):
        return seconds(point) if point == START or crc32(repr(point).encode()) % 5 == 0 else None

    points, best = run(name, budget=32, measure=mostly_failing)
    assert len(set(points)) == 32 and math.isfinite(best[-1])
    assert len(run(name, budget=16, measure=lambda point: None)[0]) == 16


@pytest.mark.parametrize("name", NAMES)
def test_batches_of_any_size_and_points_from_elsewhere(name):
    strategy = make_strategy(name, task(), 5)
    elsewhere = SPACE.points[::97]
    strategy.observe([Observation(point, seconds(point)) for point in elsewhere])
    points = []
    for count in (3, 1, 10, 2):
        proposed = list(strategy.propose(count))
        assert 0 < len(proposed) <= count
        points += proposed
        # Half of them, and late: others are still being measured.
        strategy.observe([Observation(point, seconds(point)) for point in points[::2][-3:]])
    assert len(points) == len(set(points)) and not {*points} & {*elsewhere}


@pytest.fixture(scope="module")
def shortfall():
    """name -> how much slower than the optimum the best of 64 points is, over seeds."""
    optimum = min(filter(None, map(seconds, SPACE.points)))

    def of(name, seeds=range(4)):
        return statistics.mean(run(name, s, budget=64)[1][-1] for s in seeds) / optimum - 1

    return of


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["coordinate", "xgb", "mlp", "ranked-xgb", "ranked-mlp", "analytical-measured"]
)
def test_guided_searches_find_more_than_random_ones(name, shortfall):
    assert shortfall(name) < 0.6 * shortfall("random", range(20))


@pytest.mark.slow
def test_mutation_of_the_best_finds_more_than_random(shortfall):
    assert shortfall("evolutionary", range(6)) < shortfall("random", range(20))


def test_the_analytical_order_is_that_of_the_prediction():
    points, _ = run("analytical", budget=100)
    times = [predicted(point) for point in points]
    assert times == sorted(times)
    left = {*SPACE.points} - {*points, START}
    assert max(times) <= min(map(predicted, left))


def test_measurements_correct_the_analytical_order():
    corrected = [run("analytical-measured", seed, budget=48)[1][-1] for seed in range(3)]
    assert max(corrected) < run("analytical", budget=48)[1][-1]


def test_the_first_points_of_the_corrected_order_are_mostly_those_of_the_prediction():
    alone = set(run("analytical", budget=24)[0])
    assert len(alone & {*run("analytical-measured", seed=1, budget=3)[0]}) >= 2


def test_the_default_is_what_the_study_found_best_where_a_model_serves():
    spec = AttentionSpec(dtype="bfloat16", head_dim=64)
    space = space_of(spec, "forward", cpu_target("x86-64-v3"), "long")
    known = SearchTask(space, spec, "forward", "x86-64-v3", sizes_of("forward", "long"))
    assert default_strategy(known) == "analytical-measured"
    gpus = {name: cuda_space(spec, "forward", ARCHS[name]) for name in ("sm_90", "sm_100")}
    gpu = {name: replace(known, space=space, target=name) for name, space in gpus.items()}
    assert default_strategy(gpu["sm_90"]) == "analytical-measured"
    assert default_strategy(gpu["sm_100"]) == "mlp", "no numbers are published"
    assert default_strategy(task()) == "mlp", "a schedule of no model"


@pytest.mark.parametrize("name", ["ranked-xgb", "analytical-measured"])
def test_of_a_large_space_a_sample_is_scored(name, monkeypatch):
    monkeypatch.setattr(strategy_class(name), "most", 40)
    strategy = make_strategy(name, task(), 0)
    found = []
    while points := strategy.propose(8):
        found += points
        strategy.observe([Observation(point, seconds(point)) for point in points])
    assert len(found) == len(set(found)) and len(strategy._points) == 40
    assert set(strategy._points) <= set(found), "all that are scored are proposed"


def test_a_cost_model_makes_another_name():
    assert strategy_name("evolutionary", "xgb") == "xgb" == strategy_name("xgb", "xgb")
    assert (
        strategy_name("evolutionary", "random") == "evolutionary" == strategy_name("evolutionary")
    )
    assert strategy_name("ranked", "mlp") == "ranked-mlp"
    strategy = make_strategy("evolutionary", task(), 0, cost_model="mlp")
    assert type(strategy).__name__ == "EvolutionaryMlp"


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("grid", "xgb", "'grid' takes no cost model.*cost_model='xgb' must be left out"),
        ("module:Mine", "xgb", "takes no cost model"),
        ("evolutionary", "forest", "cost_model='forest' .* must be one of random, xgb, mlp"),
        ("xgb", "mlp", "cost_model='mlp' of strategy 'xgb' must be one of xgb"),
        ("annealing", None, "'annealing' must be one of random, grid, .*, or module:Class"),
        (":Mine", None, "or module:Class"),
        ("no_such_module:Mine", None, "No module named 'no_such_module'"),
        ("os:sep", None, "'os:sep' is '/', not a class"),
        ("search_toys:Mine", None, "has no attribute 'Mine'"),
    ],
)
def test_names_that_are_refused(name, model, message):
    with pytest.raises(ValueError, match=message):
        make_strategy(name, task(), 0, model)


def test_a_strategy_of_ones_own_is_found_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "my_search_of_points.py").write_text("class Mine:\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert strategy_class("my_search_of_points:Mine").__name__ == "Mine"


def test_a_fault_within_ones_own_module_is_told(tmp_path, monkeypatch):
    (tmp_path / "my_broken_search.py").write_text("import not_installed_here\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="No module named 'not_installed_here'"):
        strategy_class("my_broken_search:Mine")


def test_the_strategy_of_the_document_is_one(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs/search-strategies.md").read_text(encoding="utf-8")
    (code,) = re.findall(r'```python\n(""".*?)```', text, re.DOTALL)
    assert len(code.splitlines()) < 40
    (tmp_path / "my_search.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    points, best = run("my_search:Annealing", seed=1, budget=120)
    assert len({*points}) == 120 and all(point in SPACE for point in points)
    assert points == run("my_search:Annealing", seed=1, budget=120)[0]
    assert best[-1] < run("random", seed=1, budget=120)[1][-1]


def test_the_example_begins_at_a_start_outside_of_its_space(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    assert SMALL.point(SMALL.start) not in SMALL
    points, _ = run("my_strategy:Nearest", budget=1000, batch=2, space=SMALL)
    assert sorted(points) == sorted(SMALL.points)


def test_the_document_names_every_strategy():
    text = (Path(__file__).parents[2] / "docs/search-strategies.md").read_text(encoding="utf-8")
    assert not [name for name in STRATEGIES if f"`{name}`" not in text]
