"""Cases of loads, stores, address spaces, branches and atomics."""

import numpy as np
from ptx.snippet import address, case, run

LOAD = address("p_in", 4) + "ld.global.b32 %r2, [%rd1];\n"
STORE = address("p_out", 4) + "st.global.b32 [%rd1], %r3;"


def words(count=32, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << 32, count, np.uint32)


@case(address("p_in", 16) + "prefetch.global.L2 [%rd1];\nprefetchu.L1 [%rd1];\n"
      "ld.global.nc.L1::no_allocate.v4.u32 {%r2, %r3, %r4, %r5}, [%rd1];\n"
      + address("p_out", 16) + "st.global.v4.u32 [%rd1], {%r5, %r4, %r3, %r2};")  # fmt: skip
def vector_access(text):
    data = words(128)
    out, report = run(text, [data], 128, np.uint32)
    np.testing.assert_array_equal(out.reshape(32, 4), data.reshape(32, 4)[:, ::-1])
    assert report.sectors["read"]["in0"] == 16
    assert report.bytes_read["in0"] == report.bytes_written["out"] == 512


@case(address("p_in", 1) + "ldu.global.s8 %r2, [%rd1];\nld.global.u8 %r3, [%rd1];\n"
      "ld.global.s8 %h1, [%rd1];\ncvt.s32.s16 %r4, %h1;\nadd.s32 %r3, %r3, %r4;\n"
      "sub.s32 %r3, %r3, %r2;\n" + STORE)  # fmt: skip
def narrow_loads_extend(text):
    data = np.arange(100, 132).astype(np.uint8)
    out, _ = run(text, [data], 32, np.uint32)
    np.testing.assert_array_equal(out, data)


@case(address("p_in", 8) + "ld.global.v2.f32 {%f1, %f2}, [%rd1];\nadd.f32 %f3, %f1, %f2;\n"
      "st.shared.f32 [buffer], %f3;\nld.shared.f32 %f4, [buffer+0];\n"
      "cvta.shared.u64 %rd5, 0;\nmov.u64 %rd6, buffer;\ncvta.shared.u64 %rd6, %rd6;\n"
      "isspacep.shared %p1, %rd6;\nisspacep.global %p2, %rd6;\nselp.u32 %r3, 1, 0, %p1;\n"
      "selp.u32 %r4, 2, 0, %p2;\nor.b32 %r3, %r3, %r4;\nld.f32 %f5, [%rd6];\n"
      "cvta.to.shared.u64 %rd7, %rd6;\ncvt.u32.u64 %r5, %rd7;\n"
      "mapa.shared::cluster.u32 %r5, %r5, 0;\n"
      "ld.shared::cluster.f32 %f6, [%r5];\nadd.f32 %f5, %f5, %f6;\n"
      + address("p_out", 8) + "st.global.v2.b32 [%rd1], {%f5, %r3};",
      prelude=".shared .align 16 .b8 buffer[16];")  # fmt: skip
def generic_shared_addresses(text):
    data = np.array([1.5, 2.0], np.float32)
    out, _ = run(text, [data], 2, np.float32, threads=1)
    assert out[0] == 7.0 and out.view(np.uint32)[1] == 1


@case(".local .align 8 .b8 stack[32];\n.reg .b64 top;\nmov.u64 top, stack;\n"
      "cvta.local.u64 %rd5, top;\n"
      + LOAD + "st.local.u32 [stack+8], %r2;\nld.u32 %r4, [%rd5+8];\n"
      "and.b32 %r5, %r1, 1;\nsetp.eq.u32 %p1, %r5, 0;\nadd.s64 %rd6, %rd5, 8;\n"
      "selp.b64 %rd7, %rd6, %rd1, %p1;\nld.u32 %r5, [%rd7];\nsub.u32 %r3, %r4, %r5;\n"
      "ld.const.u32 %r6, [table+4];\nadd.u32 %r3, %r3, %r6;\nld.global.u32 %r7, [offset];\n"
      "add.u32 %r3, %r3, %r7;\n" + STORE,
      prelude=".const .align 4 .u32 table[2] = {7, 9};\n.global .u32 offset = 30;")  # fmt: skip
def local_constant_and_mixed_addresses(text):
    out, _ = run(text, [words()], 32, np.uint32)
    np.testing.assert_array_equal(out, 39)


FUNCTION = """.func (.param .b32 result) square(.param .b32 x, .param .b32 y)
{ .reg .b32 t<4>; ld.param.u32 t1, [x]; setp.eq.u32 q, t1, 3; .reg .pred q;
mul.lo.u32 t2, t1, t1; ld.param.u32 t3, [y]; add.u32 t2, t2, t3;
st.param.b32 [result], t2; ret; }
"""
CALL = """{ .param .b32 a0; .param .b32 a1; .param .b32 r0; st.param.b32 [a0], %r2;
st.param.b32 [a1], %r1; call.uni (r0), square, (a0, a1); ld.param.b32 %r3, [r0]; }
"""


