"""Each check: a kernel that breaks its rule is caught and told where; mended, it passes."""

import numpy as np
import pytest
from ptx import table_barriers, table_copies, table_wgmma
from ptx.snippet import address, kernel, run
from ptx.table_memory import LOAD, STORE, words

from tvm_flash import ptx_interpreter as ptx

COPY = STORE.replace("%r3", "%r2")


def caught(error, text, *inputs, says=(), shape=64, threads=32, **options):
    """The message of the error, which must name kernel, line, block and thread."""
    with pytest.raises(error) as info:
        run(text, list(inputs) or [words(64)], shape, np.uint32, threads=threads, **options)
    message = str(info.value)
    for word in ("k, PTX line", "`", "block (", "thread (", *says):
        assert word in message, message
    return message


def fine(text, *inputs, shape=32, threads=32, **options):
    return run(text, list(inputs) or [words(64)], shape, np.uint32, threads=threads, **options)


def without(text, part):
    assert part in text
    return text.replace(part, "", 1)


def test_read_out_of_bounds():
    text = kernel(LOAD + COPY)
    fine(text)
    message = caught(ptx.OutOfBounds, text, words(31), says=("'in0'", "offset 124", "thread (31"))
    assert "Look at" in message


def test_write_out_of_bounds():
    caught(ptx.OutOfBounds, kernel(LOAD + COPY), shape=31, says=("'out'", "offset 124"))


def test_write_to_an_input():
    swapped = kernel(LOAD + address("p_in", 4) + "st.global.b32 [%rd1], %r2;")
    caught(ptx.OutOfBounds, swapped, says=("read-only", "'in0'"))


def test_shared_out_of_bounds():
    body = "mov.u32 %r2, tile;\nst.shared.u32 [%r2+{}], %r1;\n" + COPY
    prelude = ".shared .align 4 .b8 tile[8];"
    fine(kernel(body.format(4), prelude=prelude), threads=1)
    caught(ptx.OutOfBounds, kernel(body.format(8), prelude=prelude), says=("8 bytes",), threads=1)


def test_null_pointers():
    caught(ptx.OutOfBounds, kernel("mov.u64 %rd1, 0;\nld.global.u32 %r2, [%rd1];\n" + COPY))
    caught(ptx.OutOfBounds, kernel("mov.u32 %r3, 0;\nld.shared.u32 %r2, [%r3];\n" + COPY))


def test_misaligned():
    body = address("p_in", 4) + "ld.global.v2.u32 {{%r2, %r3}}, [%rd1{}];\n" + COPY
    caught(ptx.Misaligned, kernel(body.format("")), says=("8-byte", "'in0'", "thread (1,"))
    fine(kernel(body.format("").replace("1, 4, %rd1", "1, 8, %rd1", 1)))


def test_uninitialised_global():
    body = address("p_out", 4) + "ld.global.u32 %r2, [%rd1];\n" + COPY
    caught(ptx.Uninitialised, kernel(body), says=("'out'", "offset 0"))
    fine(kernel(body), out=lambda memory: memory.zeros("out", 32, np.uint32))


def test_uninitialised_shared():
    text = table_barriers.exchange("bar.sync 0;", partner=32)
    text = kernel(text, prelude=table_barriers.BUFFER)
    fine(text, shape=64, threads=64)
    caught(ptx.Uninitialised, text, words(64), says=("shared offset 128",))
    fine(text, checks=ptx.Checks(uninitialised=False))


def test_unwritten_output():
    memory = ptx.DeviceMemory()
    source, out = memory.array("in", words()), memory.empty("out", 40, np.uint32)
    (entry,) = ptx.parse(kernel(LOAD + COPY)).kernels.values()
    ptx.launch(entry, 1, 32, [out, source], memory)
    assert out.unwritten() == (32, 128)
    out.expect_written(np.arange(160) < 128)
    with pytest.raises(ptx.Uninitialised, match=r"'out': 32 of 160 bytes.*offset 128"):
        out.expect_written()


