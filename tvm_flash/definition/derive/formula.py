"""Formulas: scalar TIR expressions over named values; filled in, evaluated, written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.ir import TensorLoad

from ..derivative import is_call

Expr = tvm.ir.Expr

LOWEST = -3.4028234663852886e38  # of float32

_OPERATORS = {
    tirx.Add: "+", tirx.Sub: "-", tirx.Mul: "*", tirx.Div: "/", tirx.EQ: "==", tirx.NE: "!=",
    tirx.LT: "<", tirx.LE: "<=", tirx.GT: ">", tirx.GE: ">=", tirx.And: "and", tirx.Or: "or",
}  # fmt: skip
_INTEGER = (tirx.Mod, tirx.FloorDiv, tirx.FloorMod)
_BINARY = (*_OPERATORS, tirx.Max, tirx.Min, *_INTEGER)


def named(name: str) -> tirx.Var:
    """A float32 value known by its name."""
    return tirx.Var(name, "float32")


def number(value: float) -> Expr:
    """A float32 constant."""
    return tirx.const(value, "float32")


def is_named(e: Expr) -> bool:
    """Whether ``e`` is a named value."""
    return isinstance(e, tvm.ir.Var) and not tirx.is_buffer_var(e)


def constant(e: Expr) -> float | None:
    """The number that ``e`` is, or None."""
    return float(e.value) if isinstance(e, (tirx.FloatImm, tirx.IntImm)) else None


def call_name(e: Expr) -> str:
    """The name of an intrinsic, without its dialect."""
    return e.op.name.split(".")[-1]


def is_choice(e: Expr) -> bool:
    """Whether ``e`` is one of two values by a condition."""
    return isinstance(e, tirx.Select) or (is_call(e) and call_name(e) == "if_then_else")


def children(e: Expr) -> list[Expr]:
    """The operands of ``e``; the indices of a load."""
    if isinstance(e, _BINARY):
        return [e.a, e.b]
    if isinstance(e, tirx.Not):
        return [e.a]
    if isinstance(e, tirx.Select):
        return [e.condition, e.true_value, e.false_value]
    if isinstance(e, tirx.Cast):
        return [e.value]
    if isinstance(e, TensorLoad):
        return list(e.indices)
    return list(e.args) if is_call(e) else []


def rewrite(e: Expr, replace: Callable[[Expr], Expr | None]) -> Expr:
    """``e`` with each node for which ``replace`` returns an expression replaced, from the top."""
    if (new := replace(e)) is not None:
        return new
    parts = children(e)
    done = [rewrite(part, replace) for part in parts]
    if all(a.same_as(b) for a, b in zip(parts, done, strict=True)):
        return e
    return rebuild(e, done)


def rebuild(e: Expr, parts: list[Expr]) -> Expr:
    """The operation of ``e`` on other operands."""
    if isinstance(e, (*_BINARY, tirx.Not, tirx.Select)):
        return type(e)(*parts)
    if isinstance(e, tirx.Cast):
        return tirx.Cast(e.ty.dtype, *parts)
    if isinstance(e, TensorLoad):
        return tirx.BufferLoad(e.source, parts)
    return tirx.call_intrin(e.ty.dtype, e.op.name, *parts)


def fill(e: Expr, values: dict[str, Expr]) -> Expr:
    """``e`` with the named values in ``values`` replaced."""
    return rewrite(e, lambda node: values.get(node.name) if is_named(node) else None)


def with_keys(e: Expr) -> Expr:
    """``e`` in a row that sees a key: where a sum of weights is compared with 0, it is not 0."""

    def replace(node):
        if not is_choice(node):
            return None
        condition, _, otherwise = children(node)
        compared = isinstance(condition, tirx.EQ) and constant(condition.b) == 0
        return with_keys(otherwise) if compared else None

    return rewrite(e, replace)


def nodes(e: Expr) -> Iterator[Expr]:
    """``e`` and everything in it."""
    yield e
    for part in children(e):
        yield from nodes(part)


def names(e: Expr) -> frozenset[str]:
    """The named values that ``e`` depends on."""
    return frozenset(node.name for node in nodes(e) if is_named(node))


def evaluate(e: Expr, values: dict[str, Any], dtype: str = "float32") -> Any:
    """``e`` by numpy, each operation rounded to ``dtype``; values: numbers or arrays by name."""
    if is_named(e):
        return np.asarray(values[e.name], dtype)
    if (value := constant(e)) is not None:
        return np.asarray(value, dtype)
    parts = [evaluate(part, values, dtype) for part in children(e)]
    with np.errstate(all="ignore"):
        if is_choice(e):
            return np.where(*parts)
        if isinstance(e, tirx.Cast):
            return parts[0]
        name = call_name(e) if is_call(e) else type(e).__name__
        return _NUMPY[name](*parts)


def write(e: Expr) -> str:
    """``e`` as one would write it on paper."""
    return _written(e)[0]


def _written(e: Expr) -> tuple[str, int]:
    """Text and how tightly it binds: 0 comparisons, 1 sums, 2 products, 3 what stands alone."""
    if (value := constant(e)) is not None:
        return _NAMED_NUMBERS.get(value, f"{value:g}"), 3 if value >= 0 else 1
    if is_named(e):
        return e.name, 3
    if isinstance(e, tirx.Cast):
        return _written(e.value)
    if isinstance(e, TensorLoad):
        return f"{e.source.name}[{', '.join(map(write, e.indices))}]", 3
    if is_choice(e):
        condition, yes, no = children(e)
        return f"{write(yes)} if {write(condition)} else {_bracketed(no, 1)}", 0
    if (sign := _OPERATORS.get(type(e))) is not None:
        if isinstance(e, tirx.Sub) and constant(e.a) == 0:
            return f"-{_bracketed(e.b, 2)}", 1
        tight = {"+": 1, "-": 1, "*": 2, "/": 2}.get(sign, 0)
        right = tight + (sign in "-/" or tight == 0)
        return f"{_bracketed(e.a, tight)} {sign} {_bracketed(e.b, right)}", tight
    name = call_name(e) if is_call(e) else type(e).__name__.lower()
    return f"{name}({', '.join(map(write, children(e)))})", 3


def _bracketed(e: Expr, least: int) -> str:
    text, tight = _written(e)
    return text if tight >= least else f"({text})"


_NAMED_NUMBERS = {LOWEST: "lowest", float("-inf"): "-inf", float("inf"): "inf"}


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


_NUMPY: dict[str, Callable] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Max": np.maximum,
    "Min": np.minimum, "EQ": np.equal, "NE": np.not_equal, "LT": np.less, "LE": np.less_equal,
    "GT": np.greater, "GE": np.greater_equal, "And": np.logical_and, "Or": np.logical_or,
    "Not": np.logical_not, "exp": np.exp, "exp2": np.exp2, "log": np.log, "log2": np.log2,
    "sqrt": np.sqrt, "sigmoid": _sigmoid, "tanh": np.tanh, "fabs": np.abs,
}  # fmt: skip
