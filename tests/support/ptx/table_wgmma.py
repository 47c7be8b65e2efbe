"""Cases of wgmma: tiles brought in by TMA in every swizzle, products checked with numpy."""

import numpy as np
from ptx.snippet import address, case, run
from ptx.table_convert import fp8_value
from ptx.table_matrix import bits

from tvm_flash.ptx_interpreter import TensorMap

A_AT, B_AT = 0, 16384
PRELUDE = ".shared .align 1024 .b8 tile[32768];\n.shared .align 8 .b64 bar;"
CODE = {0: 0, 128: 1, 64: 2, 32: 3}
NAMES = {"f16": "float16", "bf16": "bfloat16", "tf32": "tfloat32", "e4m3": "float8_e4m3fn"}
START = """setp.eq.u32 %p1, %r1, 0;
@!%p1 bra ready;
mbarrier.init.shared.b64 [bar], 1; fence.proxy.async;
mbarrier.arrive.expect_tx.shared.b64 _, [bar], {bytes};
mov.b64 %rd5, p_a; cvta.param.u64 %rd5, %rd5; mov.b64 %rd6, p_b; cvta.param.u64 %rd6, %rd6;
{copies}
ready: bar.sync 0;
again: mbarrier.try_wait.parity.shared.b64 %p2, [bar], 0; @!%p2 bra again;
setp.ne.u32 %p3, %r1, %r1;
"""
TMA = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
PARAMS = ("out", "a:map", "b:map")


def load(place, rd, boxes):
    """TMA instructions for (offset, x, y) boxes."""
    return "".join(
        f"{TMA} [tile+{place + offset}], [{rd}, {{{x}, {y}}}], [bar];\n" for offset, x, y in boxes
    )


def descriptor(name, place, leading, stride, swizzle):
    """A 64-bit descriptor of the tile at `place` in a register."""
    high = CODE[swizzle] << 62 | (stride >> 4) << 32 | (leading >> 4) << 16
    return (
        f"mov.u64 {name}, tile; add.u64 {name}, {name}, {place}; shr.u64 {name}, {name}, 4;\n"
        f"or.b64 {name}, {name}, {high};\n"
    )


def accumulators(count, start=20):
    return "{" + ", ".join(f"%f{start + i}" for i in range(count)) + "}"


