"""Cases of exchanges inside a warp."""

import numpy as np
from ptx.snippet import case, run
from ptx.table_memory import LOAD, STORE, words

LANE = np.arange(32)


@case(LOAD + "shfl.sync.bfly.b32 %r3|%p1, %r2, 5, 31, -1;\n" + STORE)
def butterfly(text):
    data = words()
    np.testing.assert_array_equal(run(text, [data], 32, np.uint32)[0], data[LANE ^ 5])


@case(LOAD + "shfl.sync.up.b32 %r3|%p1, %r2, 3, 0, -1;\n@!%p1 mov.u32 %r3, 77;\n" + STORE)
def up(text):
    data = words()
    expected = np.where(LANE >= 3, np.roll(data, 3), 77)
    np.testing.assert_array_equal(run(text, [data], 32, np.uint32)[0], expected)


@case(LOAD + "shfl.sync.down.b32 %r3, %r2, 2, 0x181f, -1;\n" + STORE)
def down_in_segments_of_eight(text):
    data = words()
    source = np.where(LANE % 8 + 2 < 8, LANE + 2, LANE)
    np.testing.assert_array_equal(run(text, [data], 32, np.uint32)[0], data[source])


@case(LOAD + "and.b32 %r4, %r2, 31;\nshfl.idx.b32 %r3, %r2, %r4, 31;\n" + STORE)
def by_index(text):
    data = words()
    np.testing.assert_array_equal(run(text, [data], 32, np.uint32)[0], data[data & 31])


@case(LOAD + "setp.gt.u32 %p1, %r2, 0x80000000;\nvote.sync.ballot.b32 %r3, %p1, -1;\n"
      "vote.sync.all.pred %p2, %p1, -1;\nvote.sync.any.pred %p3, !%p1, -1;\n"
      "vote.sync.uni.pred %p4, %p1, -1;\nselp.u32 %r4, 1, 0, %p2;\nselp.u32 %r5, 2, 0, %p3;\n"
      "shl.b32 %r4, %r4, 1;\nxor.b32 %r3, %r3, %r4;\nvote.ballot.b32 %r7, %p4, -1;\n"
      "xor.b32 %r3, %r3, %r7;\n" + STORE)  # fmt: skip
def votes(text):
    data = words()
    expected = int(((data > 0x80000000) * (1 << LANE)).sum())
    np.testing.assert_array_equal(run(text, [data], 32, np.uint32)[0], expected)


@case(LOAD + "and.b32 %r2, %r2, 3;\nmatch.any.sync.b32 %r3, %r2, -1;\n"
      "match.all.sync.b32 %r4|%p1, %r2, -1;\nmatch.all.sync.b32 %r5|%p2, 7, -1;\n"
      "@%p2 xor.b32 %r3, %r3, %r5;\n" + STORE)  # fmt: skip
def matches(text):
    data = words() & 3
    same = data[:, None] == data[None, :]
    expected = (same * (1 << LANE)).sum(axis=1).astype(np.uint32) ^ 0xFFFFFFFF
    np.testing.assert_array_equal(run(text, [data], 32, np.uint32)[0], expected)


@case(
    LOAD + "redux.sync.add.u32 %r3, %r2, -1;\nredux.sync.max.s32 %r4, %r2, -1;\n"
    "redux.sync.xor.b32 %r5, %r2, -1;\nxor.b32 %r3, %r3, %r4;\nxor.b32 %r3, %r3, %r5;\n" + STORE
)
def reductions(text):
    data = words()
    total = int(data.sum(dtype=np.uint64)) & 0xFFFFFFFF
    expected = total ^ (int(data.view(np.int32).max()) & 0xFFFFFFFF) ^ np.bitwise_xor.reduce(data)
    np.testing.assert_array_equal(run(text, [data], 32, np.uint32)[0], expected)


@case("mov.u32 %r3, 5;\nelect.sync %r4|%p1, 0xF0;\n@%p1 mov.u32 %r3, 6;\nactivemask.b32 %r5;\n"
      "add.u32 %r3, %r3, %r5;\n" + STORE)  # fmt: skip
def election_and_active_mask(text):
    expected = np.where(LANE == 4, 6, 5) - 1
    np.testing.assert_array_equal(run(text, [words()], 32, np.uint32)[0], expected)


SPECIAL = """mov.u32 %r2, %laneid; mov.u32 %r3, %ntid.x; mov.u32 %r4, %warpid;
mov.u32 %r5, %nctaid.x;
mad.lo.u32 %r3, %r3, 100, %r2; mad.lo.u32 %r3, %r4, 10000, %r3; mad.lo.u32 %r3, %r5, 1000000, %r3;
mov.u32 %r6, %lanemask_lt; popc.b32 %r6, %r6; sub.u32 %r3, %r3, %r6; mov.u32 %r7, %ctaid.y;
mov.u32 %r9, %cluster_ctarank; add.u32 %r3, %r3, %r9; mov.u64 %rd3, %clock64; mov.u32 %r8, WARP_SZ;
add.u32 %r3, %r3, %r7; sub.u32 %r3, %r3, %r8; mov.u32 %r8, %lanemask_ge; mov.u32 %r8, %smid;
"""


@case(SPECIAL + STORE)
def special_registers(text):
    thread = np.arange(64)
    expected = 6400 + thread // 32 * 10000 + 1000000 - 32
    np.testing.assert_array_equal(run(text, [words()], 64, np.uint32, threads=64)[0], expected)
