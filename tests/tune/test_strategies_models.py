"""Features of points and programs, and the cost models that learn from them."""

import pickle
import random
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_toys import KNOBS, SPACE, seconds
from threadpoolctl import threadpool_info

from tvm_flash.errors import TvmFlashError
from tvm_flash.problem.spec import AttentionSpec
from tvm_flash.schedules.space import Knob, Space
from tvm_flash.tune.cost_models import COST_MODELS, cost_model
from tvm_flash.tune.cost_models.base import throughput
from tvm_flash.tune.features import feature_names, knob_features, per_store_features

LEARNING = sorted({*COST_MODELS} - {"random"})
ANY_POINT = st.tuples(*(st.sampled_from(knob.values) for knob in KNOBS))


def sampled(count, seed=0):
    points = random.Random(seed).sample(SPACE.points, count)
    return knob_features(SPACE, points), [seconds(point) for point in points]


def test_names_and_values_of_features():
    assert feature_names(SPACE) == [
        "log2 block_q", "log2 block_k", "stages", "log2 lanes",
        "order=diagonal", "order=kq", "order=qk", "swizzle",
    ]  # fmt: skip
    row = knob_features(SPACE, [(8, 64, 0, 128, "kq", True)])
    assert row.dtype == np.float32
    assert row.tolist() == [[3, 6, 0, 7, 0, 1, 0, 1]]
    unknown = knob_features(SPACE, [(8, 64, 0, 128, "spiral", True)])
    assert unknown[0, 4:7].tolist() == [0, 0, 0]
    assert knob_features(SPACE, []).shape == (0, 8)


@given(st.lists(ANY_POINT, min_size=1, max_size=9))
def test_features_tell_points_apart(points):
    rows = knob_features(SPACE, points)
    assert rows.shape == (len(points), len(feature_names(SPACE))) and np.isfinite(rows).all()
    assert len({tuple(row) for row in rows.tolist()}) == len({*points})


def test_labels_are_throughput_and_failures_are_nothing():
    assert throughput([2.0, None, 1.0, float("nan"), 4.0]).tolist() == [0.5, 0, 1, 0, 0.25]
    assert throughput([None, None]).tolist() == [0, 0]


@pytest.mark.parametrize("name", LEARNING)
def test_models_order_what_they_have_not_seen(name):
    (features, times), (others, truth) = sampled(150), sampled(400, seed=1)
    model = cost_model(name, 3)
    model.fit(features, times)
    scores = model.predict(others)
    assert scores.shape == (400,) and scores.dtype == np.float64
    labels = throughput(truth)
    ranks = [np.argsort(np.argsort(values)) for values in (scores, labels)]
    assert np.corrcoef(ranks)[0, 1] > 0.75
    again = cost_model(name, 3)
    again.fit(features, times)
    assert np.array_equal(again.predict(others), scores), "bit for bit"


@pytest.mark.parametrize("name", sorted(COST_MODELS))
def test_models_live_with_little(name):
    model, (features, _) = cost_model(name, 0), sampled(5)
    assert np.isfinite(model.predict(features)).all(), "before they know anything"
    for times in ([1.0] * 5, [None] * 5, [2.0, None, None, None, None]):
        model.fit(features, times)
        assert np.isfinite(model.predict(features)).all()
    model.fit(features[:1], [1.0])
    assert np.isfinite(model.predict(features)).all()


@pytest.mark.parametrize("name", ["gp", "mlp"])
def test_learning_leaves_threads_and_random_numbers_alone(name):
    model, (features, times) = cost_model(name, 0), sampled(20)
    threads, state = threadpool_info(), pickle.dumps(np.random.get_state())
    model.fit(features, times)
    model.predict(features)
    assert threadpool_info() == threads and pickle.dumps(np.random.get_state()) == state


@pytest.mark.parametrize(
    ("name", "module", "library"),
    [("gp", "scikit_learn", "sklearn"), ("mlp", "scikit_learn", "sklearn"),
     ("xgb", "trees", "xgboost")],
)  # fmt: skip
def test_a_library_that_is_missing_is_named(name, module, library, monkeypatch):
    monkeypatch.delitem(sys.modules, f"tvm_flash.tune.cost_models.{module}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(TvmFlashError, match=rf"'{name}' needs {library}.*tvm-flash\[compile\]"):
        cost_model(name, 0)


def test_a_model_that_there_is_not():
    with pytest.raises(ValueError, match="'forest' must be one of random, ridge, gp, xgb, mlp"):
        cost_model("forest", 0)


def test_features_of_the_stores_of_a_cpu_kernel():
    from tvm_flash.schedules.select import SCHEDULES
    from tvm_flash.schedules.target import cpu_target

    spec, target = AttentionSpec(dtype="float32", head_dim=64), cpu_target("x86-64-v3")
    start = SCHEDULES.defaults(spec, "forward", target)[0]
    config = start.to_json()
    rows = per_store_features(spec, "forward", target, config)
    assert rows.shape[1] == 164 and rows.dtype == np.float64 and np.isfinite(rows).all()
    assert np.array_equal(per_store_features(spec, "forward", target, config), rows)
    other = per_store_features(spec, "forward", target, config | {"block_q": config["block_q"] * 2})
    assert other.shape != rows.shape or not np.array_equal(other, rows)


def test_a_knob_of_one_value_is_a_column_without_news():
    space = Space.around(SPACE.start, [Knob("stages", (1,), "")], lambda config: [])
    assert knob_features(space, [(1,)]).tolist() == [[0.0]]
