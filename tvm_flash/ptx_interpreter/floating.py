"""Floating-point arithmetic (PTX ISA 9.7.3, 9.7.4), rounded as the instruction says."""

import numpy as np

from . import formats
from .decode import VIEW_OF
from .formats import flush
from .opcodes import opcode

ROUNDING = ("rn", "rz", "rm", "rp")
ARITHMETIC = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
HALF = ("f16", "bf16", "f16x2", "bf16x2")


def loader(kind):
    """A function from register bits to float32; packed kinds get a last axis of 2."""
    if kind == "f16":
        return lambda x: x.view(np.float16).astype(np.float32)
    if kind == "bf16":
        return formats.bf16_to_f32

    def packed(x):
        halves = np.ascontiguousarray(x).view(np.uint16).reshape(*x.shape, 2)
        return loader(kind[:-2])(halves)

    return packed


def storer(kind):
    """A function (destination register, values, rounding mode): float32 or float64 to bits."""
    convert = formats.f32_to_bf16 if kind.startswith("bf16") else formats.f32_to_f16

    def run(d, x, mode="rn"):
        bits = convert(x, mode)
        if kind.endswith("x2"):
            bits = np.ascontiguousarray(bits).view(np.uint32)
        d[...] = bits.reshape(d.shape)

    return run


def rounding(ins):
    """The rounding mode in the opcode, rn if none."""
    return next((m for m in ins.mods if m in ROUNDING), "rn")


def saturate(x):
    """Clamped to [0, 1], NaN to 0 (.sat)."""
    return np.where(np.isnan(x), 0, np.clip(x, 0, 1)).astype(x.dtype)


def relu_of(x):
    """max(x, +0), NaN kept (.relu)."""
    return np.where((x > 0) | np.isnan(x), x, x.dtype.type(0))


def finish(ins):
    """What happens to a float32 result: .sat, .ftz, .relu."""
    steps = []
    if "sat" in ins.mods:
        steps.append(saturate)
    if "ftz" in ins.mods:
        steps.append(flush)

    def run(x):
        for step in steps:
            x = step(x)
        return x

    return run


def build_float(ins, bind):
    """add, sub, mul, div of any float type."""
    name = ins.opcode.split(".")[0]
    kind = ins.type
    if kind in HALF:
        return half_operation(ins, bind, ARITHMETIC[name], 2)
    view = VIEW_OF[kind]
    a, b = (bind.src(ins.operands[i], view) for i in (1, 2))
    d = bind.out(ins.operands[0])
    mode, ufunc = rounding(ins), ARITHMETIC[name]
    if mode != "rn":
        return directed(ins, name, mode, view, d, a, b)
    if kind == "f64":
        return lambda c: ufunc(c.v[view][a], c.v[view][b], c.v[view][d])
    return single(ins, ufunc, d, a, b)


def single(ins, ufunc, d, a, b):
    """A float32 operation to nearest even."""
    if "sat" in ins.mods:
        end, start = finish(ins), flush if "ftz" in ins.mods else (lambda x: x)

        def saturated(c):
            v = c.v["f32"]
            v[d][...] = end(ufunc(start(v[a]), start(v[b])))

        return saturated
    if "ftz" in ins.mods:

        def flushed(c):
            v = c.v["f32"]
            v[d][...] = flush(ufunc(flush(v[a]), flush(v[b])))

        return flushed

    def run(c):
        v = c.v["f32"]
        ufunc(v[a], v[b], v[d])

    return run


def directed(ins, name, mode, view, d, a, b):
    """A float32 operation rounded toward zero, up or down."""
    if view == "f64":
        raise ValueError(f"rounding .{mode} of f64 is not implemented")
    end = finish(ins)
    start = flush if "ftz" in ins.mods else (lambda x: x)

    def run(c):
        v = c.v["f32"]
        x, y = start(v[a]).astype(np.float64), start(v[b]).astype(np.float64)
        if name in ("add", "sub"):
            y = y if name == "add" else -y
            value = formats.to_odd(x, y, x + y)
        else:
            value = ARITHMETIC[name](x, y)
        v[d][...] = end(formats.round_f32(value, mode))

    return run


def half_operation(ins, bind, function, count):
    """An operation on 16-bit floats, one or two to a register, computed wider and rounded once."""
    kind = ins.type
    load, store = loader(kind), storer(kind)
    view = "u32" if kind.endswith("x2") else "u16"
    typed = "f16" if kind == "f16" else view
    rows = [bind.src(ins.operands[1 + i], typed) for i in range(count)]
    d = bind.out(ins.operands[0])
    sat, relu = "sat" in ins.mods, "relu" in ins.mods

    def run(c):
        value = function(*(load(c.v[view][row]) for row in rows))
        if sat:
            value = saturate(value)
        if relu:
            value = relu_of(value)
        store(c.v[view][d], value)

    return run


def fused(x, y, z):
    """x * y + z of float32 arrays in float64, so that one more rounding is right."""
    product = np.multiply(x, y, dtype=np.float64)
    return formats.exact_sum(product, z.astype(np.float64))


