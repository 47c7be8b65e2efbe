"""Cases of mbarriers and of bulk copies."""

import numpy as np
import pytest
from ptx.snippet import address, case, run
from ptx.table_memory import LOAD, STORE, words

from tvm_flash.ptx_interpreter import TensorMap

BUFFER = ".shared .align 1024 .b8 tile[8192];\n.shared .align 8 .b64 bar;"
FIRST = "setp.eq.u32 %p1, %r1, 0;\n@!%p1 bra ready;\n"
INIT = FIRST + "mbarrier.init.shared::cta.b64 [bar], {count};\n"
FENCE = "fence.mbarrier_init.release.cluster;\nready: bar.sync 0;\n"
WAIT = """again: mbarrier.try_wait.parity.shared::cta.b64 %p2, [bar], {phase};
@!%p2 bra again;
"""
OUTPUT = """shl.b32 %r5, %r1, 2; mov.u32 %r6, tile; add.u32 %r5, %r5, %r6; ld.shared.u32 %r3, [%r5];
"""


@case(LOAD + INIT.format(count=32) + FENCE + "shl.b32 %r5, %r1, 2; mov.u32 %r6, tile;\n"
      "add.u32 %r5, %r5, %r6; st.shared.u32 [%r5], %r2;\n"
      "mbarrier.arrive.shared.b64 %rd5, [bar];\n"
      "spin: mbarrier.test_wait.shared.b64 %p3, [bar], %rd5;\n@!%p3 bra spin;\n"
      "xor.b32 %r7, %r1, 9; shl.b32 %r7, %r7, 2; add.u32 %r7, %r7, %r6; ld.shared.u32 %r3, [%r7];\n"
      "@%p1 mbarrier.inval.shared.b64 [bar];\n" + STORE, prelude=BUFFER)  # fmt: skip
def arrive_and_wait_by_state(text):
    data = words()
    out, _ = run(text, [data], 32, np.uint32)
    np.testing.assert_array_equal(out, data[np.arange(32) ^ 9])


@case(INIT.format(count=33) + FENCE + "@%p1 mbarrier.expect_tx.relaxed.cta.shared.b64 [bar], 64;\n"
      "@%p1 mbarrier.complete_tx.relaxed.cta.shared.b64 [bar], 64;\n"
      "@%p1 mbarrier.arrive_drop.shared.b64 _, [bar];\nmbarrier.arrive.shared.b64 _, [bar], 1;\n"
      + WAIT.format(phase=0) + "mbarrier.arrive.release.cta.shared.b64 _, [bar];\n"
      + WAIT.format(phase=1).replace("again", "more") + "mov.u32 %r3, 4;\n" + STORE,
      prelude=BUFFER)  # fmt: skip
def dropped_arrivals_and_transactions(text):
    out, _ = run(text, [words()], 32, np.uint32)
    np.testing.assert_array_equal(out, 4)


@case(address("p_in", 4) + INIT.format(count=32) + FENCE +
      "shl.b32 %r5, %r1, 2; mov.u32 %r6, tile;\nadd.u32 %r5, %r5, %r6;\n"
      "cp.async.ca.shared.global [%r5], [%rd1], 4;\n"
      "cp.async.mbarrier.arrive.noinc.shared.b64 [bar];\n" + WAIT.format(phase=0) +
      "xor.b32 %r7, %r1, 9; shl.b32 %r7, %r7, 2; add.u32 %r7, %r7, %r6; ld.shared.u32 %r3, [%r7];\n"
      + STORE, prelude=BUFFER)  # fmt: skip
def small_copies_arrive(text):
    data = words()
    out, _ = run(text, [data], 32, np.uint32)
    np.testing.assert_array_equal(out, data[np.arange(32) ^ 9])


LINE = """mbarrier.arrive.expect_tx.shared.b64 _, [bar], 128;
ld.param.u64 %rd2, [p_in]; cp.async.bulk.prefetch.L2.global [%rd2], 128;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [tile], [%rd2], 128, [bar];
"""
LINE_OUT = """st.shared.u32 [%r5], %r3; fence.proxy.async.shared::cta; bar.sync 0;
@!%p1 bra done; ld.param.u64 %rd4, [p_out]; {copy}
cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0; cp.async.bulk.wait_group 0; done:
"""


def line(copy, change):
    body = INIT.format(count=1) + FENCE.replace("ready:", LINE + "ready:") + WAIT.format(phase=0)
    return body + OUTPUT + change + LINE_OUT.format(copy=copy)


@case(line("cp.async.bulk.global.shared::cta.bulk_group [%rd4], [tile], 128;",
           "add.u32 %r3, %r3, 5;"), prelude=BUFFER)  # fmt: skip
def lines_in_and_out(text):
    data = words()
    out, report = run(text, [data], 32, np.uint32)
    np.testing.assert_array_equal(out, data + np.uint32(5))
    assert report.sectors["read"]["in0"] == report.sectors["write"]["out"] == 4


