"""Cases of ldmatrix, stmatrix, movmatrix and mma.sync: fragments made with numpy."""

import numpy as np
from ptx.snippet import address, case, run
from ptx.table_convert import fp8_value

BUFFER = ".shared .align 128 .b8 tile[2048];"
FILL = (
    address("p_in", 16)
    + """ld.global.v4.u32 {%r2, %r3, %r4, %r5}, [%rd1]; shl.b32 %r10, %r1, 4; mov.u32 %r11, tile;
add.u32 %r10, %r10, %r11; st.shared.v4.u32 [%r10], {%r2, %r3, %r4, %r5}; bar.warp.sync -1;
"""
)
KEEP = address("p_out", 16) + "st.global.v4.u32 [%rd1], {%r20, %r21, %r22, %r23};"
ZERO = "mov.u32 %r20, 0; mov.u32 %r21, 0; mov.u32 %r22, 0; mov.u32 %r23, 0;\n"
TILES = np.arange(256, dtype=np.uint16).reshape(4, 8, 8)


def fragments(tiles):
    """What lane l holds of 8x8 tiles of 16-bit elements: row l/4, columns 2(l%4) and the next."""
    return np.ascontiguousarray(tiles).view(np.uint32).reshape(-1, 32)


def expect(text, tiles):
    out, report = run(text, [TILES.reshape(-1).view(np.uint32)], 128, np.uint32)
    kept = out.reshape(32, 4).T
    wanted = fragments(tiles)
    np.testing.assert_array_equal(kept[: len(wanted)], wanted)
    return report


@case(FILL + "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r20, %r21, %r22, %r23}, [%r10];\n" + KEEP,
      prelude=BUFFER)  # fmt: skip
def load_four(text):
    assert expect(text, TILES).total_bank_conflicts == 0


@case(FILL + ZERO + "ldmatrix.sync.aligned.m8n8.x2.trans.shared::cta.b16 {%r20, %r21}, [%r10];\n"
      + KEEP, prelude=BUFFER)  # fmt: skip
def load_two_transposed(text):
    expect(text, TILES[:2].swapaxes(1, 2))


@case(FILL + ZERO + "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r20}, [%r10];\n"
      "movmatrix.sync.aligned.m8n8.trans.b16 %r20, %r20;\n" + KEEP, prelude=BUFFER)  # fmt: skip
def load_one_and_transpose(text):
    expect(text, TILES[:1].swapaxes(1, 2))


@case(FILL + "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r20, %r21, %r22, %r23}, [%r10];\n"
      "bar.warp.sync -1;\n"
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%r10], {%r20, %r21, %r22, %r23};\n"
      "bar.warp.sync -1;\nld.shared.v4.u32 {%r20, %r21, %r22, %r23}, [%r10];\n" + KEEP,
      prelude=BUFFER)  # fmt: skip
def store_transposed(text):
    out, _ = run(text, [TILES.reshape(-1).view(np.uint32)], 128, np.uint32)
    np.testing.assert_array_equal(out.view(np.uint16).reshape(4, 8, 8), TILES.swapaxes(1, 2))


def bits(values, kind):
    """Float or integer values as the bits of a type, and the values they stand for."""
    if kind == "f16":
        half = values.astype(np.float16)
        return half.view(np.uint16), half.astype(np.float64)
    if kind in ("bf16", "tf32"):
        shift = 16 if kind == "bf16" else 13
        word = values.astype(np.float32).view(np.uint32) >> shift << shift
        code = (word >> 16).astype(np.uint16) if kind == "bf16" else word
        return code, word.view(np.float32).astype(np.float64)
    if kind in ("e4m3", "e5m2"):
        code = (np.abs(values * 40).astype(np.int64) % 100).astype(np.uint8)
        return code, np.vectorize(lambda c: fp8_value(int(c), kind))(code)
    code = (values * 30).astype(np.int8)
    return code.view(np.uint8), (code.view(np.uint8) if kind == "u8" else code).astype(np.float64)