def store_f32(columns):
    """Every lane stores its registers to out [lane, columns / 2]."""
    body = address("p_out", columns * 2)
    return body + "".join(
        f"st.global.f32 [%rd1+{4 * i}], %f{20 + i};\n" for i in range(columns // 2)
    )


def result_of(out, columns):
    """The [64, columns] matrix of what the lanes stored."""
    parts = out.reshape(4, 8, 4, columns // 8, 2, 2)
    return parts.transpose(0, 4, 1, 3, 2, 5).reshape(64, columns)


def tile_map(array, kind, box, swizzle):
    def make(memory):
        size = array.itemsize
        return TensorMap(
            memory.array("tensor", array), NAMES[kind], array.shape[::-1],
            (array.shape[1] * size,), box, swizzle,
        )  # fmt: skip

    return make


def major_case(name, kind, swizzle, columns=16, negate=False):
    """A and B K-major in one swizzle; K fills the swizzle's width."""
    size = {"f16": 2, "bf16": 2, "tf32": 4, "e4m3": 1}[kind]
    width = swizzle or 32
    depth = width // size
    rng = np.random.default_rng(swizzle)
    a, a_values = bits(rng.standard_normal((64, depth)), kind)
    b, b_values = bits(rng.standard_normal((columns, depth)), kind)
    inner = (swizzle or 16) // size

    def boxes(rows):
        return [(i * rows * (swizzle or 16), i * inner, 0) for i in range(depth // inner)]

    body = START.format(
        bytes=(64 + columns) * width,
        copies=load(A_AT, "%rd5", boxes(64)) + load(B_AT, "%rd6", boxes(columns)),
    )
    stride = 8 * swizzle or 128
    body += descriptor("%rd10", A_AT, 64 * 16, stride, swizzle)
    body += descriptor("%rd11", B_AT, columns * 16, stride, swizzle)
    body += "wgmma.fence.sync.aligned;\n"
    flags = "-1, 1" if negate else "1, 1"
    turns = ", 0, 0" if size == 2 else ""
    for step in range(width // 32):
        scale = "%p3" if step == 0 else "1"
        body += (
            f"wgmma.mma_async.sync.aligned.m64n{columns}k{32 // size}.f32.{kind}.{kind} "
            f"{accumulators(columns // 2)}, %rd10, %rd11, {scale}, {flags}{turns};\n"
            "add.u64 %rd10, %rd10, 2; add.u64 %rd11, %rd11, 2;\n"
        )
    body += "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n"

    def check(text, threads=128, **options):
        maps = [tile_map(x, kind, (inner, len(x)), swizzle) for x in (a, b)]
        out, _ = run(text, maps, 128 * columns // 2, np.float32, threads=threads, **options)
        expected = a_values @ b_values.T * (-1 if negate else 1)
        np.testing.assert_allclose(result_of(out, columns), expected, rtol=1e-5, atol=1e-4)

    check.__name__ = name
    case(body + store_f32(columns), params=PARAMS, prelude=PRELUDE)(check)


for kind, swizzle in (("f16", 0), ("f16", 32), ("bf16", 64), ("f16", 128), ("tf32", 128),
                      ("e4m3", 128), ("bf16", 0)):  # fmt: skip
    major_case(f"wgmma_{kind}_swizzle_{swizzle}", kind, swizzle)
major_case("wgmma_negated", "f16", 128, columns=24, negate=True)


def turned_case(name, swizzle, in_registers):
    """B MN-major [16, 64]; A K-major from shared memory, or all ones from registers."""
    rng = np.random.default_rng(3)
    a, a_values = bits(rng.standard_normal((64, 16)), "f16")
    b, b_values = bits(rng.standard_normal((16, 64)), "f16")
    inner = swizzle // 2
    boxes = [(i * 16 * swizzle, i * inner, 0) for i in range(64 // inner)]
    body = START.format(
        bytes=64 * 32 + 16 * 128, copies=load(A_AT, "%rd5", [(0, 0, 0)]) + load(B_AT, "%rd6", boxes)
    )
    body += descriptor("%rd10", A_AT, 16, 8 * 32, 32)
    body += descriptor("%rd11", B_AT, 16 * swizzle, 8 * swizzle, swizzle)
    left = "%rd10"
    if in_registers:
        left = "{%r50, %r51, %r52, %r53}"
        body += "".join(f"mov.b32 %r{50 + i}, 0x3C003C00;\n" for i in range(4))
    body += "".join(f"mov.f32 %f{20 + i}, 0f3F800000;\n" for i in range(32))
    turns = "1" if in_registers else "0, 1"
    body += (
        "wgmma.fence.sync.aligned;\n"
        f"wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {accumulators(32)}, {left}, %rd11, "
        f"1, 1, 1, {turns};\n"
        "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n"
    )

    def check(text):
        maps = [tile_map(a, "f16", (16, 64), 32), tile_map(b, "f16", (inner, 16), swizzle)]
        out, _ = run(text, maps, 128 * 32, np.float32, threads=128)
        left_values = np.ones((64, 16)) if in_registers else a_values
        expected = left_values @ b_values + 1
        np.testing.assert_allclose(result_of(out, 64), expected, rtol=1e-5, atol=1e-4)

    check.__name__ = name
    case(body + store_f32(64), params=PARAMS, prelude=PRELUDE)(check)


for swizzle in (32, 64, 128):
    turned_case(f"wgmma_turned_swizzle_{swizzle}", swizzle, in_registers=swizzle == 128)
assert fp8_value(0x38, "e4m3") == 1.0
