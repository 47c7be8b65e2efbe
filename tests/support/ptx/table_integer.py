"""Rows of integer arithmetic; oracles are Python integers, reduced modulo 2^n by the test."""

from ptx.snippet import Row


def quotient(a, b):
    """Toward zero; all ones for a zero divisor."""
    if b == 0:
        return -1
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def rest(a, b):
    return a if b == 0 else a - quotient(a, b) * b


def clamp(x, low=-(1 << 31), high=(1 << 31) - 1):
    return max(low, min(high, x))


def signed(x, bits):
    x %= 1 << bits
    return x - (1 << bits) if x >> (bits - 1) else x


def byte(x, i, sign):
    value = x >> 8 * i & 255
    return signed(value, 8) if sign else value


ROWS = [
    *(Row(f"add.{t} d, a, b;", f"{t} {t} -> {t}", lambda a, b: a + b)
      for t in ("s16", "u16", "s32", "u32", "s64", "u64")),
    *(Row(f"sub.{t} d, a, b;", f"{t} {t} -> {t}", lambda a, b: a - b)
      for t in ("s16", "u16", "s32", "u32", "s64", "u64")),
    Row("add.sat.s32 d, a, b;", "s32 s32 -> s32", lambda a, b: clamp(a + b)),
    Row("sub.sat.s32 d, a, b;", "s32 s32 -> s32", lambda a, b: clamp(a - b)),
    Row("add.s32 d, a, -7;", "s32 -> s32", lambda a: a - 7),
    *(Row(f"mul.lo.{t} d, a, b;", f"{t} {t} -> {t}", lambda a, b: a * b)
      for t in ("s16", "u16", "s32", "u32", "s64", "u64")),
    *(Row(f"mul.hi.{t} d, a, b;", f"{t} {t} -> {t}", lambda a, b, n=int(t[1:]): a * b >> n)
      for t in ("s16", "u16", "s32", "u32", "s64", "u64")),
    *(Row(f"mul.wide.{t} d, a, b;", f"{t} {t} -> {t[0]}{2 * int(t[1:])}", lambda a, b: a * b)
      for t in ("s16", "u16", "s32", "u32")),
    *(Row(f"mad.lo.{t} d, a, b, c;", f"{t} {t} {t} -> {t}", lambda a, b, c: a * b + c)
      for t in ("s16", "s32", "u32", "s64", "u64")),
    *(Row(f"mad.hi.{t} d, a, b, c;", f"{t} {t} {t} -> {t}",
          lambda a, b, c, n=int(t[1:]): (a * b >> n) + c) for t in ("s32", "u32", "u64", "s64")),
    *(Row(f"mad.wide.{t} d, a, b, c;", f"{t} {t} {w} -> {w}", lambda a, b, c: a * b + c)
      for t, w in (("s32", "s64"), ("u32", "u64"), ("u16", "u32"))),
    *(Row(f"div.{t} d, a, b;", f"{t} {t} -> {t}", quotient)
      for t in ("s16", "u16", "s32", "u32", "s64", "u64")),
    *(Row(f"rem.{t} d, a, b;", f"{t} {t} -> {t}", rest)
      for t in ("s16", "u16", "s32", "u32", "s64", "u64")),
    *(Row(f"min.{t} d, a, b;", f"{t} {t} -> {t}", min) for t in ("s16", "s32", "u32", "u64")),
    *(Row(f"max.{t} d, a, b;", f"{t} {t} -> {t}", max) for t in ("u16", "s32", "u32", "s64")),
    *(Row(f"abs.{t} d, a;", f"{t} -> {t}", abs) for t in ("s16", "s32", "s64")),
    *(Row(f"neg.{t} d, a;", f"{t} -> {t}", lambda a: -a) for t in ("s16", "s32", "s64")),
    *(Row(f"sad.{t} d, a, b, c;", f"{t} {t} {t} -> {t}", lambda a, b, c: c + abs(a - b))
      for t in ("s32", "u32", "u16")),
    Row("mul24.lo.u32 d, a, b;", "u32 u32 -> u32", lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF)),
    Row("mul24.lo.s32 d, a, b;", "s32 s32 -> s32", lambda a, b: signed(a, 24) * signed(b, 24)),
    Row("mad24.lo.u32 d, a, b, c;", "u32 u32 u32 -> u32",
        lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) + c),
    Row("dp4a.s32.u32 d, a, b, c;", "u32 u32 s32 -> s32",
        lambda a, b, c: c + sum(byte(a, i, True) * byte(b, i, False) for i in range(4))),
    Row("dp4a.u32.u32 d, a, b, c;", "u32 u32 u32 -> u32",
        lambda a, b, c: c + sum(byte(a, i, False) * byte(b, i, False) for i in range(4))),
    # Carries: a sum (difference, product) of 64 bits by halves.
    Row("add.cc.u32 d, a, b;\naddc.u32 d, a, b;", "u32 u32 -> u32",
        lambda a, b: a + b + (a + b >> 32)),
    Row("sub.cc.u32 d, a, b;\nsubc.u32 d, a, b;", "u32 u32 -> u32",
        lambda a, b: a - b - (1 if a < b else 0)),
    Row("mad.lo.cc.u32 d, a, b, c;\nmadc.hi.u32 d, a, b, c;", "u32 u32 u32 -> u32",
        lambda a, b, c: (a * b >> 32) + c + ((a * b % (1 << 32)) + c >> 32)),
    Row("mad.hi.cc.u32 d, a, b, c;\naddc.u32 d, 0, 0;", "u32 u32 u32 -> u32",
        lambda a, b, c: (a * b >> 32) + c >> 32),
    Row("add.u16x2 d, a, b;", "b32 b32 -> b32",
        lambda a, b: (a + b & 0xFFFF) | ((a >> 16) + (b >> 16) & 0xFFFF) << 16),
    Row("max.s16x2 d, a, b;", "b32 b32 -> b32",
        lambda a, b: (max(signed(a, 16), signed(b, 16)) & 0xFFFF)
        | (max(signed(a >> 16, 16), signed(b >> 16, 16)) & 0xFFFF) << 16),
    Row("max.relu.s32 d, a, b;", "s32 s32 -> s32",
        lambda a, b: max(a, b, 0)),
]  # fmt: skip
