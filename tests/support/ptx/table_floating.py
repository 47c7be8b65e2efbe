"""Rows of floating-point arithmetic; oracles are exact or in float64, rounded once by the test."""

import math
from fractions import Fraction

import numpy as np
from ptx.snippet import Row

TINY = 2.0**-126
APPROX = 2.0**-22


def flushed(x):
    return math.copysign(0.0, x) if abs(x) < TINY else x


def ftz(function):
    """A float32 function with subnormal inputs and outputs flushed."""

    def run(*values):
        with np.errstate(over="ignore"):
            result = float(np.float32(function(*map(flushed, values))))
        return flushed(result)

    return run


def exact(function):
    """A function of Fractions where all sources are finite, of floats elsewhere."""

    def run(*values):
        if all(map(math.isfinite, values)):
            result = function(*map(Fraction, values))
            return result if result else function(*values)
        return function(*values)

    return run


def fused(a, b, c):
    return a * b + c


def divide(a, b):
    with np.errstate(all="ignore"):
        return float(np.float64(a) / np.float64(b))


def rank(x):
    """Orders -0 below +0."""
    return x, math.copysign(1, x)


def smallest(a, b):
    return b if math.isnan(a) else a if math.isnan(b) else min(a, b, key=rank)


def largest(a, b):
    return b if math.isnan(a) else a if math.isnan(b) else max(a, b, key=rank)


def nan_or(function):
    return lambda a, b: math.nan if math.isnan(a) or math.isnan(b) else function(a, b)


def saturated(x):
    return 0.0 if math.isnan(x) else min(max(x, 0.0), 1.0)


def guarded(function):
    """A function of numpy.float64, errors as infinities and NaN."""

    def run(*values):
        with np.errstate(all="ignore"):
            return float(function(*map(np.float64, values)))

    return run


def directed(function, mode):
    """A float32 result rounded toward zero, up or down, from an exact one."""

    def run(*values):
        if not all(map(math.isfinite, values)):
            return function(*values)
        value = function(*map(Fraction, values))
        with np.errstate(over="ignore"):
            near = np.float32(float(value))
        if np.isinf(near) or Fraction(float(near)) == value:
            return _overflow(near, value, mode)
        over = Fraction(float(near)) > value
        wrong = {"rz": over == (value > 0), "rm": over, "rp": not over}[mode]
        toward = {"rz": 0.0, "rm": -np.inf, "rp": np.inf}[mode]
        return float(np.nextafter(near, np.float32(toward)) if wrong else near)

    return run


def _overflow(near, value, mode):
    largest_finite = float(np.finfo(np.float32).max)
    if np.isinf(near) and (mode == "rz" or (mode == "rm") == (value > 0)):
        return math.copysign(largest_finite, value)
    return float(near)


BINARY = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b}
PLAIN = {"f32": {"values": None}}
NO_ZERO = {"b": np.array([1.5, -3.0, 0.1, 7.0] * 64, np.float32)}


def finite(kind, count=3, seed=11):
    """Moderate finite sources, so that results neither overflow nor lose their zeros' signs."""
    rng = np.random.default_rng(seed)
    dtype = {"f32": np.float32, "f64": np.float64, "f16": np.float16}[kind]
    return {n: rng.standard_normal(256).astype(dtype) for n in "abc"[:count]}


