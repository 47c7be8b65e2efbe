"""A ScoreProgram as a TIR expression of its symbols and captured tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tvm
from tvm import tirx

from ..score.program import INTEGERS, MASK_SYMBOLS, SCORE_SYMBOLS, TABLE_DTYPES, ScoreProgram

Expr = tvm.ir.Expr


def emit(
    program: ScoreProgram,
    symbols: Sequence[Expr],
    tables: Sequence[Expr],
    *,
    from_zero: bool = False,
) -> Expr:
    """TIR expression of ``program``, given values of its symbols (in order) and its tables.

    A table is a buffer or, where it has no dimensions, the number that it holds. from_zero: no
    symbol that is an index is negative, nor as large as 2^30.

    Pure selects and no branches: every part may be evaluated anywhere, also in vectors and in the
    tail of a tile. Whatever is computed, no table is read outside its bounds and no integer
    division traps.
    """
    names = SCORE_SYMBOLS if program.is_score else MASK_SYMBOLS
    given = dict(zip(names, symbols, strict=True))
    values: list[Expr] = []
    is_natural = program.is_natural if from_zero else [False] * len(program.instructions)
    for (op, *rest), dtype in zip(program.instructions, program.dtypes, strict=True):
        if op in given:
            value = given[op]
        elif op == "const":
            value = tirx.const(rest[1], dtype)
        elif op == "cast":
            value = _cast(values[rest[1]], dtype)
        elif op == "load":
            value = _load(tables[rest[0]], [values[ref] for ref in rest[1:]])
        elif op in _OF_NATURALS and is_natural[rest[0]] and is_natural[rest[1]]:
            value = _OF_NATURALS[op](*(values[ref] for ref in rest))
        else:
            value = _apply(op, [values[ref] for ref in rest])
        values.append(value)
    return values[-1]


def _apply(op: str, args: list[Expr]) -> Expr:
    dtype = args[0].ty.dtype
    if op in _COMPARISONS:
        # LLVM has no ordered comparison of bits.
        args = [tirx.Cast("int32", x) if dtype == "bool" else x for x in args]
        return _COMPARISONS[op](*args)
    if dtype == "bool" and op in _OF_BOOLS:
        return _OF_BOOLS[op](*args)
    table = _OF_INTEGERS if dtype in INTEGERS else _OF_FLOATS
    return (table.get(op) or _OF_NUMBERS.get(op) or getattr(tirx, op))(*args)


def _cast(value: Expr, dtype: str) -> Expr:
    if dtype in INTEGERS and value.ty.dtype == "float32":
        # LLVM's conversion of NaN and of what does not fit is undefined, and an undefined index
        # would slip through its bounds.
        low, high = _FLOAT_BOUNDS[dtype]
        value = tirx.Select(value < high, value, high)
        value = tirx.Select(value > low, value, low)
    return tirx.Cast(dtype, value)


def _load(table: Expr, indices: list[Expr]) -> Expr:
    if not hasattr(table, "shape"):
        return table
    clamped = [_clamped(index, size) for index, size in zip(indices, table.shape, strict=True)]
    value, dtype = table[tuple(clamped)], TABLE_DTYPES[str(table.dtype)]
    return value if table.dtype == dtype else tirx.Cast(dtype, value)


def _clamped(index: Expr, size: Expr) -> Expr:
    """``index`` inside [0, size), in its own type."""
    dtype = index.ty.dtype
    last = size - tirx.const(1, "int64")
    if dtype != "int64":  # a size that the type does not hold bounds nothing
        last = tirx.Cast(dtype, tirx.min(last, tirx.const(2**31 - 1, "int64")))
    return tirx.max(tirx.min(index, last), tirx.const(0, dtype))


def _integer_division(op: Callable, of_minus_one: Callable) -> Callable:
    """``op`` by any divisor: 0 counts as 1, and the smallest integer by -1 does not trap."""

    def divide(a, b):
        if isinstance(b, tirx.IntImm):
            return of_minus_one(a) if b.value == -1 else op(a, b) if b.value else op(a, _one(b))
        minus_one = tirx.EQ(b, tirx.const(-1, b.ty.dtype))
        special = tirx.Or(minus_one, tirx.EQ(b, tirx.const(0, b.ty.dtype)))
        return tirx.Select(minus_one, of_minus_one(a), op(a, tirx.Select(special, _one(b), b)))

    return divide


def _one(like: Expr) -> Expr:
    return tirx.const(1, like.ty.dtype)


def _divide(a: Expr, b: Expr) -> Expr:
    # TVM refuses to fold a division by zero.
    if isinstance(b, tirx.FloatImm) and b.value == 0:
        if isinstance(a, tirx.FloatImm) and (a.value == 0 or math.isnan(a.value)):
            return _nan()
        return tirx.Mul(a, tirx.const(math.copysign(math.inf, b.value), "float32"))
    return tirx.Div(a, b)


def _remainder(rounded: Callable) -> Callable:
    def remainder(a, b):
        is_zero = isinstance(b, tirx.FloatImm) and b.value == 0
        return _nan() if is_zero else a - rounded(a / b) * b

    return remainder


def _nan() -> Expr:
    return tirx.reinterpret("float32", tirx.const(0x7FC00000, "int32"))


def _shift_amount(amount: Expr) -> Expr:
    return tirx.bitwise_and(amount, tirx.const(31 if amount.ty.dtype == "int32" else 63, amount.ty))


def _negative(x: Expr) -> Expr:
    return tirx.const(0, x.ty.dtype) - x


def _absolute(x: Expr) -> Expr:
    return tirx.Select(x < tirx.const(0, x.ty.dtype), _negative(x), x)


def _exclusive(a: Expr, b: Expr) -> Expr:
    return tirx.And(tirx.Or(a, b), tirx.Not(tirx.And(a, b)))


# The last float32 numbers that the integer type holds.
_FLOAT_BOUNDS = {
    "int32": (tirx.const(-(2.0**31), "float32"), tirx.const(2.0**31 - 2**7, "float32")),
    "int64": (tirx.const(-(2.0**63), "float32"), tirx.const(2.0**63 - 2**39, "float32")),
}
_COMPARISONS: dict[str, Callable] = {
    "eq": tirx.EQ, "ne": tirx.NE, "lt": tirx.LT, "le": tirx.LE, "gt": tirx.GT, "ge": tirx.GE,
}  # fmt: skip
_OF_BOOLS: dict[str, Callable] = {
    "and": tirx.And, "or": tirx.Or, "xor": _exclusive, "not": tirx.Not, "where": tirx.Select,
}  # fmt: skip
_OF_NUMBERS: dict[str, Callable] = {
    "add": tirx.Add, "sub": tirx.Sub, "mul": tirx.Mul, "neg": _negative,
    "maximum": tirx.Max, "minimum": tirx.Min,
}  # fmt: skip
_OF_INTEGERS: dict[str, Callable] = {
    "abs": _absolute,
    "mod": _integer_division(tirx.floormod, lambda a: tirx.const(0, a.ty.dtype)),
    "floordiv": _integer_division(tirx.floordiv, _negative),
    "and": tirx.bitwise_and, "or": tirx.bitwise_or, "xor": tirx.bitwise_xor,
    "not": tirx.bitwise_not,
    "shift_left": lambda a, b: tirx.shift_left(a, _shift_amount(b)),
    "shift_right": lambda a, b: tirx.shift_right(a, _shift_amount(b)),
}  # fmt: skip
# Rounding down and towards 0 are one; the first takes five instructions more and its operand twice.
_OF_NATURALS: dict[str, Callable] = {
    "mod": _integer_division(tirx.truncmod, lambda a: tirx.const(0, a.ty.dtype)),
    "floordiv": _integer_division(tirx.truncdiv, _negative),
}
_OF_FLOATS: dict[str, Callable] = {
    "abs": lambda x: tirx.call_intrin("float32", "tirx.fabs", x),
    "div": _divide, "mod": _remainder(tirx.floor), "fmod": _remainder(tirx.trunc),
    "pow": tirx.power,
    # torch rounds halves to even; tirx.round takes them away from zero.
    "round": tirx.nearbyint,
}  # fmt: skip
