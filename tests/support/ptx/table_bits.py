"""Rows of logic, shifts and bit fields."""

from ptx.snippet import Row
from ptx.table_integer import signed


def field(a, pos, length, bits, sign):
    """bfe by its definition, bit by bit."""
    pos, length = pos & 255, length & 255
    raw = a % (1 << bits)
    filler = raw >> min(pos + length - 1, bits - 1) & 1 if sign and length else 0
    result = 0
    for i in range(bits):
        inside = i < length and pos + i < bits
        result |= (raw >> pos + i & 1 if inside else filler) << i
    return result


def inserted(a, b, pos, length, bits):
    """bfi by its definition."""
    pos, length = pos & 255, length & 255
    result = b
    for i in range(length):
        if pos + i < bits:
            result = result & ~(1 << pos + i) | (a >> i & 1) << pos + i
    return result


def picked(a, b, selector):
    """prmt in its default mode."""
    pair, result = a | b << 32, 0
    for i in range(4):
        code = selector >> 4 * i & 15
        value = pair >> 8 * (code & 7) & 255
        if code & 8:
            value = 255 if value & 128 else 0
        result |= value << 8 * i
    return result


def bytes_of(a, b, places):
    pair = a | b << 32
    return sum((pair >> 8 * p & 255) << 8 * i for i, p in enumerate(places))


MODES = {
    "f4e": lambda s: [s, s + 1, s + 2, s + 3],
    "b4e": lambda s: [s, (s - 1) % 8, (s - 2) % 8, (s - 3) % 8],
    "rc8": lambda s: [s] * 4,
    "ecl": lambda s: [max(i, s) for i in range(4)],
    "ecr": lambda s: [min(i, s) for i in range(4)],
    "rc16": lambda s: [0, 1, 0, 1] if s % 2 == 0 else [2, 3, 2, 3],
}


def funnel_left(a, b, n):
    return ((b << 32 | a) << n) >> 32


def majority(a, b, c):
    return (a & b) | (a & c) | (b & c)


