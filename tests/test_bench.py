"""The measurements themselves: what is timed, in what order, and what is written down."""

import itertools
import json

import pytest
import torch

from tvm_flash import bench
from tvm_flash.bench.contenders import NAIVE_LIMIT_BYTES, Prepared
from tvm_flash.bench.host import cpu_name
from tvm_flash.cases import BENCH, CORRECTNESS

SMALL = bench.Problem("float32", 64, 256, causal=True, heads=2)
HASTE = bench.Patience(min_rounds=3, max_rounds=3, seconds=0.0)


def test_median_and_spread():
    timing = bench.Timing.of([3.0, 1.0, 2.0, 100.0, 2.5])
    assert timing.median == 2.5 and timing.rounds == 5
    assert bench.Timing.of([2.0, 2.0]).spread == 0.0


def test_contenders_take_turns():
    calls = []
    names = "abc"
    bench.interleaved({name: lambda name=name: calls.append(name) for name in names}, HASTE)
    rounds = ["".join(calls[start : start + 3]) for start in range(0, len(calls), 3)]
    assert rounds == ["abc", "abc", "bca", "cab"]  # the first is the warm-up


def test_patience_ends_by_time_but_not_before_its_minimum():
    ticks = itertools.count()
    patience = bench.Patience(min_rounds=4, max_rounds=1000, seconds=0.0)
    timing = bench.interleaved({"a": lambda: next(ticks)}, patience)["a"]
    assert timing.rounds == 4


def test_flops_follow_the_convention():
    full = bench.Problem("float32", 64, 512, causal=False, batch=2, heads=4)
    assert full.flops("forward") == 4 * 2 * 4 * 512 * 512 * 64
    assert full.flops("backward") == 2.5 * full.flops("forward")
    causal = bench.Problem("float32", 64, 512, causal=True, batch=2, heads=4)
    assert causal.flops("forward") == full.flops("forward") / 2


def test_naive_attention_sits_out_what_does_not_fit():
    long = bench.Problem("float32", 64, 32768, causal=False)
    assert long.naive_bytes() > NAIVE_LIMIT_BYTES
    assert [c.name for c in bench.contenders_for(long)] == ["tvm_flash", "sdpa"]


@pytest.mark.parametrize("causal", [False, True])
def test_contenders_compute_the_same(causal):
    problem = bench.Problem("float32", 64, 200, causal=causal, heads=2)
    outs = []
    for contender in bench.CONTENDERS:
        prepared = Prepared(contender, problem)
        prepared.record()
        grads = [prepared.to_bshd(grad) for grad in prepared.backward()]
        outs.append([prepared.to_bshd(prepared.forward()), *grads])
    for other in outs[1:]:
        torch.testing.assert_close(outs[0], other, atol=1e-4, rtol=1e-4)


def test_rows_say_how_fast_and_how_right():
    rows = list(bench.measure(SMALL, HASTE))
    assert [row.direction for row in rows] == ["forward", "backward"]
    document = json.loads(json.dumps([row.to_json() for row in rows]))
    for row in document:
        assert set(row["contenders"]) == {"tvm_flash", "sdpa", "naive"}
        assert row["max_difference"] < 1e-3
        seconds = {name: entry["seconds"] for name, entry in row["contenders"].items()}
        assert row["ratio"]["sdpa"] == pytest.approx(seconds["sdpa"] / seconds["tvm_flash"])


def test_the_listed_problems_are_those_of_the_cases():
    assert len(bench.listed_problems()) == len(BENCH)
    assert 0 < len(bench.listed_problems(quick=True)) < len(BENCH)


def test_the_error_rule():
    case = next(case for case in CORRECTNESS if case.name == "bf16_relative_bias")
    found = bench.accuracies(case)
    assert [accuracy.result for accuracy in found] == ["out", "dq", "dk", "dv"]
    assert all(accuracy.ok for accuracy in found)
    assert not bench.Accuracy("out", error=3e-3, baseline=1e-3).ok
    assert not bench.Accuracy("out", error=float("nan"), baseline=1e-3).ok


def test_a_report_names_its_host():
    document = bench.Report(bench.describe()).to_json()
    assert document["host"]["cpu"] == cpu_name()
    assert document["host"]["date"] in bench.sentence(document["host"])


@pytest.mark.slow
def test_memory_is_linear_in_the_length():
    peaks = {
        (row.contender, row.problem.seqlen): row.bytes["forward_backward"]
        for problem in bench.memory_problems((1024, 4096))
        for row in bench.measure_memory(problem)
    }
    if None in peaks.values():
        pytest.skip("this system does not tell peak memory")
    # Four times the length: about four times the memory, not sixteen times.
    assert peaks["tvm_flash", 4096] < 6 * peaks["tvm_flash", 1024]
    assert peaks["naive", 4096] > 10 * peaks["tvm_flash", 4096]
