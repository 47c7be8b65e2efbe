"""Timing in turns by a made-up clock, and what is counted in disassembly."""

import pytest

from tvm_flash.problem.lengths import bucket_of, buckets_of
from tvm_flash.tune import measure
from tvm_flash.tune.instructions import counted
from tvm_flash.tune.measure import interleaved
from tvm_flash.tune.sizes import SIZES, sizes_of


class Clock:
    """Stopwatches whose calls take as long as they say; all of them are written down."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)

    def watch(self, name, seconds, first=0.0):
        def run(repeats):
            taken = seconds * repeats + (first if name not in self.calls else 0.0)
            self.now += taken
            self.calls.append(name)
            return taken / repeats

        return run


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_both_are_timed_in_turns_after_a_warm_up(clock):
    ours, theirs = interleaved(clock.watch("ours", 0.1, 5.0), clock.watch("theirs", 0.2, 5.0), 3.0)
    assert set(ours) == {0.1} and set(theirs) == {0.2}, "nothing of the first calls"
    assert len(ours) == len(theirs) == 10
    timed = clock.calls[-20:]
    assert timed[:4] == ["ours", "theirs", "theirs", "ours"], "each goes first every other time"
    assert timed.count("ours") == 10


def test_short_calls_are_repeated_within_a_sample(clock):
    ours, theirs = interleaved(clock.watch("ours", 1e-6), clock.watch("theirs", 2e-6), 1.2)
    assert len(ours) == 60 and set(theirs) == {2e-6}
    assert clock.now == pytest.approx(1.2 * 3 / 4, rel=0.1), "a sample of the slower: 10 ms"


def test_what_is_far_slower_is_soon_over(clock):
    ours, _ = interleaved(clock.watch("ours", 0.2), clock.watch("theirs", 0.1), 10.0)
    assert len(ours) == 3
    ours, _ = interleaved(clock.watch("ours", 0.14), clock.watch("theirs", 0.1), 0.01)
    assert len(ours) == 5


LISTING = """
0000000000001000 <alloc_workspace>:
    1000:\tvmovups %zmm0,(%rax)

0000000000002000 <attn_f32_d64_fwd_compute_>:
    2000:\tsub    $0x1c0,%rsp
    2007:\tvmovups 0x40(%rdi,%rsi,4),%zmm1
    200f:\tvfmadd231ps (%r8){1to16},%zmm1,%zmm2
    2015:\tvmovups %zmm2,0x80(%rsp)
    201d:\tvmovups %zmm2,(%rdx){%k1}
    2023:\tvmovups 0x80(%rsp),%zmm3
    202b:\tmov    %rax,0x8(%rsp)
    2030:\tvaddps %zmm1,%zmm2,%zmm3
    2036:\tret
"""
ARM = """
0000000000002000 <attn_f32_d64_fwd_compute_>:
    2000:\tsub\tsp, sp, #0x90
    2004:\tldr\tq0, [x0, #16]
    2008:\tldp\tq1, q2, [x1]
    200c:\tfmla\tv0.4s, v1.4s, v2.s[0]
    2010:\tstr\tq0, [sp, #32]
    2014:\tst1\t{v0.4s}, [x2]
    2018:\tret
"""


def test_instructions_are_counted():
    assert counted(LISTING, "attn_f32_d64_fwd") == {
        "code_bytes": 0x36, "instructions": 9, "products": 1, "loads": 3, "stores": 2,
        "stack_stores": 1, "stack_bytes": 0x1C0,
    }  # fmt: skip
    assert counted(ARM, "attn_f32_d64_fwd") == {
        "code_bytes": 0x18, "instructions": 7, "products": 1, "loads": 2, "stores": 2,
        "stack_stores": 1, "stack_bytes": 0x90,
    }  # fmt: skip
    assert counted(LISTING, "attn_f32_d128_fwd") == {}


def test_what_is_timed_lies_in_its_bucket():
    for direction in ("forward", "backward"):
        for bucket in buckets_of(direction):
            sizes = sizes_of(direction, bucket)
            assert sizes == SIZES[bucket]
            assert bucket_of(direction, sizes.seqlen_q, sizes.seqlen_k) == bucket
    assert sizes_of("forward", "decode", 4096)[-2:] == (1, 4096)
    assert sizes_of("backward", "long", 4096)[-2:] == (4096, 4096)
    for wrong in (100, 0, -5):
        with pytest.raises(ValueError, match="not long"):
            sizes_of("forward", "long", wrong)
