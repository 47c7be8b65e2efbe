"""Integer arithmetic (PTX ISA 9.7.1) of 16, 32 and 64 bits."""

import numpy as np

from .decode import VIEW_OF
from .opcodes import opcode

WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
SIMPLE = {"add": np.add, "sub": np.subtract}


def operands(ins, bind, view, count, first=1):
    """Rows of the source operands read as one view."""
    return [bind.src(ins.operands[first + i], view) for i in range(count)]


def binary(ufunc, view, d, a, b):
    """d = ufunc(a, b), lane by lane."""

    def run(c):
        v = c.v[view]
        ufunc(v[a], v[b], out=v[d])

    return run


def unary(ufunc, view, d, a):
    """d = ufunc(a)."""

    def run(c):
        v = c.v[view]
        ufunc(v[a], v[d])

    return run


def is_float(ins):
    """Whether the operation type is a floating one."""
    return any(m.startswith(("f16", "bf16", "f32", "f64")) for m in ins.mods)


def build_integer(ins, bind):
    """add, sub: modulo 2^n, or saturated with .sat.s32."""
    view = VIEW_OF[ins.type]
    a, b = operands(ins, bind, view, 2)
    d = bind.out(ins.operands[0])
    name = ins.opcode.split(".")[0]
    if "x2" in ins.type:
        return halves(SIMPLE[name], ins, d, a, b)
    if "sat" in ins.mods:
        wide = SIMPLE[name]

        def saturated(c):
            v = c.v[view]
            total = wide(v[a].astype(np.int64), v[b])
            v[d][...] = np.clip(total, -(1 << 31), (1 << 31) - 1)

        return saturated
    return binary(SIMPLE[name], view, d, a, b)


def halves(ufunc, ins, d, a, b):
    """Two 16-bit operations in one register."""
    dtype = np.int16 if ins.type.startswith("s") else np.uint16

    def run(c):
        v = c.v["u32"]
        x, y = np.ascontiguousarray(v[a]), np.ascontiguousarray(v[b])
        v[d][...] = ufunc(x.view(dtype), y.view(dtype)).view(np.uint32)

    return run


def product_high(x, y, view):
    """The upper half of a product."""
    if view in WIDER:
        wide = np.int64 if view[0] == "s" else np.uint64
        bits = int(view[1:])
        return (x.astype(wide) * y.astype(wide)) >> wide(bits)
    return np.array(
        [(int(p) * int(q)) >> 64 for p, q in zip(x.ravel(), y.ravel(), strict=True)],
        np.int64 if view[0] == "s" else object,
    ).reshape(x.shape)


def build_multiply(ins, bind):
    """mul.lo, mul.hi, mul.wide."""
    view = VIEW_OF[ins.type]
    a, b = operands(ins, bind, view, 2)
    d = bind.out(ins.operands[0])
    if "wide" in ins.mods:
        out = WIDER[view]
        dtype = {"u32": np.uint32, "s32": np.int32, "u64": np.uint64, "s64": np.int64}[out]
        return lambda c: np.multiply(c.v[view][a], c.v[view][b], c.v[out][d], dtype=dtype)
    if "hi" in ins.mods:

        def high(c):
            v = c.v[view]
            v[d][...] = product_high(v[a], v[b], view)

        return high
    return binary(np.multiply, view, d, a, b)


@opcode("mul24", "mad24")
def twenty_four(ins, bind):
    """mul24.lo, mad24.lo: products of the low 24 bits."""
    view = VIEW_OF[ins.type]
    count = len(ins.operands) - 1
    rows = operands(ins, bind, view, count)
    d = bind.out(ins.operands[0])
    shift = 8

    def run(c):
        v = c.v[view]
        x, y = ((v[r] << shift) >> shift for r in rows[:2])
        v[d][...] = x * y + (v[rows[2]] if count == 3 else 0)

    return run


def build_multiply_add(ins, bind):
    """mad.lo, mad.hi, mad.wide: the product, then the sum modulo 2^n."""
    view = VIEW_OF[ins.type]
    a, b = operands(ins, bind, view, 2)
    out = WIDER[view] if "wide" in ins.mods else view
    e = bind.src(ins.operands[3], out)
    d = bind.out(ins.operands[0])
    if "wide" in ins.mods:
        dtype = {"u32": np.uint32, "s32": np.int32, "u64": np.uint64, "s64": np.int64}[out]

        def wide(c):
            v = c.v[view]
            np.add(np.multiply(v[a], v[b], dtype=dtype), c.v[out][e], c.v[out][d])

        return wide
    high = "hi" in ins.mods

    def run(c):
        v = c.v[view]
        product = product_high(v[a], v[b], view) if high else v[a] * v[b]
        np.add(product.astype(v[e].dtype, copy=False), v[e], v[d])

    return run