@case(LOAD + CALL + STORE, prelude=FUNCTION.replace("setp.eq.u32 q, t1, 3; .reg .pred q;", ""))
def calls_are_inlined(text):
    data = words()
    out, _ = run(text, [data], 32, np.uint32)
    np.testing.assert_array_equal(out, data * data + np.arange(32, dtype=np.uint32))


BRANCHES = """mov.u32 %r3, 0;
and.b32 %r4, %r1, 3;
brx.idx %r4, table;
table: .branchtargets zero, one, two, one;
zero: add.u32 %r3, %r3, 100; bra.uni loop;
one: add.u32 %r3, %r3, 10; bra loop;
two: @%p1 bra loop; nanosleep.u32 20; griddepcontrol.wait; pmevent 1;
loop: add.u32 %r3, %r3, 1; sub.u32 %r4, %r4, 1; setp.gt.s32 %p2, %r4, 0; @%p2 bra loop;
setp.eq.u32 %p3, %r1, 200; @%p3 trap; brkpt;
membar.gl; fence.acq_rel.gpu;
"""


@case("setp.ne.u32 %p1, %r1, %r1;\n" + BRANCHES + STORE + "\nsetp.gt.u32 %p4, %r1, 8;\n@%p4 exit;")
def branches_diverge_and_merge(text):
    out, report = run(text, [words()], 64, np.uint32, threads=64)
    kind = np.arange(64) & 3
    expected = np.choose(kind, [100, 10, 0, 10]) + np.maximum(kind, 1)
    np.testing.assert_array_equal(out, expected)
    assert "trap" not in report.coverage[0]


@case("discard.global.L2 [%rd1], 128;\napplypriority.global.L2::evict_normal [%rd1], 128;\n"
      "createpolicy.fractional.L2::evict_last.b64 %rd3, 1.0;\n" + LOAD +
      "add.u32 %r3, %r2, 1;\n" + address("p_out", 4)
      + "st.global.L2::cache_hint.b32 [%rd1], %r3, %rd3;")  # fmt: skip
def hints_are_ignored(text):
    data = words()
    out, _ = run(text, [data], 32, np.uint32)
    np.testing.assert_array_equal(out, data + 1)


ATOMICS = """ld.param.u64 %rd1, [p_out];
atom.global.add.u32 %r2, [%rd1], 2;
red.global.max.u32 [%rd1+4], %r1;
red.global.inc.u32 [%rd1+8], 5;
cvt.rn.f32.u32 %f1, %r1; red.relaxed.gpu.global.add.f32 [%rd1+12], %f1;
atom.global.exch.b32 %r4, [%rd1+16], %r1;
atom.global.cas.b32 %r5, [%rd1+20], 0, %r1;
mov.b32 %r6, 0x3C003C00; red.global.add.noftz.f16x2 [%rd1+24], %r6;
red.global.or.b32 [%rd1+28], 64; red.global.and.b32 [%rd1+28], 0x60;
red.global.xor.b32 [%rd1+28], 0;
cvt.u64.u32 %rd2, %r1; red.global.add.u64 [%rd1+32], %rd2;
red.global.add.v2.f32 [%rd1+40], {%f1, %f1};
mov.u32 %r9, cell; setp.eq.u32 %p1, %r1, 0;
@%p1 st.shared.u32 [cell], 0; bar.sync 0;
atom.shared.add.u32 %r7, [%r9], 3; bar.sync 0; ld.shared.u32 %r8, [cell];
@%p1 st.global.u32 [%rd1+48], %r8; red.global.dec.u32 [%rd1+52], 40;
red.global.min.s32 [%rd1+56], -3;
"""


@case(ATOMICS, params=("out",),
      prelude=".shared .align 4 .b8 cell[4];")  # fmt: skip
def atomics(text):
    out, report = run(text, [], 16, np.uint32, out=lambda m: m.zeros("out", 16, np.uint32))
    total = sum(range(32))
    assert out[0] == 64 and out[1] == 31 and out[8] == total and out[12] == 96
    assert out[2] == 32 % 6 and out.view(np.float32)[3] == total
    assert out[4] in range(32) and out[5] in range(32)
    assert out[6] == 0x50005000 and out[7] == 64  # 32.0 in both halves
    np.testing.assert_array_equal(out.view(np.float32)[10:12], total)
    assert out[13] == 40 - 31 + 0 and out.view(np.int32)[14] == -3
    assert report.atomics["out"] == 32 * 15
