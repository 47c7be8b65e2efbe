"""Gradients of models whose batch, heads, weights or rows are divided are those of one process."""

import pytest

# float32 sums in other orders; the largest seen is 2e-6.
CLOSE = 2e-5


def assert_close(errors):
    assert max(errors) <= CLOSE


@pytest.mark.parametrize("task", ["data_parallel", "fully_sharded"])
def test_batches_are_divided(pair, task):
    assert_close(pair.run(f"training_tasks.{task}"))


@pytest.mark.parametrize("use_local", [False, True])
def test_heads_are_divided(pair, use_local):
    assert_close(pair.run("training_tasks.tensor_parallel", use_local))


@pytest.mark.parametrize("how", ["ring", "ulysses"])
@pytest.mark.parametrize(
    "wrapped", ["plain", "checkpoint", "ddp", pytest.param("compile", marks=pytest.mark.sweep)]
)
def test_rows_are_divided(pair, how, wrapped):
    assert_close(pair.run("training_tasks.sequence_parallel", how, wrapped))


@pytest.mark.sweep
@pytest.mark.parametrize("task", ["data_parallel", "fully_sharded"])
def test_batches_are_divided_by_four(four, task):
    assert_close(four.run(f"training_tasks.{task}"))


# Placements of q, k and v; then of out, lse, dq, dk, dv and the gradient of a sink.
DTENSORS = {
    0: ["S(0)", "S(0)", "S(0)", "S(0)", "S(0)", "P(sum)"],
    2: ["S(2)", "S(1)", "S(2)", "S(2)", "S(2)", "S(0)"],
    1: ["R"] * 6,
    None: ["R"] * 6,
}


@pytest.mark.parametrize("with_sink", [False, True])
@pytest.mark.parametrize("dim", DTENSORS)
def test_dtensors_stay_divided(pair, dim, with_sink):
    for placements, error in pair.run("training_tasks.dtensors", dim, with_sink):
        if dim in (0, 2):
            assert placements == DTENSORS[dim][: len(placements)]
        assert error <= CLOSE


@pytest.mark.parametrize("variant", ["slopes", "heads"])
def test_what_knows_heads_is_gathered_from_heads(pair, variant):
    for placements, error in pair.run("training_tasks.dtensors_of_variant", 2, variant):
        assert placements == "R" and error <= CLOSE
    for placements, error in pair.run("training_tasks.dtensors_of_variant", 0, variant):
        assert placements == {"slopes": "R", "heads": "S(0)"}[variant] and error <= CLOSE
