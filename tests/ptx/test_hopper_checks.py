"""What Hopper kernels add to the interpreter's checks: lanes that poll, operands in flight."""

import re

import numpy as np
import pytest
from ptx import table_copies, table_wgmma
from ptx.snippet import CASES, kernel, run
from ptx.table_memory import STORE

from tvm_flash import ptx_interpreter as ptx
from tvm_flash.ptx_interpreter.execute import POLL_LIMIT

# Thread 0 tells by a flag that its bulk copy has landed; the other threads poll the flag.
TURN = """setp.ne.u32 %p5, %r1, 0; ld.param.u64 %rd6, [p_flag]; @%p5 bra poll;
{landed}
red.release.gpu.global.add.u32 [%rd6], 1; bra ended;
poll: ld.acquire.gpu.global.u32 %r9, [%rd6]; nanosleep.u32 20; setp.eq.u32 %p6, %r9, 0;
@%p6 bra poll;
ended: bar.sync 0;
"""


def polled(landed):
    """A bulk copy, which must land while lanes can run: those that poll."""
    init = table_copies.INIT.format(count=1)
    start = table_copies.FENCE.replace("ready:", table_copies.LINE + "ready:")
    body = init + start + TURN.format(landed=landed) + table_copies.OUTPUT + STORE
    return kernel(body, params=("out", "in", "flag"), prelude=table_copies.BUFFER)


def run_polled(text, seed=0):
    data = np.arange(32, dtype=np.uint32)
    flag = lambda memory: memory.zeros("flag", 1, np.uint32)  # noqa: E731
    out, _ = run(text, [data, flag], 32, np.uint32, threads=32, seed=seed)
    np.testing.assert_array_equal(out, data)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_copies_land_while_lanes_poll(seed):
    run_polled(polled(table_copies.WAIT.format(phase=0)), seed)


def test_a_poll_that_nobody_answers_is_a_deadlock():
    text = polled(table_copies.WAIT.format(phase=0))
    silent = text.replace("red.release.gpu.global.add.u32 [%rd6], 1;", "")
    with pytest.raises(ptx.Deadlock, match=r"poll memory.*PTX line \d+: `ld.acquire"):
        run_polled(silent)


def test_two_polls_in_turn_reach_each_other():
    """The flag goes to and fro, so that each side polls at a place of its own."""
    sides = """setp.ge.u32 %p5, %r1, 32; ld.param.u64 %rd1, [p_out]; @%p5 bra second;
st.relaxed.gpu.global.u32 [%rd1], 1;
there: ld.relaxed.gpu.global.u32 %r3, [%rd1]; setp.ne.u32 %p6, %r3, 2; @%p6 bra there;
st.relaxed.gpu.global.u32 [%rd1], 3; bra ended;
second: ld.relaxed.gpu.global.u32 %r3, [%rd1]; setp.ne.u32 %p6, %r3, 1; @%p6 bra second;
st.relaxed.gpu.global.u32 [%rd1], 2;
back: ld.relaxed.gpu.global.u32 %r3, [%rd1]; setp.ne.u32 %p6, %r3, 3; @%p6 bra back;
ended:
"""
    text = kernel(sides, params=("out",))
    for seed in (0, 1):
        out, _ = run(text, [], 1, np.uint32, threads=64, seed=seed,
                     out=lambda memory: memory.zeros("out", 1, np.uint32))  # fmt: skip
        assert out[0] == 3