def test_shared_race_across_warps():
    good = table_barriers.exchange("bar.sync 0;")
    text = kernel(good, prelude=table_barriers.BUFFER)
    fine(text, shape=64, threads=64)
    broken = without(text, "bar.sync 0;")
    # The second warp finds the first one's data written, and no barrier in between.
    options = {"shape": 64, "threads": 64, "checks": ptx.Checks(uninitialised=False)}
    caught(ptx.SharedRace, broken, says=("races with", "barrier"), **options)
    fine(broken, shape=64, threads=64, checks=ptx.Checks(uninitialised=False, races=False))


def test_shared_race_inside_a_warp():
    text = kernel(table_barriers.exchange("bar.warp.sync -1;", 1), prelude=table_barriers.BUFFER)
    fine(text)
    caught(ptx.SharedRace, without(text, "bar.warp.sync -1;"), says=("thread (1, 0, 0)",))


def test_shared_race_of_one_instruction():
    body = "st.shared.u32 [cell], {};\nmov.u32 %r2, 0;\n" + COPY
    prelude = ".shared .align 4 .b8 cell[4];"
    caught(ptx.SharedRace, kernel(body.format("%r1"), prelude=prelude))
    fine(kernel(body.format("7"), prelude=prelude))  # all lanes write the same value


def test_named_barrier_orders_only_its_threads():
    body = table_barriers.producer("bar.arrive", "bar.sync")
    text = kernel(body, prelude=table_barriers.BUFFER)
    fine(text, shape=64, threads=64)
    half = text.replace("bar.sync 1, 64;", "bar.sync 2, 32;")
    half = half.replace("bar.arrive 1, 64;", "bar.arrive 1, 64; bar.sync 3, 32;")
    caught(ptx.SharedRace, half, shape=64, threads=64, checks=ptx.Checks(uninitialised=False))


FLAG = """setp.ge.u32 %p1, %r1, 32; @%p1 bra consumer; setp.ne.u32 %p2, %r1, 0; @%p2 bra done;
st.shared.u32 [cell], 41; st.{}.cta.shared.u32 [cell+4], 1; bra done;
consumer: ld.{}.cta.shared.u32 %r2, [cell+4]; setp.eq.u32 %p3, %r2, 0; @%p3 bra consumer;
ld.shared.u32 %r3, [cell];
done: bar.sync 0; add.u32 %r3, %r3, 1;
"""


def test_flags_order_threads():
    start = "st.shared.u32 [cell+4], 0;\nbar.sync 0;\n"
    prelude = ".shared .align 4 .b8 cell[8];"
    text = kernel(start + FLAG.format("release", "acquire") + STORE, prelude=prelude)
    out, _ = fine(text, shape=64, threads=64)
    assert (out[32:] == 42).all()
    relaxed = kernel(start + FLAG.format("relaxed", "relaxed") + STORE, prelude=prelude)
    caught(ptx.SharedRace, relaxed, threads=64, says=("read of shared offset 0",))


def test_global_race():
    text = kernel(LOAD + COPY)
    message = caught(ptx.GlobalRace, text, grid=2, says=("'out'", "block number"))
    assert "atomics" in message
    fine(text, grid=2, checks=ptx.Checks(global_races=False))
    add = kernel("ld.param.u64 %rd1, [p_out];\nred.global.add.u32 [%rd1], 1;", params=("out",))
    (entry,) = ptx.parse(add).kernels.values()
    memory = ptx.DeviceMemory()
    total = memory.zeros("out", 1, np.uint32)
    ptx.launch(entry, 3, 32, [total], memory)
    assert total.numpy()[0] == 96


