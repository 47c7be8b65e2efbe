"""Rows of cvt."""

import math
from fractions import Fraction

import numpy as np
from ptx.snippet import Row
from ptx.table_floating import directed, finite, flushed, saturated
from ptx.table_integer import clamp, signed

INTEGERS = [f"{s}{n}" for n in (16, 32, 64) for s in "us"]
WHOLE = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


def limits(kind):
    bits = int(kind[1:])
    return (0, (1 << bits) - 1) if kind[0] == "u" else (-(1 << bits - 1), (1 << bits - 1) - 1)


def to_integer(kind, mode="rzi"):
    """Rounded to a whole number, saturated; NaN is 0 (2^63 for 64 bits)."""

    def run(a):
        if math.isnan(a):
            return 1 << 63 if kind[1:] == "64" else 0
        if math.isinf(a):
            return limits(kind)[a > 0]
        return clamp(WHOLE[mode](a), *limits(kind))

    return run


def half(x):
    """The bits of the nearest float16."""
    with np.errstate(over="ignore"):
        bits = int(np.float16(x).view(np.uint16))
    return 0x7FFF if math.isnan(x) else bits


def bfloat(x):
    """The bits of the nearest bfloat16."""
    if math.isnan(x):
        return 0x7FFF
    with np.errstate(over="ignore"):
        bits = int(np.float32(x).view(np.uint32))
    low, high = bits & 0xFFFF, bits >> 16
    return high + (low > 0x8000 or (low == 0x8000 and high & 1))


def tf32(x, ties):
    """The nearest tf32 as float32 bits."""
    bits = int(np.float32(x).view(np.uint32))
    low, high = bits & 0x1FFF, bits >> 13
    up = low > 0x1000 or (low == 0x1000 and (ties == "rna" or high & 1))
    return (high + up) << 13


def fp8_value(code, kind):
    """The value of an fp8 code, as the formats define it."""
    mantissa_bits, bias = (3, 7) if kind == "e4m3" else (2, 15)
    exponent, mantissa = code >> mantissa_bits & (127 >> mantissa_bits), code % (1 << mantissa_bits)
    if kind == "e4m3" and code & 127 == 127:
        return math.nan
    if kind == "e5m2" and exponent == 31:
        return math.nan if mantissa else math.copysign(math.inf, -1 if code & 128 else 1)
    scale = 1 << mantissa_bits
    value = (
        math.ldexp(mantissa / scale, 1 - bias)
        if exponent == 0
        else math.ldexp(1 + mantissa / scale, exponent - bias)
    )
    return -value if code & 128 else value


def fp8(x, kind):
    """The nearest finite fp8 code."""
    if math.isnan(x):
        return 0x7F
    codes = [c for c in range(128) if math.isfinite(fp8_value(c, kind))]
    top = fp8_value(codes[-1], kind)
    size = Fraction(min(abs(x), top))
    best = min(codes, key=lambda c: (abs(Fraction(fp8_value(c, kind)) - size), c & 1))
    return best | (128 if math.copysign(1, x) < 0 else 0)


def both(function):
    """Packed: the first source gives the upper half."""
    return lambda a, b: function(a) << 16 | function(b)


def halves(x):
    return [float(v) for v in np.array([x], np.uint32).view(np.float16)]


def pair_bits(low, high):
    return half(low) | half(high) << 16


LARGE = {"a": np.array([1e30, -1e30, 3e9, -3e9, 2.5, 3.5, -2.5, 0.0] * 32, np.float32)}
FITS = {"a": np.array([x for x in np.linspace(-60000, 60000, 256)], np.float32)}

