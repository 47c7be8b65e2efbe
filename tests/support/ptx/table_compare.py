"""Rows of comparisons and of operations on pairs of 16-bit floats."""

import math
import operator

import numpy as np
from ptx.snippet import Row
from ptx.table_convert import bfloat, half, halves
from ptx.table_floating import flushed, largest, smallest

ORDERED = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
    "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip
UNSIGNED = {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}


def nans(a, b):
    return math.isnan(a) or math.isnan(b)


def ordered(test):
    return lambda a, b: not nans(a, b) and test(a, b)


def unordered(test):
    return lambda a, b: nans(a, b) or test(a, b)


def packed(function, unpack=halves, bits=half):
    """A function on both halves of packed registers."""

    def run(*registers):
        with np.errstate(all="ignore"):
            low, high = (function(*xs) for xs in zip(*map(unpack, registers), strict=True))
        return bits(float(low)) | bits(float(high)) << 16

    return run


def bfloats(x):
    bits = np.array([(x & 0xFFFF) << 16, x >> 16 << 16], np.uint32)
    return [float(v) for v in bits.view(np.float32)]


def single(function):
    return lambda *bits: bfloat(float(function(*(bfloats(b)[0] for b in bits))))


BINARY = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}
SAME = {n: np.array([3, 3, 4, 5] * 64, np.uint32) for n in "ab"}
rng = np.random.default_rng(5)
MILD = {n: rng.standard_normal(512).astype(np.float16).view(np.uint32) for n in "abc"}
MILD_BF = {n: (rng.standard_normal(512).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
           .view(np.uint32) for n in "abc"}  # fmt: skip

ROWS = [
    *(Row(f"setp.{n}.{t} d, a, b;", f"{t} {t} -> pred", f)
      for n, f in ORDERED.items() for t in ("s32", "u32", "s64")),
    Row("setp.eq.u32 d, a, b;", "u32 u32 -> pred", operator.eq, 0, SAME),
    *(Row(f"setp.{n}.u64 d, a, b;", "u64 u64 -> pred", f) for n, f in UNSIGNED.items()),
    Row("setp.lt.s16 d, a, b;", "s16 s16 -> pred", operator.lt),
    *(Row(f"setp.{n}.{t} d, a, b;", f"{t} {t} -> pred", ordered(f))
      for n, f in ORDERED.items() for t in ("f32", "f64")),
    *(Row(f"setp.{n}u.f32 d, a, b;", "f32 f32 -> pred", unordered(f)) for n, f in ORDERED.items()),
    Row("setp.num.f32 d, a, b;", "f32 f32 -> pred", lambda a, b: not nans(a, b)),
    Row("setp.nan.f32 d, a, b;", "f32 f32 -> pred", nans),
    Row("setp.gt.ftz.f32 d, a, 0f00000000;", "f32 -> pred", lambda a: flushed(a) > 0),
    Row("setp.lt.f16 d, a, b;", "f16 f16 -> pred", ordered(operator.lt)),
    Row("setp.lt.and.s32 d, a, b, c;", "s32 s32 pred -> pred", lambda a, b, c: a < b and c),
    Row("setp.lt.or.s32 d, a, b, !c;", "s32 s32 pred -> pred", lambda a, b, c: a < b or not c),
    Row("setp.lt.xor.s32 d, a, b, c;", "s32 s32 pred -> pred", lambda a, b, c: (a < b) != c),
    Row("setp.lt.and.s32 %p1|d, a, b, c;", "s32 s32 pred -> pred", lambda a, b, c: a >= b and c),
    Row("setp.gt.f16x2 %p1|d, a, b;", "f16x2 f16x2 -> pred",
        lambda a, b: halves(a)[1] > halves(b)[1]),
    Row("set.lt.u32.s32 d, a, b;", "s32 s32 -> u32", lambda a, b: -(a < b)),
    Row("set.gt.f32.f32 d, a, b;", "f32 f32 -> f32", lambda a, b: float(a > b)),
    Row("set.le.and.s32.u32 d, a, b, c;", "u32 u32 pred -> s32", lambda a, b, c: -(a <= b and c)),
    Row("set.gt.f16x2.f16x2 d, a, b;", "f16x2 f16x2 -> b32",
        packed(lambda a, b: float(a > b))),
    *(Row(f"{n}.rn.f16x2 d, a, b;", "f16x2 f16x2 -> b32", packed(f)) for n, f in BINARY.items()),
    *(Row(f"{n}.rn.bf16x2 d, a, b;", "bf16x2 bf16x2 -> b32", packed(f, bfloats, bfloat), 0, MILD_BF)
      for n, f in BINARY.items()),
    Row("mul.rn.bf16 d, a, b;", "bf16 bf16 -> b16", single(operator.mul)),
    Row("fma.rn.f16x2 d, a, b, c;", "f16x2 f16x2 f16x2 -> b32",
        packed(lambda a, b, c: a * b + c), 0, MILD),
    Row("fma.rn.relu.bf16x2 d, a, b, c;", "bf16x2 bf16x2 bf16x2 -> b32",
        packed(lambda a, b, c: max(a * b + c, 0.0), bfloats, bfloat), 0, MILD_BF),
    Row("fma.rn.sat.f16x2 d, a, b, c;", "f16x2 f16x2 f16x2 -> b32",
        packed(lambda a, b, c: min(max(a * b + c, 0.0), 1.0)), 0, MILD),
    Row("max.f16x2 d, a, b;", "f16x2 f16x2 -> b32", packed(largest)),
    Row("min.bf16x2 d, a, b;", "bf16x2 bf16x2 -> b32",
        packed(smallest, bfloats, bfloat), 0, MILD_BF),
    Row("neg.f16x2 d, a;", "f16x2 -> b32", lambda a: a ^ 0x80008000),
    Row("abs.bf16x2 d, a;", "bf16x2 -> b32", lambda a: a & 0x7FFF7FFF),
    Row("ex2.approx.ftz.bf16x2 d, a;", "bf16x2 -> b32",
        packed(lambda a: 2.0**a, bfloats, bfloat), 0, MILD_BF),
    Row("tanh.approx.f16x2 d, a;", "f16x2 -> b32", packed(math.tanh), 0, MILD),
]  # fmt: skip
