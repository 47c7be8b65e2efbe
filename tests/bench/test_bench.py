"""The measurements themselves: what is timed, in what order, and what is written down."""

import itertools
import math
import os

import pytest
import torch

from tvm_flash import bench
from tvm_flash.bench import cores, floors, rows
from tvm_flash.bench.contender import Prepared
from tvm_flash.bench.contenders import NAIVE_LIMIT_BYTES
from tvm_flash.bench.host import cpu_name
from tvm_flash.bench.restricted import library_for, refusal, restricted_floors, restricted_row
from tvm_flash.errors import TvmFlashError

SMALL = bench.Problem("float32", 64, 256, causal=True, heads=2)
HASTE = bench.Patience(min_rounds=3, max_rounds=3, seconds=0.0)


class Clock:
    """Time that passes only in ``call``, as the given durations say; the last one goes on."""

    def __init__(self, *durations):
        self.now, self.calls = 0.0, 0
        self.durations = itertools.chain(durations, itertools.repeat(durations[-1]))

    def __call__(self):
        return self.now

    def call(self):
        self.calls += 1
        self.now += next(self.durations)


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


def test_noise_is_measured_again_until_it_drowns():
    patience = bench.Patience(min_rounds=3, max_rounds=3, seconds=0.0, steady=0.05, budget=1000.0)
    clock = Clock(1.0, 9.0, 1.0, 1.0)
    timing = bench.interleaved({"a": clock.call}, patience, warm={"a": 1.0}, clock=clock)["a"]
    assert timing.rounds > 3 and timing.spread <= 0.05 and timing.median == 1.0


def test_noise_that_stays_ends_with_the_budget():
    patience = bench.Patience(min_rounds=3, max_rounds=3, seconds=0.0, steady=0.05, budget=50.0)
    clock = Clock(*[1.0, 2.0] * 100)
    timing = bench.interleaved({"a": clock.call}, patience, warm={"a": 1.0}, clock=clock)["a"]
    assert timing.spread > 0.05 and 50.0 < clock.now <= 52.0


def test_a_steady_call_is_not_measured_longer():
    patience = bench.Patience(min_rounds=3, max_rounds=3, seconds=0.0, steady=0.05, budget=1000.0)
    clock = Clock(1.0)
    bench.interleaved({"a": clock.call}, patience, warm={"a": 1.0}, clock=clock)
    assert clock.calls == 3


def test_short_calls_are_repeated_within_a_sample():
    patience = bench.Patience(min_rounds=3, max_rounds=3, seconds=0.0, shortest=1e-3)
    clock = Clock(1e-4)
    timing = bench.interleaved({"a": clock.call}, patience, warm={"a": 1e-4}, clock=clock)["a"]
    assert clock.calls == 30 and timing.median == pytest.approx(1e-4)


def test_flops_follow_the_convention():
    full = bench.Problem("float32", 64, 512, causal=False, batch=2, heads=4)
    assert full.flops("forward") == 4 * 2 * 4 * 512 * 512 * 64
    assert full.flops("backward") == 2.5 * full.flops("forward")
    causal = bench.Problem("float32", 64, 512, causal=True, batch=2, heads=4)
    assert causal.flops("forward") == full.flops("forward") / 2
    windowed = bench.Problem("float32", 64, 512, causal=True, window=3, batch=2, heads=4)
    visible = sum(min(row, 3) + 1 for row in range(512))
    assert windowed.flops("forward") == 4 * 2 * 4 * visible * 64


def test_bytes_are_those_of_inputs_and_outputs():
    problem = bench.Problem("bfloat16", 64, 512, False, heads=8, kv_heads=2, seqlen_q=1)
    q, k = 8 * 64 * 2, 2 * 512 * 64 * 2
    assert problem.least_bytes("forward") == 2 * q + 2 * k
    assert problem.least_bytes("backward") == 4 * q + 4 * k
    assert problem.output_bytes("forward") == q + 8 * 4
    assert problem.output_bytes("backward") == problem.output_bytes("forward") + q + 2 * k


@pytest.mark.parametrize(
    "fields", [{"causal": True, "seqlen_q": 1}, {"causal": False, "window": 4}]
)
def test_problems_that_libraries_read_differently_are_refused(fields):
    with pytest.raises(ValueError, match="causal"):
        bench.Problem("float32", 64, 512, **fields)


def test_naive_attention_sits_out_what_does_not_fit():
    long = bench.Problem("float32", 64, 32768, causal=False)
    assert long.naive_bytes() > NAIVE_LIMIT_BYTES
    assert [c.name for c in bench.contenders_for(long)] == ["tvm_flash", "sdpa"]


@pytest.mark.parametrize(
    "fields",
    [
        {"causal": False},
        {"causal": True},
        {"causal": True, "window": 50},
        {"causal": False, "kv_heads": 1, "seqlen_q": 1},
    ],
    ids=["full", "causal", "window", "decode"],
)
def test_contenders_compute_the_same(fields):
    problem = bench.Problem("float32", 64, 200, heads=2, **fields)
    outs = []
    for contender in bench.contenders_for(problem):
        prepared = Prepared(contender, problem)
        prepared.record()
        grads = [prepared.as_drawn(grad) for grad in prepared.backward()]
        outs.append([prepared.as_drawn(prepared.forward()), *grads])
    for other in outs[1:]:
        torch.testing.assert_close(outs[0], other, atol=1e-4, rtol=1e-4)


