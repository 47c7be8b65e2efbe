"""Number formats numpy lacks (bf16, fp8, tf32), and directed rounding, by bits."""

import numpy as np

SIGN32, NAN32 = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
LARGEST_SUBNORMAL = np.uint32(0x7FFFFF)
FP8 = {"e4m3": (4, 3, 7, 448.0), "e5m2": (5, 2, 15, 57344.0)}


def flush(x):
    """float32 with subnormals replaced by zeros of their sign; x itself if there are none."""
    bits = x.view(np.uint32)
    rank = bits & NAN32
    rank -= 1
    if np.minimum.reduce(rank, axis=None) >= LARGEST_SUBNORMAL:
        return x
    return np.where(rank < LARGEST_SUBNORMAL, bits & SIGN32, bits).view(np.float32)


def bf16_to_f32(bits):
    """bfloat16 bits (uint16) to float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(x, mode="rn"):
    """float32 to bfloat16 bits, to nearest even or toward zero (rz); NaN becomes 0x7FFF."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = bits if mode == "rz" else bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    return np.where(np.isnan(x), np.uint32(0x7FFF), rounded >> 16).astype(np.uint16)


def f32_to_f16(x, mode="rn"):
    """float32 or float64 to float16 bits; NaN becomes 0x7FFF."""
    half = np.asarray(x).astype(np.float16)
    if mode == "rz":
        beyond = np.abs(half.astype(np.float64)) > np.abs(x)
        half = np.where(beyond, np.nextafter(half, np.float16(0)), half)
    return np.where(np.isnan(x), np.uint16(0x7FFF), half.view(np.uint16))


def f32_to_tf32(x, mode="rna"):
    """float32 to tf32 bits in uint32: to nearest (ties away or even), or toward zero."""
    bits = x.view(np.uint32)
    if mode == "rna":
        rounded = bits + np.uint32(0x1000)
    elif mode == "rz":
        rounded = bits
    else:
        rounded = bits + (((bits >> 13) & 1) + np.uint32(0xFFF))
    special = (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    return np.where(special, np.where(np.isnan(x), NAN32, bits), rounded & np.uint32(0xFFFFE000))


def fp8_values(kind):
    """The float32 value of each of the 256 codes."""
    exponent_bits, mantissa_bits, bias, _ = FP8[kind]
    code = np.arange(256)
    mantissa = code & ((1 << mantissa_bits) - 1)
    exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1)
    normal = np.ldexp(1 + mantissa / (1 << mantissa_bits), exponent - bias)
    tiny = np.ldexp(mantissa / (1 << mantissa_bits), 1 - bias)
    value = np.where(exponent == 0, tiny, normal)
    if kind == "e4m3":
        value = np.where((code & 0x7F) == 0x7F, np.nan, value)
    else:
        value = np.where((code & 0x7C) == 0x7C, np.where(mantissa, np.nan, np.inf), value)
    return np.where(code & 0x80, -value, value).astype(np.float32)


TABLES = {kind: fp8_values(kind) for kind in FP8}


def to_fp8(x, kind):
    """float32 or float64 to fp8 codes, to nearest even, saturated to the largest finite value."""
    largest = FP8[kind][3]
    values = TABLES[kind][:128].astype(np.float64)
    values = values[values <= largest]
    magnitude = np.minimum(np.abs(np.nan_to_num(x.astype(np.float64), posinf=np.inf)), largest)
    middle = (values[1:] + values[:-1]) / 2
    below, above = np.searchsorted(middle, magnitude, "left"), np.searchsorted(
        middle, magnitude, "right"
    )  # fmt: skip
    code = np.where(below % 2 == 0, below, above)
    code = np.where(np.isnan(x), 0x7F, code | np.where(np.signbit(x), 0x80, 0))
    return code.astype(np.uint8)


def exact_sum(p, c):
    """p + c of float64 rounded to odd, so that one more rounding gives the right float32."""
    total = p + c
    bits = total.view(np.int64)
    halfway = (bits & 0x1FFFFFFF) == 0x10000000
    if not (halfway.any() or (np.abs(total) < 2.0**-126).any()):
        return total
    return to_odd(p, c, total)


def to_odd(p, c, total):
    """The float64 sum `total` of p and c, rounded to odd where it is inexact."""
    back = total - p
    error = (p - (total - back)) + (c - back)
    inexact = (error != 0) & np.isfinite(total)
    bits = total.view(np.int64)
    away = (error > 0) == (total > 0)
    even = inexact & ((bits & 1) == 0)
    return (bits + np.where(even, np.where(away, 1, -1), 0)).view(np.float64)


def round_f32(x, mode):
    """float64 to float32 in a rounding mode rn, rz, rm or rp."""
    y = x.astype(np.float32)
    if mode in ("rn", "rna"):
        return y
    wide = y.astype(np.float64)
    zero, up, down = np.float32(0), np.float32(np.inf), np.float32(-np.inf)
    if mode == "rz":
        return np.where(np.abs(wide) > np.abs(x), np.nextafter(y, zero), y)
    if mode == "rm":
        return np.where(wide > x, np.nextafter(y, down), y)
    return np.where(wide < x, np.nextafter(y, up), y)