def a_registers(codes):
    """A [16, K] as [lanes, registers]: rows g and g + 8, then the upper half of each K step."""
    packed = 4 // codes.itemsize
    steps = codes.shape[1] // (4 * packed)
    parts = codes.reshape(2, 8, steps, 4, packed).transpose(1, 3, 2, 0, 4)
    return np.ascontiguousarray(parts).reshape(32, -1).view(np.uint32)


def b_registers(codes):
    """B [K, 8] as [lanes, registers]."""
    packed = 4 // codes.itemsize
    parts = codes.T.reshape(8, -1, 4, packed).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(parts).reshape(32, -1).view(np.uint32)


def product_body(shape, kinds, a_count, b_count, d_count):
    """Load the registers of A, B, C (12 words a lane), multiply, store D."""
    names = [f"%r{20 + i}" for i in range(12)]
    loads = "".join(
        f"ld.global.v4.u32 {{{', '.join(names[i : i + 4])}}}, [%rd1+{4 * i}];\n" for i in (0, 4, 8)
    )

    def group(first, count):
        return "{" + ", ".join(names[first : first + count]) + "}"

    mma = f"mma.sync.aligned.{shape}.row.col.{kinds} {group(8, d_count)}, {group(0, a_count)}, "
    mma += f"{group(4, b_count)}, {group(8, d_count)};\n"
    return address("p_in", 48) + loads + mma + address("p_out", 16) + (
        f"st.global.v4.u32 [%rd1], {group(8, 4)};"
    )  # fmt: skip


def product_case(depth, kinds, seed=0):
    """Register a case of mma.m16n8k<depth> and check it against numpy."""
    d_kind, a_kind, b_kind, _ = kinds.split(".")
    rng = np.random.default_rng(seed)
    a, a_values = bits(rng.standard_normal((16, depth)), a_kind)
    b, b_values = bits(rng.standard_normal((depth, 8)), b_kind)
    size = {"f16": 2, "f32": 4, "s32": 4}[d_kind]
    dtype = {"f16": np.float16, "f32": np.float32, "s32": np.int32}[d_kind]
    c = (rng.standard_normal((16, 8)) * 10).astype(dtype)
    a_words, b_words = a_registers(a), b_registers(b)

    def check(text):
        words = np.zeros((32, 12), np.uint32)
        words[:, : a_words.shape[1]] = a_words
        words[:, 4 : 4 + b_words.shape[1]] = b_words
        held = np.ascontiguousarray(c.reshape(2, 8, 4, 2).transpose(1, 2, 0, 3)).reshape(32, 4)
        words[:, 8 : 8 + size] = held.view(np.uint32)
        out, _ = run(text, [words.reshape(-1)], 128, np.uint32)
        kept = np.ascontiguousarray(out.reshape(32, 4)[:, :size]).view(dtype).reshape(8, 4, 2, 2)
        expected = a_values @ b_values + c
        got = kept.transpose(2, 0, 1, 3).reshape(16, 8)
        np.testing.assert_allclose(got, expected, rtol=1e-3 if size == 2 else 1e-6, atol=1e-4)

    check.__name__ = f"mma_k{depth}_{kinds}"
    body = product_body(f"m16n8k{depth}", kinds, a_words.shape[1], b_words.shape[1], size)
    case(body)(check)


for depth, kinds in (
    (16, "f32.f16.f16.f32"), (16, "f32.bf16.bf16.f32"), (16, "f16.f16.f16.f16"),
    (8, "f32.f16.f16.f32"), (8, "f32.bf16.bf16.f32"), (8, "f32.tf32.tf32.f32"),
    (4, "f32.tf32.tf32.f32"), (32, "f32.e4m3.e4m3.f32"), (32, "f32.e5m2.e4m3.f32"),
    (32, "s32.s8.s8.s32"), (32, "s32.u8.s8.s32"), (16, "s32.s8.s8.s32"),
):  # fmt: skip
    product_case(depth, kinds)