ROWS = [
    *(Row(f"cvt.{to}.{kind} d, a;", f"{kind} -> {to}", lambda a: a)
      for to in INTEGERS for kind in INTEGERS if to != kind),
    *(Row(f"cvt.{kind}.s8 d, a;", f"b16 -> {kind}", lambda a: signed(a, 8))
      for kind in ("s32", "s64")),
    Row("cvt.u32.u8 d, a;", "b32 -> u32", lambda a: a & 255),
    Row("cvt.s8.s32 d, a;", "s32 -> s16", lambda a: signed(a, 8)),
    Row("cvt.sat.s16.s32 d, a;", "s32 -> s16", lambda a: clamp(a, -32768, 32767)),
    Row("cvt.sat.u8.s32 d, a;", "s32 -> u16", lambda a: clamp(a, 0, 255)),
    Row("cvt.sat.u32.s64 d, a;", "s64 -> u32", lambda a: clamp(a, 0, (1 << 32) - 1)),
    *(Row(f"cvt.{m}.{to}.f32 d, a;", f"f32 -> {to}", to_integer(to, m))
      for to in ("s32", "u32", "s64") for m in WHOLE),
    Row("cvt.rzi.s32.f32 d, a;", "f32 -> s32", to_integer("s32"), 0, LARGE),
    *(Row(f"cvt.rzi.{to}.f64 d, a;", f"f64 -> {to}", to_integer(to)) for to in ("s32", "u64")),
    Row("cvt.rni.s16.f16 d, a;", "f16 -> s16", to_integer("s16", "rni")),
    *(Row(f"cvt.rn.f32.{kind} d, a;", f"{kind} -> f32", Fraction) for kind in INTEGERS),
    *(Row(f"cvt.{m}.f32.{kind} d, a;", f"{kind} -> f32", directed(lambda a: Fraction(a), m))
      for m in ("rz", "rm", "rp") for kind in ("s32", "u64")),
    *(Row(f"cvt.rn.f64.{kind} d, a;", f"{kind} -> f64", Fraction)
      for kind in ("s32", "s64", "u64")),
    Row("cvt.rn.f16.s32 d, a;", "s32 -> b16", lambda a: half(a), 0,
        {"a": np.arange(-2000, 2096, 16, np.int32)}),
    Row("cvt.f64.f32 d, a;", "f32 -> f64", lambda a: a),
    Row("cvt.rn.f32.f64 d, a;", "f64 -> f32", lambda a: a),
    Row("cvt.rz.f32.f64 d, a;", "f64 -> f32", directed(lambda a: a, "rz"), 0, finite("f64", 1)),
    Row("cvt.f32.f16 d, a;", "f16 -> f32", lambda a: a),
    Row("cvt.f32.bf16 d, a;", "b16 -> b32", lambda a: a << 16),
    Row("cvt.rn.f16.f32 d, a;", "f32 -> b16", half),
    Row("cvt.rz.f16.f32 d, a;", "f32 -> f16", lambda a: trunc_half(a), 0, FITS),
    Row("cvt.rn.f16.f64 d, a;", "f64 -> b16", half),
    Row("cvt.rn.bf16.f32 d, a;", "f32 -> b16", bfloat),
    Row("cvt.rna.tf32.f32 d, a;", "f32 -> b32", lambda a: tf32(a, "rna"), 0, finite("f32", 1)),
    Row("cvt.rn.tf32.f32 d, a;", "f32 -> b32", lambda a: tf32(a, "rn"), 0, finite("f32", 1)),
    *(Row(f"cvt.{m}.f32.f32 d, a;", "f32 -> f32", lambda a, f=f: float(f(a)) + 0.0 * a, 0,
          finite("f32", 1)) for m, f in WHOLE.items()),
    Row("cvt.sat.f32.f32 d, a;", "f32 -> f32", saturated),
    Row("cvt.ftz.f32.f16 d, a;", "f16 -> f32", lambda a: a),
    Row("cvt.rn.ftz.f32.f64 d, a;", "f64 -> f32", lambda a: flushed(float(np.float32(a))), 0,
        {"a": np.array([1e-40, 1.0, -1e-44, 0.3] * 64)}),
    Row("cvt.rn.f16x2.f32 d, a, b;", "f32 f32 -> b32", both(half)),
    Row("cvt.rn.relu.f16x2.f32 d, a, b;", "f32 f32 -> b32",
        both(lambda x: half(x if math.isnan(x) or x > 0 else 0.0))),
    Row("cvt.rn.bf16x2.f32 d, a, b;", "f32 f32 -> b32", both(bfloat)),
    *(Row(f"cvt.rn.satfinite.{k}x2.f32 d, a, b;", "f32 f32 -> b16",
          lambda a, b, k=k: fp8(a, k) << 8 | fp8(b, k)) for k in ("e4m3", "e5m2")),
    Row("cvt.rn.satfinite.e4m3x2.f16x2 d, a;", "f16x2 -> b16",
        lambda a: fp8(halves(a)[1], "e4m3") << 8 | fp8(halves(a)[0], "e4m3")),
    *(Row(f"cvt.rn.f16x2.{k}x2 d, a;", "e4m3x2 -> b32",
          lambda a, k=k: pair_bits(fp8_value(a & 255, k), fp8_value(a >> 8, k)))
      for k in ("e4m3", "e5m2")),
]  # fmt: skip


def trunc_half(x):
    near = np.float16(x)
    return float(np.nextafter(near, np.float16(0)) if abs(float(near)) > abs(x) else near)
