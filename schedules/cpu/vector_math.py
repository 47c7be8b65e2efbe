"""Elementary functions as branch-free float32 polynomials that stay in vector registers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from tvm import tirx

from ...definition.scores import LOG2E
from ...problem.dtype import DTYPES

# 1.5 * 2^23: adding it rounds a float of moderate size to an integer held in the low mantissa bits;
# the exponent's bias on top, and these bits are the exponent field of 2**integer.
ROUNDING_MAGIC = 12582912.0 + 127


def degree_reasons(dtype: str, degree: int) -> list[str]:
    """Why an exponential of ``degree`` is too coarse for ``dtype`` (empty: it is not)."""
    least = DTYPES[dtype].exp2_degree
    return [] if degree >= least else [f"exp2_degree={degree} must be {least} or more for {dtype}"]


@cache
def exp2_coefficients(degree: int) -> tuple[float, ...]:
    """Coefficients (constant first) of a polynomial for 2**x on [-1/2, 1/2].

    Lawson's iteration: least squares reweighted by its own relative error tends to the minimax
    polynomial. Degree 5 has relative error 7.5e-8, below half an ulp of float32; degree 3 has
    7.5e-5, below the rounding of bfloat16 (2**-9).
    """
    x = np.cos(np.linspace(0, np.pi, 4001)) / 2
    basis = np.vander(x, degree + 1, increasing=True) / np.exp2(x)[:, None]
    weight = np.ones_like(x)
    for _ in range(60):
        root = np.sqrt(weight)
        solution = np.linalg.lstsq(basis * root[:, None], root, rcond=None)[0]
        weight = weight * np.abs(basis @ solution - 1)
        weight /= weight.sum()
    return tuple(float(np.float32(c)) for c in solution)


@cache
def tanh_coefficients(terms: int = 6) -> tuple[float, ...]:
    """Coefficients of c(z) with tanh(x) = x + x z c(z), z = x^2, for |x| <= 5/8 (Lawson)."""
    x = np.cos(np.linspace(0, np.pi / 2, 2001)[:-1]) * 0.625
    z, target = x * x, (np.tanh(x) / x - 1) / (x * x)
    basis = np.vander(z, terms, increasing=True)
    weight = np.ones_like(x)
    for _ in range(60):
        root = np.sqrt(weight)
        solution = np.linalg.lstsq(basis * root[:, None], target * root, rcond=None)[0]
        weight = weight * np.abs((basis @ solution - target) * z) + 1e-30
        weight /= weight.sum()
    return tuple(float(np.float32(c)) for c in solution)


@dataclass(frozen=True)
class VectorMath:
    """The functions ``score.legalise`` and the online softmax ask for.

    LLVM turns exp2 and friends on vectors into one library call per lane; these polynomials keep
    whole vectors. ``exp2_degree`` bounds the error of the softmax's exponential.
    """

    exp2_degree: int = 5

    def weight(self, x):
        """e**x for x <= 88; exactly 0 for x <= -87.7, NaN for NaN."""
        return _exp2(x, self.exp2_degree, unit=LOG2E)

    def exp(self, x):
        """e**x; +inf above 2**127.5, 0 below 2**-126.5."""
        return _two_sided_exp2(x * _f32(LOG2E))

    def exp2_full(self, x):
        """2**x over the whole range of float32."""
        return _two_sided_exp2(x)

    def sigmoid(self, x):
        """1 / (1 + e**-x)."""
        return _f32(1) / (_f32(1) + self.exp(-x))

    def tanh(self, x):
        """tanh: odd polynomial for |x| <= 5/8, (1 - t)/(1 + t) with t = e**-2|x| beyond."""
        return _let(x, _tanh)


def _let(value, body):
    # A name for the argument: without it nested functions grow the expression exponentially.
    name = tirx.Var("x", value.ty.dtype)
    return tirx.Let(name, value, body(name))


def _tanh(x):
    size, z = tirx.Select(x < _f32(0), -x, x), x * x
    small = x + x * z * _horner(tanh_coefficients(), z)
    large = _let(_exp2(size * _f32(-2 * LOG2E), 5), lambda t: (_f32(1) - t) / (_f32(1) + t))
    signed = _let(large, lambda y: tirx.Select(x < _f32(0), -y, y))
    return tirx.Select(size <= _f32(0.625), small, signed)


def _two_sided_exp2(x):
    # Two factors, because 2**x for x close to 128 has no single exponent field: the first takes
    # x up to 127, the second the rest, 2 at x = 128 and infinity above.
    def factors(x):
        rest = tirx.Select(x > _f32(127), x - _f32(127), _f32(0))
        overflow = tirx.Select(x >= _f32(128), _f32(float("inf")), _f32(1))
        capped = tirx.Select(rest > _f32(1), _f32(1), rest)
        return _exp2(tirx.Select(x > _f32(127), _f32(127), x), 5) * _exp2(capped, 5) * overflow

    return _let(x, factors)


def _exp2(x, degree: int, unit: float = 1.0):
    """2**(unit * x); the products with ``unit`` are part of multiply-adds."""

    # The select keeps NaN (a comparison with NaN is false); 2^-127 is encoded as exponent 0: zero.
    def scaled(x):
        whole = tirx.reinterpret("int32", times_unit(x) + _f32(ROUNDING_MAGIC))
        return _let(whole, lambda n: power(x, n))

    def times_unit(x):
        return x if unit == 1.0 else x * _f32(unit)

    def power(x, shifted):
        # Through the integer, or TVM folds (x + c) - c to x.
        whole = tirx.reinterpret("float32", shifted) - _f32(ROUNDING_MAGIC)
        exponent = tirx.shift_left(shifted, tirx.const(23, "int32"))
        mantissa = _let(times_unit(x) - whole, lambda f: _horner(exp2_coefficients(degree), f))
        return mantissa * tirx.reinterpret("float32", exponent)

    least = _f32(-127 / unit)
    clip = lambda x: tirx.Select(least > x, least, x)  # noqa: E731
    return _let(_let(x, clip), scaled)


def _horner(coefficients, x):
    value = _f32(coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * x + _f32(c)
    return value


def _f32(value):
    return tirx.const(value, "float32")