def fused_double(x, y, z):
    """x * y + z of float64 with the errors of both steps added back."""
    product = x * y
    split = 134217729.0

    def halves(w):
        big = split * w
        high = big - (big - w)
        return high, w - high

    (xh, xl), (yh, yl) = halves(x), halves(y)
    low = ((xh * yh - product) + xh * yl + xl * yh) + xl * yl
    total = product + z
    back = total - product
    error = (product - (total - back)) + (z - back)
    result = total + (error + low)
    return np.where(np.isfinite(result), result, total)


@opcode("fma")
def build_fused(ins, bind):
    """fma: one rounding."""
    kind, mode = ins.type, rounding(ins)
    if kind in HALF:
        return half_operation(ins, bind, fused, 3)
    view = VIEW_OF[kind]
    a, b, e = (bind.src(ins.operands[i], view) for i in (1, 2, 3))
    d = bind.out(ins.operands[0])
    if kind == "f64":

        def double(c):
            v = c.v[view]
            v[d][...] = fused_double(v[a], v[b], v[e])

        return double
    end = finish(ins)
    start = flush if "ftz" in ins.mods else (lambda x: x)

    def run(c):
        v = c.v["f32"]
        x, y, z = start(v[a]), start(v[b]), start(v[e])
        if mode == "rn":
            value = fused(x, y, z).astype(np.float32)
        else:
            p, z = np.multiply(x, y, dtype=np.float64), z.astype(np.float64)
            value = formats.round_f32(formats.to_odd(p, z, p + z), mode)
        v[d][...] = end(value)

    return run


def build_float_extreme(ins, bind):
    """min, max: the number where one is NaN; .NaN gives NaN; +0 is above -0."""
    smallest = ins.opcode.startswith("min")
    propagate = "NaN" in ins.mods
    plain = (np.fmin if smallest else np.fmax, np.minimum if smallest else np.maximum)[propagate]
    absolute = "abs" in ins.mods

    def function(x, y):
        if absolute:
            value = plain(np.abs(x), np.abs(y))
            return np.where(np.signbit(x) ^ np.signbit(y), -value, value)
        value = plain(x, y)
        zero = value == 0
        if zero.any():  # +0 is above -0
            negative = (np.logical_or if smallest else np.logical_and)(np.signbit(x), np.signbit(y))
            value = np.where(zero & (x == y), np.where(negative, -0.0, 0.0), value)
        return value.astype(x.dtype, copy=False)

    if ins.type in HALF:
        return half_operation(ins, bind, function, 2)
    view = VIEW_OF[ins.type]
    a, b = (bind.src(ins.operands[i], view) for i in (1, 2))
    d = bind.out(ins.operands[0])
    start = flush if "ftz" in ins.mods else (lambda x: x)

    def run(c):
        v = c.v[view]
        v[d][...] = function(start(v[a]), start(v[b]))

    return run


def build_float_sign(ins, bind):
    """abs, neg, by their sign bits."""
    view = {16: "u16", 32: "u32", 64: "u64"}[bind.width(ins.operands[0])]
    sign = {"u16": 0x8000, "u32": 0x80008000 if "x2" in ins.type else 1 << 31, "u64": 1 << 63}[view]
    typed = VIEW_OF[ins.type] if ins.type in ("f32", "f64") else view
    d, a = bind.out(ins.operands[0]), bind.src(ins.operands[1], typed)
    absolute, ftz = ins.opcode.startswith("abs"), "ftz" in ins.mods and ins.type == "f32"

    def run(c):
        x = c.v[view][a]
        if ftz:
            x = flush(c.v["f32"][a]).view(np.uint32)
        mask = x.dtype.type(sign)
        c.v[view][d][...] = x & ~mask if absolute else x ^ mask

    return run


def build_fma_mad(ins, bind):
    """mad.f32, mad.f64: fma."""
    return build_fused(ins, bind)


@opcode("copysign")
def copy_sign(ins, bind):
    """copysign d, a, b: the magnitude of b with the sign of a."""
    view = VIEW_OF[ins.type]
    a, b = (bind.src(ins.operands[i], view) for i in (1, 2))
    d = bind.out(ins.operands[0])
    return lambda c: np.copysign(c.v[view][b], c.v[view][a], out=c.v[view][d])


def _subnormal(x):
    return (x != 0) & (np.abs(x) < np.finfo(x.dtype).tiny)


TESTS = {
    "finite": np.isfinite,
    "infinite": np.isinf,
    "number": lambda x: ~np.isnan(x),
    "notanumber": np.isnan,
    "normal": lambda x: np.isfinite(x) & (np.abs(x) >= np.finfo(x.dtype).tiny),
    "subnormal": _subnormal,
}


@opcode("testp")
def test_property(ins, bind):
    """testp.op p, a."""
    view, test = VIEW_OF[ins.type], TESTS[ins.mods[0]]
    d, a = bind.out(ins.operands[0]), bind.src(ins.operands[1], view)
    return lambda c: np.copyto(c.v["pred"][d], test(c.v[view][a]))