ROWS = [
    *(Row(f"and.b{n} d, a, b;", f"b{n} b{n} -> b{n}", lambda a, b: a & b) for n in (16, 32, 64)),
    *(Row(f"or.b{n} d, a, b;", f"b{n} b{n} -> b{n}", lambda a, b: a | b) for n in (16, 32, 64)),
    *(Row(f"xor.b{n} d, a, b;", f"b{n} b{n} -> b{n}", lambda a, b: a ^ b) for n in (16, 32, 64)),
    *(Row(f"not.b{n} d, a;", f"b{n} -> b{n}", lambda a: ~a) for n in (16, 32, 64)),
    *(Row(f"cnot.b{n} d, a;", f"b{n} -> b{n}", lambda a: int(a == 0)) for n in (16, 32, 64)),
    Row("and.pred d, a, b;", "pred pred -> pred", lambda a, b: a & b),
    Row("or.pred d, a, b;", "pred pred -> pred", lambda a, b: a | b),
    Row("xor.pred d, a, b;", "pred pred -> pred", lambda a, b: a ^ b),
    Row("not.pred d, a;", "pred -> pred", lambda a: 1 - a),
    *(Row(f"shl.b{n} d, a, b;", f"b{n} u32 -> b{n}", lambda a, b, n=n: a << min(b, n))
      for n in (16, 32, 64)),
    *(Row(f"shr.{s}{n} d, a, b;", f"{s}{n} u32 -> {s}{n}", lambda a, b, n=n: a >> min(b, n))
      for n in (16, 32, 64) for s in "us"),
    Row("shf.l.clamp.b32 d, a, b, c;", "b32 b32 u32 -> b32",
        lambda a, b, c: funnel_left(a, b, min(c, 32))),
    Row("shf.l.wrap.b32 d, a, b, c;", "b32 b32 u32 -> b32",
        lambda a, b, c: funnel_left(a, b, c & 31)),
    Row("shf.r.clamp.b32 d, a, b, c;", "b32 b32 u32 -> b32",
        lambda a, b, c: (b << 32 | a) >> min(c, 32)),
    Row("shf.r.wrap.b32 d, a, b, c;", "b32 b32 u32 -> b32",
        lambda a, b, c: (b << 32 | a) >> (c & 31)),
    *(Row(f"bfe.{s}{n} d, a, b, c;", f"{s}{n} u32 u32 -> {s}{n}",
          lambda a, b, c, s=s, n=n: field(a, b, c, n, s == "s")) for n in (32, 64) for s in "us"),
    *(Row(f"bfi.b{n} d, a, b, c, e;", f"b{n} b{n} u32 u32 -> b{n}",
          lambda a, b, c, e, n=n: inserted(a, b, c, e, n)) for n in (32, 64)),
    Row("bmsk.clamp.b32 d, a, b;", "u32 u32 -> b32",
        lambda a, b: ((1 << min(b, 32)) - 1) << min(a, 32)),
    Row("bmsk.wrap.b32 d, a, b;", "u32 u32 -> b32",
        lambda a, b: ((1 << (b & 31)) - 1) << (a & 31)),
    Row("prmt.b32 d, a, b, c;", "b32 b32 b32 -> b32", picked),
    *(Row(f"prmt.b32.{mode} d, a, b, c;", "b32 b32 b32 -> b32",
          lambda a, b, c, order=order: bytes_of(a, b, order(c & 3)))
      for mode, order in MODES.items()),
    Row("lop3.b32 d, a, b, c, 0xE8;", "b32 b32 b32 -> b32", majority),
    Row("lop3.b32 d, a, b, c, 0x96;", "b32 b32 b32 -> b32", lambda a, b, c: a ^ b ^ c),
    *(Row(f"popc.b{n} d, a;", f"b{n} -> b32", lambda a: bin(a).count("1")) for n in (32, 64)),
    *(Row(f"clz.b{n} d, a;", f"b{n} -> b32", lambda a, n=n: n - a.bit_length())
      for n in (32, 64)),
    *(Row(f"brev.b{n} d, a;", f"b{n} -> b{n}", lambda a, n=n: int(f"{a:0{n}b}"[::-1], 2))
      for n in (32, 64)),
    *(Row(f"bfind.u{n} d, a;", f"u{n} -> b32", lambda a: a.bit_length() - 1) for n in (32, 64)),
    Row("bfind.s32 d, a;", "s32 -> b32", lambda a: (~a if a < 0 else a).bit_length() - 1),
    Row("bfind.shiftamt.u32 d, a;", "u32 -> b32", lambda a: 32 - a.bit_length() if a else -1),
    Row("mov.b32 {%h1, %h2}, a;\nmov.b32 d, {%h2, %h1};", "b32 -> b32",
        lambda a: a >> 16 | a << 16),
    Row("mov.b64 {%r3, %r4}, a;\nmov.b64 d, {%r4, %r3};", "b64 -> b64",
        lambda a: a >> 32 | a << 32),
    Row("mov.b32 d, {a, b};", "b16 b16 -> b32", lambda a, b: a | b << 16),
    Row("mov.b64 {_, d}, a;", "b64 -> b32", lambda a: a >> 32),
    Row("mov.u32 d, a;", "u32 -> u32", lambda a: a),
    Row("mov.pred d, a;", "pred -> pred", lambda a: a),
    Row("selp.s32 d, a, b, c;", "s32 s32 pred -> s32", lambda a, b, c: a if c else b),
    Row("selp.b64 d, a, 5, c;", "b64 s32 pred -> b64", lambda a, b, c: a if c else 5),
    Row("slct.s32.s32 d, a, b, c;", "s32 s32 s32 -> s32", lambda a, b, c: a if c >= 0 else b),
    Row("slct.u64.f32 d, a, b, c;", "u64 u64 f32 -> u64", lambda a, b, c: a if c >= 0 else b),
]  # fmt: skip


assert signed(0xFF, 8) == -1