def test_blocks_may_order_themselves():
    """Each block waits for its turn with acquire, and passes it on with release."""
    body = """ld.param.u64 %rd1, [p_out]; mov.u32 %r9, %ctaid.x;
turn: ld.{}.gpu.global.u32 %r2, [%rd1+4]; setp.ne.u32 %p2, %r2, %r9; @%p2 bra turn;
ld.global.u32 %r3, [%rd1]; add.u32 %r3, %r3, 5; st.global.u32 [%rd1], %r3;
red.{}.gpu.global.add.u32 [%rd1+4], 1;"""
    zeros = {"out": lambda memory: memory.zeros("out", 2, np.uint32), "threads": 1, "grid": 3}
    out, _ = run(kernel(body.format("acquire", "release"), params=("out",)), [], 2, "u4", **zeros)
    assert out.tolist() == [15, 3]
    with pytest.raises(ptx.GlobalRace):
        run(kernel(body.format("relaxed", "relaxed"), params=("out",)), [], 2, "u4", **zeros)


@pytest.mark.parametrize("part", ["cp.async.wait_group 0;", "cp.async.commit_group;"])
def test_small_copies_need_their_wait(part):
    copy = "cp.async.cg.shared.global [%r4], [%rd1], 16; cp.async.commit_group;"
    body = table_barriers.copied(copy, "cp.async.wait_group 0;")
    text = kernel(body, prelude=table_barriers.BUFFER)
    fine(text, words(128), shape=128)
    caught(ptx.AsyncHazard, without(text, part), words(128), shape=128, says=("in flight",))


def test_copy_destination_in_flight_is_not_written():
    body = address("p_in", 16) + (
        "mov.u32 %r4, buffer;\ncp.async.cg.shared.global [%r4], [%rd1], 16;\n"
        "st.shared.u32 [%r4], 5;\n"
    )
    text = kernel(body, prelude=table_barriers.BUFFER)
    caught(ptx.AsyncHazard, text, words(4), threads=1, says=("write to",))


def tile(finish=table_copies.READ_ALL + table_copies.STORE4):
    text = table_copies.tensor(0, 0, finish)
    return kernel(text, params=("out", "in:map"), prelude=table_copies.BUFFER)


def test_tile_needs_its_wait_fence_and_barrier():
    _, make = table_copies.matrix_map((10, 72), (64, 8), 128)
    text, options = tile(), {"shape": 256, "threads": 64}
    fine(text, make, **options)
    wait = table_copies.WAIT.format(phase=0)
    caught(ptx.AsyncHazard, without(text, wait), make, says=("in flight",), **options)
    unfenced = without(text, "fence.mbarrier_init.release.cluster;")
    caught(ptx.AsyncHazard, unfenced, make, says=("fence",), **options)
    fine(unfenced, make, checks=ptx.Checks(init_fence=False), **options)
    unordered = text.replace("ready: bar.sync 0;", "ready:")
    with pytest.raises(ptx.InterpreterError, match="mbarrier"):
        fine(unordered, make, **options)


def test_mbarrier_is_initialised_once():
    _, make = table_copies.matrix_map((10, 72), (64, 8), 128)
    every = tile().replace("@!%p1 bra ready;", "@!%p1 bra twin;")
    every = every.replace(
        "ready: bar", "bra ready;\ntwin: mbarrier.init.shared.b64 [bar], 1;\nready: bar"
    )
    caught(ptx.AsyncHazard, every, make, shape=256, says=("initialised already",))


def test_wrong_byte_count_is_a_deadlock():
    _, make = table_copies.matrix_map((10, 72), (64, 8), 128)
    with pytest.raises(ptx.Deadlock, match="16 bytes pending"):
        fine(tile().replace("[bar], 1024", "[bar], 1040"), make, shape=256, threads=64)


def test_store_needs_a_proxy_fence_and_a_wait():
    copy = "cp.async.bulk.global.shared::cta.bulk_group [%rd4], [tile], 128;"
    body = table_copies.line(copy, "add.u32 %r3, %r3, 5;")
    text = kernel(body, prelude=table_copies.BUFFER)
    fine(text)
    caught(ptx.AsyncHazard, without(text, "fence.proxy.async.shared::cta;"), says=("proxy",))
    unfinished = without(without(text, "cp.async.bulk.wait_group.read 0;"),
                         "cp.async.bulk.wait_group 0;")  # fmt: skip
    caught(ptx.AsyncHazard, unfinished, says=("exits",))