ROWS = [
    *(Row(f"{n}.f32 d, a, b;", "f32 f32 -> f32", exact(f)) for n, f in BINARY.items()),
    *(Row(f"{n}.ftz.f32 d, a, b;", "f32 f32 -> f32", ftz(f)) for n, f in BINARY.items()),
    *(Row(f"{n}.f64 d, a, b;", "f64 f64 -> f64", f) for n, f in BINARY.items()),
    *(Row(f"{n}.{m}.f32 d, a, b;", "f32 f32 -> f32", directed(f, m), 0, finite("f32"))
      for n, f in BINARY.items() for m in ("rz", "rm", "rp")),
    *(Row(f"{n}.rn.f16 d, a, b;", "f16 f16 -> f16", exact(f)) for n, f in BINARY.items()),
    Row("add.sat.f32 d, a, b;", "f32 f32 -> f32", lambda a, b: saturated(a + b)),
    Row("add.ftz.sat.f32 d, a, b;", "f32 f32 -> f32",
        lambda a, b: saturated(ftz(BINARY["add"])(a, b))),
    Row("fma.rn.f32 d, a, b, c;", "f32 f32 f32 -> f32", exact(fused)),
    Row("fma.rn.ftz.f32 d, a, b, c;", "f32 f32 f32 -> f32", exact(fused), 0, finite("f32")),
    Row("fma.rz.f32 d, a, b, c;", "f32 f32 f32 -> f32", directed(fused, "rz"), 0, finite("f32")),
    Row("mad.rn.f32 d, a, b, c;", "f32 f32 f32 -> f32", exact(fused), 0, finite("f32")),
    Row("fma.rn.f64 d, a, b, c;", "f64 f64 f64 -> f64", exact(fused), 0, finite("f64")),
    Row("fma.rn.f16 d, a, b, c;", "f16 f16 f16 -> f16", exact(fused), 0, finite("f16")),
    *(Row(f"div.{m}f32 d, a, b;", "f32 f32 -> f32", divide)
      for m in ("rn.", "full.", "approx.")),
    Row("div.approx.ftz.f32 d, a, b;", "f32 f32 -> f32", ftz(divide)),
    Row("div.rn.f64 d, a, b;", "f64 f64 -> f64", divide),
    *(Row(f"min.{t} d, a, b;", f"{t} {t} -> {t}", smallest) for t in ("f32", "f64", "f16")),
    *(Row(f"max.{t} d, a, b;", f"{t} {t} -> {t}", largest) for t in ("f32", "f64", "f16")),
    Row("max.ftz.f32 d, a, b;", "f32 f32 -> f32",
        lambda a, b: largest(flushed(a), flushed(b))),
    Row("min.NaN.f32 d, a, b;", "f32 f32 -> f32", nan_or(smallest)),
    Row("max.NaN.f16 d, a, b;", "f16 f16 -> f16", nan_or(largest)),
    Row("max.xorsign.abs.f32 d, a, b;", "f32 f32 -> f32",
        lambda a, b: math.copysign(largest(abs(a), abs(b)), a * b), 0, finite("f32")),
    *(Row(f"abs.{t} d, a;", f"{t} -> {t}", abs) for t in ("f32", "f64", "f16")),
    *(Row(f"neg.{t} d, a;", f"{t} -> {t}", lambda a: -a) for t in ("f32", "f64", "f16")),
    Row("abs.ftz.f32 d, a;", "f32 -> f32", lambda a: abs(flushed(a))),
    Row("copysign.f32 d, a, b;", "f32 f32 -> f32", lambda a, b: math.copysign(b, a)),
    *(Row(f"testp.{p}.f32 d, a;", "f32 -> pred", f) for p, f in {
        "finite": math.isfinite, "infinite": math.isinf, "notanumber": math.isnan,
        "number": lambda a: not math.isnan(a), "subnormal": lambda a: 0 < abs(a) < TINY,
        "normal": lambda a: math.isfinite(a) and abs(a) >= TINY}.items()),
    Row("ex2.approx.f32 d, a;", "f32 -> f32", guarded(np.exp2), APPROX),
    Row("ex2.approx.ftz.f32 d, a;", "f32 -> f32", ftz(guarded(np.exp2)), APPROX),
    Row("ex2.approx.f16 d, a;", "f16 -> f16", guarded(np.exp2), 2.0**-10),
    Row("lg2.approx.f32 d, a;", "f32 -> f32", guarded(np.log2), APPROX),
    Row("rcp.rn.f32 d, a;", "f32 -> f32", lambda a: divide(1.0, a)),
    Row("rcp.approx.ftz.f32 d, a;", "f32 -> f32", ftz(lambda a: divide(1.0, a))),
    Row("rcp.rn.f64 d, a;", "f64 -> f64", lambda a: divide(1.0, a)),
    Row("sqrt.rn.f32 d, a;", "f32 -> f32", guarded(np.sqrt)),
    Row("sqrt.approx.f32 d, a;", "f32 -> f32", guarded(np.sqrt), APPROX),
    Row("sqrt.rz.f32 d, a;", "f32 -> f32", lambda a: 1.5, 0,
        {"a": np.full(256, 2.25, np.float32)}),
    Row("sqrt.rn.f64 d, a;", "f64 -> f64", guarded(np.sqrt)),
    Row("rsqrt.approx.f32 d, a;", "f32 -> f32", guarded(lambda x: 1 / np.sqrt(x)), APPROX),
    Row("sin.approx.f32 d, a;", "f32 -> f32", guarded(np.sin), APPROX, finite("f32", 1)),
    Row("cos.approx.f32 d, a;", "f32 -> f32", guarded(np.cos), APPROX, finite("f32", 1)),
    Row("tanh.approx.f32 d, a;", "f32 -> f32", guarded(np.tanh), APPROX),
]  # fmt: skip