def test_rows_say_how_fast_and_how_right():
    found = list(bench.measure(SMALL, HASTE))
    assert [row.direction for row in found] == ["forward", "backward"]
    for row in found:
        document = row.to_json()
        assert set(document["seconds"]) == {"tvm_flash", "sdpa", "naive"}
        assert document["max_difference"] < 1e-3
        seconds = document["seconds"]
        assert document["ratio"]["sdpa"] == pytest.approx(seconds["sdpa"] / seconds["tvm_flash"])


def test_forward_keeps_nothing_for_a_backward():
    asked = []

    def probing(problem, device):
        def attention(q, k, v):
            asked.append(torch.is_grad_enabled())
            return q

        return attention

    probes = [bench.Contender(name, probing, "bshd") for name in ("tvm_flash", "sdpa")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "contenders_for", lambda problem, names: probes)
        bench.timed(SMALL, "forward", HASTE)
    assert asked and not any(asked)


def test_a_fast_wrong_kernel_is_no_result(monkeypatch):
    def wrong(problem, device):
        return lambda q, k, v: torch.full_like(q, float("nan"))

    others = bench.contenders_for(SMALL, ("sdpa", "naive"))
    cheat = [bench.Contender("tvm_flash", wrong, "bshd"), *others]
    monkeypatch.setattr(rows, "contenders_for", lambda problem, names: cheat)
    with pytest.raises(TvmFlashError, match="our result is not sdpa's"):
        bench.timed(SMALL, "forward", HASTE)


def test_a_host_is_named():
    host = bench.described_host()
    assert host["cpu"] == cpu_name() and host["tvm_flash"]
    assert host["date"] in bench.sentence(host) and "threads" not in bench.sentence(host)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not pin")
def test_as_many_cores_as_threads_and_back():
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    with cores.pinned(1) as chosen:
        assert os.sched_getaffinity(0) == set(chosen) and len(chosen) == 1
        assert torch.get_num_threads() == 1
    assert os.sched_getaffinity(0) == before and torch.get_num_threads() == threads


def test_hardware_threads_of_one_core_come_last(monkeypatch):
    monkeypatch.setattr(cores, "_siblings", lambda core: str(core // 2))
    assert cores.chosen_cores([0, 1, 2, 3], 2) == [3, 1]
    assert cores.chosen_cores([0, 1, 2, 3], 3) == [3, 1, 2]


def test_what_others_took():
    start = cores.Usage(clock=0.0, busy=10.0, own=5.0)
    end = cores.Usage(clock=10.0, busy=29.0, own=20.0)
    assert end.others_since(start, [0, 1]) == pytest.approx((19 - 15) / 20)
    assert end.others_since(cores.Usage(0.0, None, 5.0), [0, 1]) is None


def test_floors_are_rates(monkeypatch):
    monkeypatch.setitem(floors.SIZES, "cpu", (64,))
    monkeypatch.setitem(floors.COPY_BYTES, "cpu", 2**20)
    found = bench.measure_floors(torch.get_num_threads(), quick=True)
    assert set(found.matmul_gflops) == {"float32", "bfloat16", "float16"}
    assert all(0 < rate < math.inf for rate in (*found.matmul_gflops.values(), found.copy_gbytes))


def test_the_matmul_grows_while_it_is_quick(monkeypatch):
    for seconds, expected in ((1e-3, 64), (1.0, 32)):
        monkeypatch.setattr(floors, "warmed_up", lambda call, _, s=seconds: (call(), s))
        size, _ = floors.matmul_timing("float32", (32, 64), HASTE)
        assert size == expected


@pytest.mark.slow
@pytest.mark.skipif(bool(refusal()), reason="no AVX2")
def test_avx2_alone_in_a_process_of_its_own(tmp_path):
    library = library_for([SMALL], tmp_path)
    threads = torch.get_num_threads()
    found = restricted_row(SMALL, library, threads, HASTE, ("tvm_flash", "sdpa"))
    assert found["torch_capability"] == "AVX2" and found["ratio"]["sdpa"] > 0


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.skipif(bool(refusal()), reason="no AVX2")
def test_a_kernel_that_a_process_of_its_own_lacks(tmp_path):
    library, threads = library_for([SMALL], tmp_path), torch.get_num_threads()
    other = bench.Problem("float32", 40, 256, causal=True, heads=2)
    with pytest.raises(TvmFlashError, match="no loaded library has this kernel"):
        restricted_row(other, library, threads, HASTE, ("tvm_flash", "sdpa"))


@pytest.mark.slow
@pytest.mark.skipif(bool(refusal()), reason="no AVX2")
def test_floors_of_avx2_alone():
    found = restricted_floors(1, quick=True)
    assert found["isa"] == "avx2" and set(found["matmul_gflops"]) == {"float32"}


@pytest.mark.slow
def test_memory_is_linear_in_the_length():
    ours, _, naive = bench.CONTENDERS[:3]
    peaks = [
        bench.extra_bytes(contender, bench.Problem("float32", 64, seqlen, False, heads=4))
        for contender, seqlen in ((ours, 512), (ours, 2048), (naive, 2048))
    ]
    short, long, quadratic = (peak["forward_backward"] for peak in peaks)
    if short is None:
        pytest.skip("this system does not tell peak memory")
    # Four times the length: about four times the memory, not sixteen times.
    assert long < 6 * short
    assert quadratic > 10 * long