@case(line("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%rd4], [tile], 128;", ""),
      prelude=BUFFER)  # fmt: skip
def lines_added(text):
    data = np.arange(32, dtype=np.float32)
    start = np.full(32, 0.5, np.float32)
    out, report = run(
        text, [data], 0, 0, out=lambda memory: memory.array("out", start, writable=True)
    )
    np.testing.assert_array_equal(out, data + start)
    assert report.atomics["out"] == 32


TENSOR = """mbarrier.arrive.expect_tx.shared.b64 _, [bar], 1024;
mov.b64 %rd5, p_in; cvta.param.u64 %rd5, %rd5; prefetch.tensormap [%rd5];
cp.async.bulk.prefetch.tensor.2d.L2.global.tile [%rd5, {{{x}, {y}}}];
cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [tile],
[%rd5, {{{x}, {y}}}], [bar];
"""


def tensor(x, y, finish):
    start = TENSOR.format(x=x, y=y)
    return (
        INIT.format(count=1) + FENCE.replace("ready:", start + "ready:") + WAIT.format(phase=0)
    ) + finish


def matrix_map(shape, box, swizzle, name="matrix"):
    """A function of the memory that gives a map of the array `shape`, float16 row numbers."""
    values = np.arange(shape[0] * shape[1]).astype(np.float16).reshape(shape)

    def make(memory):
        buffer = memory.array(name, values)
        return TensorMap(buffer, "float16", shape[::-1], (shape[1] * 2,), box, swizzle)

    return values, make


READ_ALL = """mov.u32 %r6, tile; shl.b32 %r5, %r1, 4; add.u32 %r5, %r5, %r6;
ld.shared.v4.u32 {%r2, %r3, %r7, %r8}, [%r5];
"""
STORE4 = address("p_out", 16) + "st.global.v4.u32 [%rd1], {%r2, %r3, %r7, %r8};"


@case(tensor(-3, 5, READ_ALL + STORE4), params=("out", "in:map"), prelude=BUFFER)
def tile_with_borders_and_swizzle(text):
    values, make = matrix_map((10, 72), (64, 8), 128)
    out, _ = run(text, [make], 512, np.float16, threads=64)
    expected = np.zeros((8, 64), np.float16)
    expected[:5, 3:] = values[5:10, :61]
    chunks = expected.reshape(8, 8, 8)
    swizzled = np.stack([chunks[r, np.arange(8) ^ r] for r in range(8)])
    np.testing.assert_array_equal(out.reshape(8, 8, 8), swizzled)


TILE_OUT = """bar.sync 0; @!%p1 bra done; fence.proxy.async; mov.b64 %rd6, p_result;
cvta.param.u64 %rd6, %rd6; {copy} [%rd6, {{2, 1}}], [tile];
cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; done: ld.param.u64 %rd7, [p_out];
st.global.u32 [%rd7], 0;
"""


def check_store(text, add):
    values, make = matrix_map((10, 72), (64, 8), 128)
    kept = {}

    def result(memory):
        start = np.full((6, 40), 100, np.float16)
        kept["buffer"] = memory.array("result", start, writable=True)
        return TensorMap(kept["buffer"], "float16", (40, 6), (80,), (64, 8), 128)

    run(text, [make, result], 1, np.uint32)
    expected = np.full((6, 40), 100, np.float16)
    expected[1:, 2:] = values[:5, :38] + np.float16(100 if add else 0)
    np.testing.assert_array_equal(kept["buffer"].numpy(), expected)


MAPS = ("out", "in:map", "result:map")


@case(tensor(0, 0, TILE_OUT.format(
      copy="cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group")), params=MAPS,
      prelude=BUFFER)  # fmt: skip
def tile_stored(text):
    check_store(text, add=False)


@case(tensor(0, 0, TILE_OUT.format(
      copy="cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group")),
      params=MAPS, prelude=BUFFER)  # fmt: skip
def tile_added(text):
    check_store(text, add=True)


POOL = """setp.lt.u32 %p3, %r1, 128; @%p3 bra worker;
setmaxnreg.dec.sync.aligned.u32 24; mov.u32 %r3, 1; bra joined;
worker: setmaxnreg.inc.sync.aligned.u32 232; mov.u32 %r3, 2;
joined:
"""


@case(POOL + STORE)
def registers_move_between_warps(text):
    bounded = text.replace(")\n{", ")\n.maxntid 256, 1, 1\n.minnctapersm 2\n{")
    out, _ = run(bounded, [words()], 256, np.uint32, threads=256)
    np.testing.assert_array_equal(out, np.repeat([2, 1], 128))
    from tvm_flash.ptx_interpreter import Deadlock

    with pytest.raises(Deadlock, match=r"setmaxnreg.inc.*no lane|no lane.*setmaxnreg.inc"):
        run(bounded.replace("u32 24", "u32 128"), [words()], 256, np.uint32, threads=256)