def divide(x, y):
    """Quotient toward zero; all bits set where the divisor is 0, as the machine gives."""
    safe = np.where(y == 0, y.dtype.type(1), y)
    quotient = x // safe
    if y.dtype.kind == "i":
        quotient = quotient + ((quotient < 0) & (quotient * safe != x))
    return np.where(y == 0, y.dtype.type(-1) if y.dtype.kind == "i" else ~y.dtype.type(0), quotient)


def remainder(x, y):
    """x - y * (x / y), with the sign of x."""
    safe = np.where(y == 0, y.dtype.type(1), y)
    return np.where(y == 0, x, np.fmod(x, safe))


def build_divide(ins, bind):
    """div of integers."""
    return binary(lambda x, y, out: np.copyto(out, divide(x, y)), *_three(ins, bind))


@opcode("rem")
def build_remainder(ins, bind):
    """rem."""
    return binary(lambda x, y, out: np.copyto(out, remainder(x, y)), *_three(ins, bind))


def _three(ins, bind):
    view = VIEW_OF[ins.type]
    a, b = operands(ins, bind, view, 2)
    return view, bind.out(ins.operands[0]), a, b


def build_extreme(ins, bind):
    """min, max of integers."""
    ufunc = np.minimum if ins.opcode.startswith("min") else np.maximum
    view, d, a, b = _three(ins, bind)
    if "x2" in ins.type:
        return halves(ufunc, ins, d, a, b)
    if "relu" in ins.mods:
        return binary(lambda x, y, out: np.maximum(ufunc(x, y), 0, out=out), view, d, a, b)
    return binary(ufunc, view, d, a, b)


def build_sign(ins, bind):
    """abs, neg of integers."""
    view = VIEW_OF[ins.type]
    d, a = bind.out(ins.operands[0]), bind.src(ins.operands[1], view)
    return unary(np.abs if ins.opcode.startswith("abs") else np.negative, view, d, a)


@opcode("sad")
def sum_of_difference(ins, bind):
    """sad: c + |a - b|."""
    view = VIEW_OF[ins.type]
    a, b, e = operands(ins, bind, view, 3)
    d = bind.out(ins.operands[0])

    def run(c):
        v = c.v[view]
        v[d][...] = v[e] + (np.maximum(v[a], v[b]) - np.minimum(v[a], v[b]))

    return run


@opcode("dp4a")
def dot_of_four(ins, bind):
    """dp4a.atype.btype: four products of bytes summed into 32 bits."""
    kinds = [np.int8 if m == "s32" else np.uint8 for m in ins.mods[-2:]]
    rows = operands(ins, bind, "u32", 3)
    d = bind.out(ins.operands[0])

    def run(c):
        v = c.v["u32"]
        x, y = (
            np.ascontiguousarray(v[r]).reshape(-1, 1).view(kind).astype(np.int64)
            for r, kind in zip(rows, kinds, strict=False)
        )
        v[d][...] = ((x * y).sum(axis=1).reshape(v[d].shape) + v[rows[2]]).astype(np.uint32)

    return run


@opcode("addc", "subc", "add.cc", "sub.cc", "mad.lo.cc", "mad.hi.cc", "madc")
def extended(ins, bind):
    """add.cc, addc, sub.cc, subc: carries through the condition code register."""
    view = VIEW_OF["u" + ins.type[1:]]
    if ins.opcode.startswith("mad"):
        return _extended_multiply(ins, bind, view)
    a, b = operands(ins, bind, view, 2)
    d = bind.out(ins.operands[0])
    carry = bind.state("%cc", "pred")
    minus, uses = ins.opcode.startswith("sub"), ins.opcode.split(".")[0].endswith("c")
    sets = "cc" in ins.mods

    def run(c):
        v, cc = c.v[view], c.v["pred"][carry]
        extra = cc.astype(v[a].dtype) if uses else v[a].dtype.type(0)
        total, over = _with_carry(v[a], v[b], extra, minus)
        if sets:
            cc[...] = over
        v[d][...] = total

    return run


def _with_carry(x, y, extra, minus):
    """(x + y + extra, or x - y - extra; whether it left the range of the unsigned type)."""
    if minus:
        first = x - y
        return first - extra, (x < y) | (first < extra)
    first = x + y
    total = first + extra
    return total, (first < x) | (total < first)


def _extended_multiply(ins, bind, view):
    a, b, e = operands(ins, bind, view, 3)
    d = bind.out(ins.operands[0])
    carry = bind.state("%cc", "pred")
    high, uses = "hi" in ins.mods, ins.opcode.startswith("madc")
    signed = ("s" if ins.type[0] == "s" else "u") + view[1:]

    def run(c):
        v, cc = c.v[view], c.v["pred"][carry]
        s = c.v[signed]
        product = product_high(s[a], s[b], signed).astype(v[a].dtype) if high else v[a] * v[b]
        extra = cc.astype(product.dtype) if uses else product.dtype.type(0)
        total, over = _with_carry(product, v[e], extra, False)
        if "cc" in ins.mods:
            cc[...] = over
        v[d][...] = total

    return run
