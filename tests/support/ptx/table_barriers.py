"""Cases of barriers of a block, of a warp, and of cp.async."""

import numpy as np
from ptx.snippet import address, case, run
from ptx.table_memory import LOAD, STORE, words

EXCHANGE = """shl.b32 %r4, %r1, 2; mov.u32 %r5, buffer; add.u32 %r4, %r4, %r5;
st.shared.u32 [%r4], %r2; {barrier}
xor.b32 %r6, %r1, {partner}; shl.b32 %r6, %r6, 2; add.u32 %r6, %r6, %r5; ld.shared.u32 %r3, [%r6];
"""
BUFFER = ".shared .align 16 .b8 buffer[4096];"
THREAD = np.arange(64)


def exchange(barrier, partner=33):
    return LOAD + EXCHANGE.format(barrier=barrier, partner=partner) + STORE


def check(text, partner=33):
    data = words(64)
    for seed in range(3):
        out, report = run(text, [data], 64, np.uint32, threads=64, seed=seed)
        np.testing.assert_array_equal(out, data[THREAD ^ partner])
    return report


@case(exchange("bar.sync 0;"), prelude=BUFFER)
def block_barrier(text):
    assert check(text).barriers == 2


@case(exchange("barrier.sync.aligned 3, 64;"), prelude=BUFFER)
def named_barrier(text):
    check(text)


@case(exchange("bar.cta.sync 1, 64; barrier.cta.sync 2;"), prelude=BUFFER)
def cta_spelling(text):
    check(text)


@case(exchange("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;"),
      prelude=BUFFER)  # fmt: skip
def cluster_barrier(text):
    check(text)


@case(exchange("bar.warp.sync -1;", 1), prelude=BUFFER)
def warp_barrier(text):
    check(text, 1)


PRODUCER = """setp.ge.u32 %p1, %r1, 32; @%p1 bra consumer;
shl.b32 %r4, %r1, 2; mov.u32 %r5, buffer; add.u32 %r4, %r4, %r5; st.shared.u32 [%r4], %r2;
{arrive} 1, 64; mov.u32 %r3, %r2; bra done;
consumer: {sync} 1, 64; sub.u32 %r6, %r1, 32; shl.b32 %r6, %r6, 2; mov.u32 %r5, buffer;
add.u32 %r6, %r6, %r5; ld.shared.u32 %r3, [%r6];
done:
"""


def producer(arrive, sync):
    return LOAD + PRODUCER.format(arrive=arrive, sync=sync) + STORE


def check_producer(text):
    data = words(64)
    out, _ = run(text, [data], 64, np.uint32, threads=64)
    np.testing.assert_array_equal(out, np.tile(data[:32], 2))


@case(producer("bar.arrive", "bar.sync"), prelude=BUFFER)
def arrive_without_waiting(text):
    check_producer(text)


@case(producer("barrier.arrive", "barrier.sync"), prelude=BUFFER)
def arrive_unaligned(text):
    check_producer(text)


@case(producer("bar.cta.arrive", "bar.cta.sync"), prelude=BUFFER)
def arrive_cta(text):
    check_producer(text)


@case(producer("barrier.cta.arrive", "barrier.cta.sync"), prelude=BUFFER)
def arrive_cta_unaligned(text):
    check_producer(text)


REDUCE = """setp.lt.u32 %p1, %r1, 5; bar.red.popc.u32 %r3, 0, %p1; barrier.red.and.pred %p2, 0, %p1;
bar.cta.red.or.pred %p3, 0, !%p1; barrier.cta.red.popc.u32 %r4, 0, !%p1; add.u32 %r3, %r3, %r4;
selp.u32 %r5, 100, 0, %p2; selp.u32 %r6, 1000, 0, %p3; add.u32 %r3, %r3, %r5; add.u32 %r3, %r3, %r6;
"""


@case(REDUCE + STORE)
def barrier_reductions(text):
    out, _ = run(text, [words()], 64, np.uint32, threads=64)
    np.testing.assert_array_equal(out, 5 + 59 + 1000)


COPY = """shl.b32 %r4, %r1, 4; mov.u32 %r5, buffer; add.u32 %r4, %r4, %r5; {copy}
{wait} bar.warp.sync -1; xor.b32 %r6, %r1, 1; shl.b32 %r6, %r6, 4; add.u32 %r6, %r6, %r5;
ld.shared.v4.u32 {{%r2, %r3, %r7, %r8}}, [%r6];
"""
STORE4 = address("p_out", 16) + "st.global.v4.u32 [%rd1], {%r2, %r3, %r7, %r8};"


def copied(copy, wait):
    return address("p_in", 16) + COPY.format(copy=copy, wait=wait) + STORE4


def swapped(data):
    return data.reshape(16, 2, 4)[:, ::-1].reshape(-1)


@case(copied("cp.async.cg.shared.global.L2::128B [%r4], [%rd1], 16; cp.async.commit_group;",
             "cp.async.wait_group 0;"), prelude=BUFFER)  # fmt: skip
def copy_in_a_group(text):
    data = words(128)
    np.testing.assert_array_equal(run(text, [data], 128, np.uint32)[0], swapped(data))


@case(copied("cp.async.ca.shared.global [%r4], [%rd1], 8; cp.async.ca.shared.global [%r4+8], "
             "[%rd1+8], 8, 4;", "cp.async.wait_all;"), prelude=BUFFER)  # fmt: skip
def copy_with_zero_fill(text):
    data = words(128)
    expected = data.reshape(32, 4).copy()
    expected[:, 3] = 0
    np.testing.assert_array_equal(run(text, [data], 128, np.uint32)[0], swapped(expected))


@case("setp.lt.u32 %p5, %r1, 4;\n" + copied("cp.async.cg.shared.global [%r4], [%rd1], 16, %p5;",
      "cp.async.wait_all;"), prelude=BUFFER)  # fmt: skip
def copy_ignoring_its_source(text):
    data = words(128)
    expected = data.reshape(32, 4).copy()
    expected[:4] = 0
    np.testing.assert_array_equal(run(text, [data], 128, np.uint32)[0], swapped(expected))