def product():
    """The first wgmma case: its text and what runs it."""
    from ptx.snippet import CASES

    return next(c for c in CASES if c.name == "wgmma_f16_swizzle_128")


@pytest.mark.parametrize(
    "part", ["wgmma.fence.sync.aligned;", "wgmma.wait_group.sync.aligned 0;",
             "wgmma.commit_group.sync.aligned;"]
)  # fmt: skip
def test_wgmma_needs_fence_commit_and_wait(part):
    item = product()
    with pytest.raises(ptx.AsyncHazard, match="PTX line"):
        item.check(without(item.text, part))


def test_wgmma_needs_its_tile():
    item = product()
    again = "again: mbarrier.try_wait.parity.shared.b64 %p2, [bar], 0; @!%p2 bra again;"
    with pytest.raises(ptx.AsyncHazard, match="in flight"):
        item.check(without(item.text, again))
    assert table_wgmma.TMA in item.text


def test_wgmma_needs_a_proxy_fence_after_plain_stores():
    item = product()
    touch = "@%p1 ld.shared.u32 %r2, [tile];\n@%p1 st.shared.u32 [tile], %r2;\n{}bar.sync 0;\n"
    first = "wgmma.fence.sync.aligned;"
    item.check(item.text.replace(first, touch.format("fence.proxy.async;\n") + first))
    with pytest.raises(ptx.AsyncHazard, match="proxy fence"):
        item.check(item.text.replace(first, touch.format("") + first))


WRITER = """ret;
writer: mbarrier.try_wait.parity.shared.b64 %p8, [done], 0; @!%p8 bra writer;
st.shared.u32 [tile+16384], 7; ret;
}"""


def test_each_warp_must_have_waited_for_its_wgmma():
    """A fifth warp overwrites the tile once thread 0, or one lane of each warp, has said so."""
    item = product()
    text = item.text.replace(".b64 bar;", ".b64 bar;\n.shared .align 8 .b64 done;")
    text = text.replace("ready:", "ready: setp.ge.u32 %p9, %r1, 128; and.b32 %r9, %r1, {mask};\n"
                        "setp.eq.u32 %p10, %r9, 0;").replace("ret;\n}", WRITER)  # fmt: skip
    text = text.replace("wgmma.fence", "@%p9 bra writer;\nwgmma.fence", 1)
    text = text.replace("wait_group.sync.aligned 0;", "wait_group.sync.aligned 0;\n"
                        "@%p10 mbarrier.arrive.shared.b64 _, [done];")  # fmt: skip

    def version(mask, count):
        init = "mbarrier.init.shared.b64 [bar], 1;"
        return text.replace("{mask}", str(mask)).replace(
            init, f"{init} mbarrier.init.shared.b64 [done], {count};"
        )

    item.check(version(31, 4), threads=160)
    with pytest.raises(ptx.SharedRace, match="races with a read"):
        item.check(version(127, 1), threads=160)
    item.check(version(127, 1), threads=160, checks=ptx.Checks(warp_wait=False))


def test_deadlock_names_who_waits_where():
    text = kernel("setp.eq.u32 %p1, %r1, 3;\n@%p1 bra out;\nbar.sync 0, 64;\nout:\n")
    with pytest.raises(ptx.Deadlock, match=r"31 lanes.*PTX line \d+: `bar.sync 0, 64`"):
        fine(text)


def test_collective_in_a_branch():
    text = kernel(LOAD + "setp.lt.u32 %p1, %r1, 7;\n@%p1 bra skip;\n"
                  "shfl.sync.bfly.b32 %r2, %r2, 1, 31, -1;\nskip:\n" + COPY)  # fmt: skip
    caught(ptx.Deadlock, text, says=("member mask",))


def test_trap_and_unknown_instructions():
    caught(
        ptx.InterpreterError, kernel("setp.eq.u32 %p1, %r1, 9;\n@%p1 trap;"), says=("(9, 0, 0)",)
    )
    with pytest.raises(ptx.UnsupportedInstruction, match=r"PTX line \d+: `frobnicate.u32"):
        fine(kernel("frobnicate.u32 %r1, %r1;"))
