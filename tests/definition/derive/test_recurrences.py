"""Each derived recurrence, interpreted over tiles, against the formula in float64."""

import numpy as np
import pytest
from recurrences import split, streamed

from tvm_flash.definition.kinds import recurrence_of
from tvm_flash.definition.rows import KINDS

ROWS, KEYS, COLUMNS = 12, 75, 5
LAST = ROWS - 1  # a row that sees no key


def problem(kind, *, spread=3.0, sink=None):
    """(x, v, row): scores with hidden keys, values, numbers of a row."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(ROWS, KEYS)) * spread
    x[:, ::9] = -np.inf
    x[1, :40] = -np.inf  # nothing seen in the first tiles
    x[2] = np.sort(x[2])  # the maximum moves at every tile
    x[3] = np.linspace(0, 4, KEYS)  # and here it may lag to the end
    x[LAST] = -np.inf
    row = {}
    if kind == "sink":
        row["sink"] = np.full(ROWS, sink) if sink is not None else rng.normal(size=ROWS) * 2
    # As float32 numbers, which the float64 answer then takes as they are.
    return x.astype("float32"), rng.normal(size=(KEYS, COLUMNS)).astype("float32"), row


def exact(kind, x, v, row):
    """(out, lse or None) in float64."""
    x, v = x.astype("float64"), v.astype("float64")
    with np.errstate(divide="ignore", over="ignore"):
        if kind == "sigmoid":
            return (1 / (1 + np.exp(-x))) @ v, None
        extra = {"softmax": -np.inf, "softmax1": 0.0, "sink": row.get("sink")}[kind]
        extra = np.broadcast_to(np.asarray(extra, "float32").astype("float64"), (len(x), 1)[:1])
        joined = np.concatenate([x, extra[:, None]], axis=1)
        top = np.maximum(joined.max(1, keepdims=True), -1e300)
        p = np.exp(joined - top)
        total = p.sum(1, keepdims=True)
        out = np.where(total > 0, (p[:, :-1] @ v) / np.where(total > 0, total, 1), 0)
        return out, (np.log(total) + top)[:, 0]


def check(kind, got, x, v, row, tolerance=2e-6):
    (out, statistics), (want, lse) = got, exact(kind, x, v, row)
    assert np.abs(out - want).max() < tolerance * max(1, np.abs(want).max())
    if lse is not None:
        both = statistics["lse"].astype("float64") + statistics["lse_low"]
        seen = np.isfinite(lse)
        assert np.array_equal(statistics["lse"][~seen], lse[~seen])
        size = np.maximum(1, np.abs(lse[seen]))
        assert (np.abs(statistics["lse"][seen] - lse[seen]) / size).max() < 1e-6
        assert (np.abs(both[seen] - lse[seen])).max() < 1e-5


@pytest.mark.parametrize("lags", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_streamed(kind, lags):
    x, v, row = problem(kind)
    recurrence = recurrence_of(kind)
    for tile in (1, 16, 64, 128):
        check(kind, streamed(recurrence, x, v, row, tile=tile, lags=lags), x, v, row)
    order = [3, 0, 4, 2, 1]
    check(kind, streamed(recurrence, x, v, row, lags=lags, order=order), x, v, row)


@pytest.mark.parametrize("lags", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_split(kind, lags):
    """What a row starts with counts once, however many parts the keys are split into."""
    x, v, row = problem(kind)
    for parts in (1, 2, 5, 75):
        check(kind, split(recurrence_of(kind), x, v, row, parts=parts, lags=lags), x, v, row)


@pytest.mark.parametrize("spread", [1e-3, 80.0, 3e4])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_any_size(kind, spread):
    """No overflow and no row taken for an empty one; lse_low keeps its digits."""
    x, v, row = problem(kind, spread=spread)
    for got in (streamed(recurrence_of(kind), x, v, row), split(recurrence_of(kind), x, v, row)):
        check(kind, got, x, v, row)


@pytest.mark.parametrize("sink", [500.0, 3e38, -500.0, -3e38, -np.inf])
def test_sink_of_any_size(sink):
    """Far above all scores it takes all weight; far below, none; -inf is no sink."""
    x, v, row = problem("sink", sink=sink)
    recurrence = recurrence_of("sink")
    for lags in (False, True):
        for got in (
            streamed(recurrence, x, v, row, lags=lags),
            split(recurrence, x, v, row, lags=lags),
        ):
            check("sink", got, x, v, row)
    if sink > 0:
        assert np.abs(got[0]).max() < 1e-30
        assert np.array_equal(got[1]["lse"], np.float32(row["sink"]))


@pytest.mark.parametrize("kind", KINDS)
def test_row_without_a_visible_key(kind):
    """Output 0, and lse that of what the row starts with: the sink, the one, or nothing."""
    x, v, row = problem(kind)
    for out, statistics in (
        streamed(recurrence_of(kind), x, v, row),
        split(recurrence_of(kind), x, v, row),
    ):
        assert (out[LAST] == 0).all()
        if kind != "sigmoid":
            want = {"softmax": -np.inf, "softmax1": 0.0}.get(kind)
            want = np.float32(row["sink"][LAST]) if want is None else want
            assert statistics["lse"][LAST] == want


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_proven(kind):
    """Any maximum may lag, hidden keys are skipped, and every block has been read."""
    recurrence = recurrence_of(kind)
    assert recurrence.exact == {}
    assert recurrence.hidden == -np.inf
    assert [s.name for s in recurrence.rows] == ([] if kind == "sigmoid" else ["m", "l"])
    blocks = {"scores", "score_mod", "mask", "exp", "pv", "out"}
    rows = set() if kind == "sigmoid" else {"row_max", "row_sum", "lse", "lse_low"}
    assert set(recurrence.blocks) == blocks | rows