@pytest.mark.parametrize("more", ["min.u32 %r9, %r9, 5;", "mul.lo.u32 %r9, %r9, 3;"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_wait_with_arithmetic_lets_others_write(more, seed):
    """As where lanes sleep longer and longer."""
    sides = f"""setp.ge.u32 %p5, %r1, 32; ld.param.u64 %rd1, [p_out]; mov.u32 %r9, 1;
@%p5 bra second;
there: ld.relaxed.gpu.global.u32 %r3, [%rd1]; {more} setp.ne.u32 %p6, %r3, 2; @%p6 bra there;
bra ended;
second: st.relaxed.gpu.global.u32 [%rd1], 2;
ended:
"""
    zeros = {"out": lambda memory: memory.zeros("out", 1, np.uint32)}
    out, _ = run(kernel(sides, params=("out",)), [], 1, np.uint32, threads=64, seed=seed, **zeros)
    assert out[0] == 2


def test_a_sum_by_strong_reads_waits_for_nobody():
    body = f"""ld.param.u64 %rd1, [p_out]; ld.param.u64 %rd2, [p_in];
mov.u32 %r3, 0; mov.u32 %r4, 0;
next: ld.volatile.global.u32 %r5, [%rd2]; add.u32 %r3, %r3, %r5; add.s64 %rd2, %rd2, 4;
add.u32 %r4, %r4, 1; setp.ne.u32 %p6, %r4, {POLL_LIMIT + 9}; @%p6 bra next;
st.global.u32 [%rd1], %r3;
"""
    ones = np.ones(POLL_LIMIT + 9, np.uint32)
    out, _ = run(kernel(body, params=("out", "in")), [ones], 1, np.uint32, threads=1)
    assert out[0] == ones.size


def test_four_numbers_are_added_at_once():
    body = """cvt.rn.f32.u32 %f1, %r1; add.f32 %f2, %f1, %f1; shr.u32 %r3, %r1, 1;
ld.param.u64 %rd1, [p_out]; mad.wide.u32 %rd1, %r3, {step}, %rd1;
red.global.add.v4.f32 [%rd1], {{%f1, %f2, %f1, %f2}};
"""
    zeros = {"out": lambda memory: memory.zeros("out", 64, np.float32)}
    text = kernel(body.format(step=16), params=("out",))
    out, report = run(text, [], 64, np.float32, **zeros)
    pairs = np.arange(32, dtype=np.float32).reshape(16, 2).sum(axis=1)
    np.testing.assert_array_equal(out.reshape(16, 4), pairs[:, None] * [1, 2, 1, 2])
    assert report.atomics["out"] == 128
    with pytest.raises(ptx.Misaligned, match="16-byte"):
        run(kernel(body.format(step=8), params=("out",)), [], 64, np.float32, **zeros)


def product(name):
    """A wgmma case and its text."""
    item = next(c for c in CASES if c.name == name)
    assert table_wgmma.TMA in item.text
    return item, item.text


def test_operands_in_flight_are_not_read():
    """A fragments of a wgmma, which it reads for as long as it is in flight."""
    item, text = product("wgmma_turned_swizzle_128")
    commit = "wgmma.commit_group.sync.aligned;\n"
    item.check(text.replace(commit, commit + "mov.b32 %r60, %r50;\n"))  # a name, as ptxas sees it
    for touch in ("add.u32 %r60, %r50, 1;", "mov.b32 %r50, 0;", "mov.b32 %r60, %r50;\n"
                  "add.u32 %r61, %r60, 1;"):  # fmt: skip
        with pytest.raises(ptx.AsyncHazard, match="register of the wgmma"):
            item.check(text.replace(commit, f"{commit}{touch}\n"))


def test_operands_in_flight_fit_the_registers_of_their_warps():
    """36 registers of a product that 24 or 40 are left for by setmaxnreg."""
    item, text = product("wgmma_turned_swizzle_128")
    text = text.replace(")\n{", ")\n.maxntid 128, 1, 1\n{")
    fence = "wgmma.fence.sync.aligned;\n"
    give = f"setmaxnreg.dec.sync.aligned.u32 {{}};\n{fence}"
    assert len(re.findall(fence, text)) == 1
    item.check(text.replace(fence, give.format(40)))
    with pytest.raises(ptx.AsyncHazard, match=r"36 registers of a warp that holds 24"):
        item.check(text.replace(fence, give.format(24)))
